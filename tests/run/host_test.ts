import { assert, assertEquals } from "@std/assert";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { runOnHost } from "../../lib/run/host.ts";
import { assertEnded } from "../support/processes.ts";
import { failure } from "../support/failure.ts";

const windows = Deno.build.os === "windows";

Deno.test({
  name: "a command on the host gets its arguments, input and environment",
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
  name: "events say that a command ran on the host",
  ignore: windows,
  async fn() {
    const events: ToolsmithEvent[] = [];
    const onEvent = (event: ToolsmithEvent) => events.push(event);
    const begun = performance.now();
    await runOnHost("true", { onEvent });
    const most = Math.ceil(performance.now() - begun);
    const [start, end] = events;
    assertEquals(events.length, 2);
    assertEquals(start.type === "command_dispatch" && start.backend, "host");
    assertEquals(end.type === "command_end" && end.code, 0);
    assert(end.type === "command_end" && end.elapsedMs <= most);
  },
});

Deno.test("a command that the host does not have is not found", async () => {
  await failure("command_not_found", () => runOnHost("no-such-command-here"));
});

Deno.test({
  name: "runOnHost() tells a missing directory from a missing command",
  ignore: windows,
  async fn() {
    const none = `${Deno.execPath()}/none`;
    for (const cwd of ["/no/such/directory", none, Deno.execPath()]) {
      const { message, hint } = await failure(
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
      const { message } = await failure(
        "command_not_found",
        () => runOnHost(command),
      );
      assertEquals(message, `Command ${what} on this host: ${command}`);
    }
  },
});

Deno.test({
  name: "a command on the host ends when its time is over",
  ignore: windows,
  async fn() {
    const options = { args: ["60"], timeoutMs: 50 };
    await failure("timeout", () => runOnHost("sleep", options));
  },
});

Deno.test({
  name: "a time limit on the host ends what the command has started, too",
  ignore: windows,
  async fn() {
    let pid = "";
    const decoder = new TextDecoder();
    const script = "sleep 600 & echo $!; wait";
    await failure("timeout", () =>
      runOnHost("sh", {
        args: ["-c", script],
        stdout: (chunk) => pid += decoder.decode(chunk),
        timeoutMs: 500,
      }));
    await assertEnded(Number(pid));
  },
});
