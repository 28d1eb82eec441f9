/**
 * How execInGuest() reads trailers: a real guest sends few of these on
 * request.
 */
import { assert, assertEquals } from "@std/assert";
import { execInGuest, type ExecInGuestOptions } from "../../lib/guest/exec.ts";
import { VmDisconnectedError } from "../../lib/qemu/errors.ts";
import { sharedMonitor } from "../../lib/qemu/monitor.ts";
import { expectFailure } from "../support/expect_failure.ts";
import {
  type FakeCommand,
  fakeMachine,
  readFrames,
  readLine,
  say,
} from "../support/fake_machine.ts";
import { changeTimerDelays } from "../support/timers.ts";

function test(name: string, fn: () => Promise<void>) {
  Deno.test({ name, ignore: Deno.build.os === "windows", fn });
}

/** A fake command that ends with these trailers on its streams. */
const ending =
  (out: string, err = "", ends: [string?, string?] = []) =>
  async (command: FakeCommand) => {
    const { marker } = command;
    await say(command.err, "ready\n");
    await say(command.out, `${out}${marker}${ends[0] ?? 0}\n`);
    await say(command.err, `${err}${marker}${ends[1] ?? ""}\n`);
  };

/** Runs commands in a VM where each command behaves like this. */
async function vmRunning(command: (command: FakeCommand) => Promise<void>) {
  const machine = await fakeMachine({ command });
  const monitor = sharedMonitor(machine.dir);
  return {
    exec: (name: string, options?: ExecInGuestOptions) =>
      execInGuest(monitor, name, options),
    async [Symbol.asyncDispose]() {
      await monitor[Symbol.asyncDispose]();
      assertEquals([...machine.plugged], [], "ports are left");
      await machine[Symbol.asyncDispose]();
    },
  };
}

test("execInGuest() returns exit status, stdout and stderr", async () => {
  await using on = await vmRunning(ending("out\n", "wörd", ["3"]));
  assertEquals(await on.exec("true"), {
    ...{ code: 3, signal: null, stdout: "out\n", stderr: "wörd" },
    ...{ truncated: false, stdoutBytes: 4, stderrBytes: 5 },
  });
});

test("execInGuest() returns the signal that the guest's shell reported", async () => {
  let word = "";
  await using on = await vmRunning((command) =>
    ending("", "", [word])(command)
  );
  const names = "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE" +
    " ALRM TERM";
  for (const [index, name] of names.split(" ").entries()) {
    const code = 129 + index;
    word = `${code}s`;
    const killed = await on.exec("true");
    assertEquals<unknown>([killed.code, killed.signal], [code, `SIG${name}`]);
    if (!["INT", "KILL", "PIPE"].includes(name)) continue;
    word = `${code}`;
    const exited = await on.exec("true");
    // Shells do not report these signals.
    const signal = name === "KILL" ? null : `SIG${name}`;
    assertEquals<unknown>([exited.code, exited.signal], [code, signal]);
  }
  for (const other of ["144s", "128s", "255s"]) {
    word = other;
    assertEquals((await on.exec("true")).signal, null);
  }
});

test("execInGuest() reports with a hint why a command cannot start", async () => {
  let word = "";
  await using on = await vmRunning((command) =>
    ending("", "", ["0", word])(command)
  );
  const cases = {
    N: ["command_not_found", "Command not found in the guest: tool"],
    A: ["command_not_found", "Command not executable in the guest: tool"],
    D: ["guest_failed", "No such directory in the guest: /none"],
    T: ["guest_failed", "Cannot open a terminal in the guest"],
  } as const;
  const hints = new Set<string | undefined>();
  for (const [said, [code, message]] of Object.entries(cases)) {
    word = said;
    const error = await expectFailure(
      code,
      () => on.exec("tool", { cwd: "/none" }),
    );
    assertEquals(error.message, message);
    hints.add(error.hint);
  }
  assertEquals(hints.size, 3);
  assert(!hints.has(undefined));
  for (const other of ["X", "toString", "NN"]) {
    word = other;
    const error = await expectFailure("guest_failed", () => on.exec("tool"));
    assert(error instanceof VmDisconnectedError, other);
  }
});

test("execInGuest() passes arguments, environment and working directory, / by default", async () => {
  let words: string[] = [];
  await using on = await vmRunning((command) => {
    words = command.words;
    return ending("")(command);
  });
  await on.exec("true");
  assertEquals([words[0], ...words.slice(2)], ["no", "/", "/", "0", "true"]);
  const env = { A: "1", B_2: "x y" };
  await on.exec("tool", { args: ["-a", ""], env, cwd: "/tmp" });
  assertEquals(words.slice(2), [
    ...["/tmp", "/tmp", "2", "A=1", "B_2=x y", "tool", "-a", ""],
  ]);
  await on.exec("tool", { cwd: "/tmp", fallbackCwd: "/" });
  assertEquals(words.slice(2), ["/tmp", "/", "0", "tool"]);
});

test("execInGuest() rejects an invalid variable name, an empty command, zero bytes and lone surrogates", async () => {
  await using on = await vmRunning(ending(""));
  const cases: [string, ExecInGuestOptions, string][] = [
    ["a", { env: { "1A": "" } }, "Invalid name of an environment variable: 1A"],
    ["", {}, "The command is empty"],
    [
      "a",
      { args: ["b\0"] },
      "A command, argument or variable contains a zero byte",
    ],
    [
      "a",
      { env: { A: "\ud83d" } },
      "A command, argument or variable is not valid Unicode",
    ],
  ];
  for (const [command, options, message] of cases) {
    const error = await expectFailure("usage", () => on.exec(command, options));
    assertEquals(error.message, message);
  }
  const signal = AbortSignal.abort(new Error("enough"));
  const error = await on.exec("a", { signal }).catch((error) => error);
  assertEquals(error.message, "enough");
});

test("execInGuest() sends stdin and succeeds when the command does not read all of it", async () => {
  let read = "";
  await using on = await vmRunning(async (command) => {
    const { marker, out, err } = command;
    await say(err, "ready\n");
    if (read === "") {
      read = new TextDecoder().decode(await readFrames(command.in!));
    } else command.in!.close();
    await say(out, `${marker}0\n`);
    await say(err, `${marker}\n`);
  });
  assertEquals((await on.exec("cat", { stdin: "text" })).code, 0);
  assertEquals(read, "text");
  const stdin = new Uint8Array(2 ** 22);
  assertEquals((await on.exec("true", { stdin })).code, 0);
  // A stream that nobody reads is cancelled.
  let cancelled = false;
  const endless = new ReadableStream<Uint8Array>({
    cancel: () => void (cancelled = true),
  });
  assertEquals((await on.exec("true", { stdin: endless })).code, 0);
  assertEquals(cancelled, true);
});

test("execInGuest() fails with file_unreadable when its stdin stream fails", async () => {
  const told: string[] = [];
  await using on = await vmRunning(async ({ err }) => {
    await say(err, "ready\n");
    told.push(await readLine(err).catch(() => "hung up"));
  });
  const stdin = new ReadableStream<Uint8Array>({
    pull: (controller) => controller.error(new Error("the disk is gone")),
  });
  const error = await expectFailure(
    "file_unreadable",
    () => on.exec("cat", { stdin }),
  );
  assertEquals(
    error.message,
    "Cannot read the command's standard input: the disk is gone",
  );
});

test("execInGuest() sends TERM, then KILL, when it is aborted", async () => {
  const told: string[] = [];
  await using on = await vmRunning(async ({ marker, out, err }) => {
    await say(err, "ready\n");
    await say(out, "it runs");
    told.push(await readLine(err), await readLine(err));
    await say(out, `${marker}137s\n`);
    await say(err, `${marker}\n`);
  });
  // Never give up waiting for the command's end.
  using _timers = changeTimerDelays((ms) => ms === 2_000 ? 600_000 : ms);
  const stop = new AbortController();
  const error = await on.exec("sleep", {
    signal: stop.signal,
    killAfterMs: 20,
    stdout: () => stop.abort(new Error("enough")),
  }).catch((error) => error);
  assertEquals([error.message, told], ["enough", ["TERM", "KILL"]]);
});

test("execInGuest() reports truncated output when either stream exceeds its limit", async () => {
  const most = "a".repeat(32 * 2 ** 20);
  await using on = await vmRunning(ending(`${most}b`));
  assertEquals((await on.exec("true")).truncated, true);
});
