import { assert, assertEquals } from "@std/assert";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { runOnHost } from "../../lib/run/run_on_host.ts";
import { assertEnded } from "../support/processes.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { holdTimers, installMovingClock } from "../support/timers.ts";

const windows = Deno.build.os === "windows";
/** A unique timeout in milliseconds, to find its timer. */
const LIMIT_MS = 123_456;

Deno.test({
  name: "runOnHost() passes arguments, stdin and environment",
  ignore: windows,
  async fn() {
    let out = "";
    const decoder = new TextDecoder();
    const ended = await runOnHost("sh", {
      args: ["-c", 'printf "[%s]" "$@" "$TOOL"; cat; exit 3', "sh", "a  b", ""],
      env: { TOOL: "x y" },
      stdin: "in\n",
      stdout: (chunk) => out += decoder.decode(chunk, { stream: true }),
    });
    assertEquals(ended.code, 3);
    assertEquals(out, "[a  b][][x y]in\n");
  },
});

Deno.test({
  name: "runOnHost() emits command events with the host backend",
  ignore: windows,
  async fn() {
    using clock = installMovingClock();
    const events: ToolsmithEvent[] = [];
    const onEvent = (event: ToolsmithEvent) => {
      events.push(event);
      clock.pass(3_600_000);
    };
    await runOnHost("true", { onEvent });
    const [start, end] = events;
    assertEquals(events.length, 2);
    assertEquals(start.type === "command_dispatch" && start.backend, "host");
    assert(end.type === "command_end");
    assertEquals([end.code, Math.floor(end.elapsedMs / 3_600_000)], [0, 1]);
  },
});

Deno.test("runOnHost() throws command_not_found for a missing command", async () => {
  await expectFailure(
    "command_not_found",
    () => runOnHost("no-such-command-here"),
  );
});

Deno.test({
  name:
    "runOnHost() throws file_unreadable for a missing directory and command_not_found for a missing command",
  ignore: windows,
  async fn() {
    const none = `${Deno.execPath()}/none`;
    for (const cwd of ["/no/such/directory", none, Deno.execPath()]) {
      const { message, hint } = await expectFailure(
        "file_unreadable",
        () => runOnHost("true", { cwd }),
      );
      assertEquals(message, `No such directory on this host: ${cwd}`);
      assert(hint);
    }
    const commands = [
      [none, "not found"],
      ["/etc/passwd", "not executable"],
      ["/etc", "not executable"],
    ];
    for (const [command, what] of commands) {
      const { message } = await expectFailure(
        "command_not_found",
        () => runOnHost(command),
      );
      assertEquals(message, `Command ${what} on this host: ${command}`);
    }
  },
});

Deno.test({
  name: "runOnHost() ends a command and its child processes at its timeout",
  ignore: windows,
  async fn() {
    using clocks = holdTimers(LIMIT_MS);
    let pid = "";
    const decoder = new TextDecoder();
    // Longer than the wait for its end.
    const script = "sleep 3600 & echo $!; wait";
    const { message } = await expectFailure("timeout", () =>
      runOnHost("sh", {
        args: ["-c", script],
        stdout(chunk) {
          pid += decoder.decode(chunk);
          if (pid.endsWith("\n")) clocks.expire();
        },
        timeoutMs: LIMIT_MS,
      }));
    assertEquals(message, "The command did not end within 123.456 s");
    await assertEnded(Number(pid));
  },
});
