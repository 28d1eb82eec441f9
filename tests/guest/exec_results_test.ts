/**
 * How the end of a command is read, word by word: a real guest says few of these
 * when asked to.
 */
import { assert, assertEquals } from "@std/assert";
import { execInGuest, type ExecInGuestOptions } from "../../lib/guest/exec.ts";
import { VmDisconnectedError } from "../../lib/qemu/errors.ts";
import { sharedMonitor } from "../../lib/qemu/monitor.ts";
import { failure } from "../support/failure.ts";
import {
  type FakeCommand,
  fakeMachine,
  readFrames,
  readLine,
  say,
} from "../support/fake_machine.ts";

function test(name: string, fn: () => Promise<void>) {
  Deno.test({ name, ignore: Deno.build.os === "windows", fn });
}

/** A command that ends with such words on its streams. */
const ending =
  (out: string, err = "", ends: [string?, string?] = []) =>
  async (command: FakeCommand) => {
    const { marker } = command;
    await say(command.err, "ready\n");
    await say(command.out, `${out}${marker}${ends[0] ?? 0}\n`);
    await say(command.err, `${err}${marker}${ends[1] ?? ""}\n`);
  };

/** Runs commands of one machine, each of which does so. */
async function machineThat(command: (command: FakeCommand) => Promise<void>) {
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

test("a command's status, and what it wrote, are its result", async () => {
  await using on = await machineThat(ending("out\n", "wörd", ["3"]));
  assertEquals(await on.exec("true"), {
    ...{ code: 3, signal: null, stdout: "out\n", stderr: "wörd" },
    ...{ truncated: false, stdoutBytes: 4, stderrBytes: 5 },
  });
});

test("each signal that a shell reports has its name, others have none", async () => {
  let word = "";
  await using on = await machineThat((command) =>
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
    // Of these a shell says nothing.
    const signal = name === "KILL" ? null : `SIG${name}`;
    assertEquals<unknown>([exited.code, exited.signal], [code, signal]);
  }
  for (const other of ["144s", "128s", "255s"]) {
    word = other;
    assertEquals((await on.exec("true")).signal, null);
  }
});

test("a command that cannot be started says why, and what to do", async () => {
  let word = "";
  await using on = await machineThat((command) =>
    ending("", "", ["0", word])(command)
  );
  const cases = {
    N: ["command_not_found", "Command not found in the guest: tool"],
    A: ["command_not_found", "Command not executable in the guest: tool"],
    D: ["guest_failed", "No such directory in the guest: /none"],
    T: ["guest_failed", "The guest has no terminal for a command"],
  } as const;
  const hints = new Set<string | undefined>();
  for (const [said, [code, message]] of Object.entries(cases)) {
    word = said;
    const error = await failure(
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
    const error = await failure("guest_failed", () => on.exec("tool"));
    assert(error instanceof VmDisconnectedError, other);
  }
});

test("a command has its words, its variables, and the top directory where none is named", async () => {
  let words: string[] = [];
  await using on = await machineThat((command) => {
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
  await on.exec("tool", { cwd: "/tmp", otherwise: "/" });
  assertEquals(words.slice(2), ["/tmp", "/", "0", "tool"]);
});

test("what may not be passed is refused with the reason", async () => {
  await using on = await machineThat(ending(""));
  const cases: [string, ExecInGuestOptions, string][] = [
    ["a", { env: { "1A": "" } }, "Not a name of an environment variable: 1A"],
    ["", {}, "The command is empty"],
    [
      "a",
      { args: ["b\0"] },
      "A command, argument or variable holds a zero byte",
    ],
    [
      "a",
      { env: { A: "\ud83d" } },
      "A command, argument or variable is not valid Unicode",
    ],
  ];
  for (const [command, options, message] of cases) {
    const error = await failure("usage", () => on.exec(command, options));
    assertEquals(error.message, message);
  }
  const signal = AbortSignal.abort(new Error("enough"));
  const error = await on.exec("a", { signal }).catch((error) => error);
  assertEquals(error.message, "enough");
});

test("a command reads its input, and one that does not is no failure", async () => {
  let read = "";
  await using on = await machineThat(async (command) => {
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
  // What nobody reads any more is let go of.
  let cancelled = false;
  const endless = new ReadableStream<Uint8Array>({
    cancel: () => void (cancelled = true),
  });
  assertEquals((await on.exec("true", { stdin: endless })).code, 0);
  assertEquals(cancelled, true);
});

test("input that breaks off ends the command, and is a failure here", async () => {
  const told: string[] = [];
  await using on = await machineThat(async ({ err }) => {
    await say(err, "ready\n");
    told.push(await readLine(err).catch(() => "hung up"));
  });
  const stdin = new ReadableStream<Uint8Array>({
    pull: (controller) => controller.error(new Error("the disk is gone")),
  });
  const error = await failure(
    "file_unreadable",
    () => on.exec("cat", { stdin }),
  );
  assertEquals(
    error.message,
    "The command's input cannot be read: the disk is gone",
  );
});

test("a command that has to end is asked to, then forced", async () => {
  const told: string[] = [];
  await using on = await machineThat(async ({ marker, out, err }) => {
    await say(err, "ready\n");
    await say(out, "it runs");
    told.push(await readLine(err), await readLine(err));
    await say(out, `${marker}137s\n`);
    await say(err, `${marker}\n`);
  });
  const stop = new AbortController();
  const error = await on.exec("sleep", {
    signal: stop.signal,
    killAfterMs: 20,
    stdout: () => stop.abort(new Error("enough")),
  }).catch((error) => error);
  assertEquals([error.message, told], ["enough", ["TERM", "KILL"]]);
  const late = await failure("timeout", () => on.exec("a", { timeoutMs: 1 }));
  assertEquals(late.message, "The command did not end within 0.001 s");
});

test("one stream that was too much is enough to say so", async () => {
  const most = "a".repeat(32 * 2 ** 20);
  await using on = await machineThat(ending(`${most}b`));
  assertEquals((await on.exec("true")).truncated, true);
});
