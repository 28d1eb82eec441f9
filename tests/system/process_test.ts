import {
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { type ProcessExit, run, spawn } from "../../lib/system/process.ts";
import { sleep } from "../../lib/system/time.ts";
import { assertEnded } from "../support/processes.ts";
import { failure } from "../support/failure.ts";
import { temporaryDir } from "../support/directory.ts";
import { listener } from "../support/listener.ts";
import { runScript } from "../support/script.ts";
import { watchedSignal } from "../support/signals.ts";

/** Longer than any test may take: who waits for it has failed. */
const FOREVER = "600";

const sh = (script: string, ...args: string[]) => ["-c", script, "sh", ...args];

Deno.test("a program's output, errors and exit code are returned", async () => {
  const args = sh("echo out; echo err >&2; exit 3");
  const output = await run("sh", { args });
  assertEquals(output, {
    code: 3,
    signal: null,
    stdout: "out\n",
    stdoutBytes: new TextEncoder().encode("out\n"),
    stderr: "err\n",
  });
});

Deno.test("arguments arrive byte for byte, whatever is in them", async () => {
  const odd = ["", " ", "a b", "$(id)", "'", '"', "\n", "*", "-n", "ä\\", ";"];
  const args = sh('printf "%s\\0" "$@"', ...odd);
  const { stdout } = await run("sh", { args });
  assertEquals(stdout.split("\0").slice(0, -1), odd);
});

Deno.test("directory and environment of a program can be set; the rest is inherited", async () => {
  await using dir = await temporaryDir();
  const { stdout } = await run("sh", {
    args: sh('pwd -P; echo "$GREETING"; [ -n "$PATH" ] && echo path'),
    cwd: dir.path,
    env: { GREETING: "hello" },
  });
  assertEquals(stdout, `${dir.path}\nhello\npath\n`);
});

Deno.test("a program that does not exist is NotFound", async () => {
  await assertRejects(() => run("no-such-program-7"), Deno.errors.NotFound);
  assertThrows(() => spawn("/no/such/program"), Deno.errors.NotFound);
});

Deno.test("a program that ends by a signal says which", async () => {
  const { code, signal } = await run("sh", { args: sh("kill -9 $$") });
  assertEquals({ code, signal }, { code: 137, signal: "SIGKILL" });
});

Deno.test("a cleared environment holds nothing but what is given", async () => {
  const { stdout } = await run("/usr/bin/env", {
    env: { ONLY: "this" },
    clearEnv: true,
  });
  assertEquals(stdout, "ONLY=this\n");
});

Deno.test("a program that ignores TERM is killed after the grace time", async () => {
  const heard = listener();
  const child = spawn("sh", {
    args: sh('trap "" TERM; echo ready; while :; do sleep 0.05; done'),
    stdout: heard.sink,
    killAfterMs: 100,
  });
  await heard.until("ready");
  const stopped: ProcessExit[] = await Promise.all([
    child.stop(),
    child.stop(),
  ]);
  for (const { signal } of stopped) assertEquals(signal, "SIGKILL");
  assertEquals(await child.stop(), stopped[0]);
});

Deno.test("a program that cleans up on TERM has the time to", async () => {
  const heard = listener();
  const child = spawn("sh", {
    args: sh(
      'trap "echo bye; exit 7" TERM; echo ready; while :; do sleep 0.05; done',
    ),
    stdout: heard.sink,
    killAfterMs: 60_000,
  });
  await heard.until("ready");
  assertEquals((await child.stop()).code, 7);
  assertStringIncludes(heard.said(), "bye");
});

Deno.test("leaving the scope stops the program", async () => {
  let ended: Promise<ProcessExit>;
  {
    await using child = spawn("sleep", { args: [FOREVER] });
    ended = child.ended;
  }
  assertEquals((await ended).signal, "SIGTERM");
});

Deno.test("an abort stops the program, and its reason is thrown", async () => {
  const abort = new AbortController();
  const running = run("sh", {
    args: sh(`echo ready >&2; exec sleep ${FOREVER}`),
    signal: abort.signal,
    onStderr: () => abort.abort(new DOMException("enough", "AbortError")),
  });
  const error = await assertRejects(() => running, DOMException, "enough");
  assertEquals(error.name, "AbortError");
});

Deno.test("an abort that came before starts nothing", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/made`;
  await assertRejects(
    () => run("touch", { args: [path], signal: AbortSignal.abort() }),
    DOMException,
  );
  await assertRejects(() => Deno.stat(path), Deno.errors.NotFound);
});

Deno.test("a time limit stops the program and names it", async () => {
  const error = await failure(
    "timeout",
    () => run("sleep", { args: [FOREVER], timeoutMs: 50 }),
  );
  assertEquals(error.message, "sleep did not end within 0.05 s");
});

Deno.test("what a stopped program leaves running does not keep it from ending", async () => {
  // The helper holds both pipes, as a hung credential helper of oras would.
  const script = `sleep ${FOREVER} & echo $! >&2; wait`;
  const heard = listener();
  const child = spawn("sh", {
    args: sh(script),
    stdout: () => {},
    stderr: heard.sink,
  });
  await heard.until("\n");
  const helper = Number(heard.said());
  try {
    assertEquals((await child.stop()).signal, "SIGTERM");
  } finally {
    Deno.kill(helper, "SIGKILL");
  }
});

Deno.test("a time limit ends what the program has started, too", async () => {
  // One script waits for its helper, the other has left it behind.
  for (const last of ["wait", "exit 0"]) {
    const heard = listener();
    const args = sh(
      `(trap "" TERM; sleep ${FOREVER}) & echo $! >&2; ${last}`,
    );
    const options = { args, timeoutMs: 500, onStderr: heard.sink };
    await failure("timeout", () => run("sh", options));
    const helper = Number(heard.said());
    await assertEnded(helper);
  }
});

Deno.test("a time limit holds where Deno may run one program alone", async () => {
  await using dir = await temporaryDir();
  const script = `
    import { run } from "/lib/system/process.ts";
    const late = run("sleep", { args: ["${FOREVER}"], timeoutMs: 50 });
    console.log(await late.catch((error) => error.code));
  `;
  const said = await runScript(`${dir.path}/late.ts`, script, {
    permissions: ["--allow-run=sleep"],
  });
  assertEquals(said, "timeout\n");
});

Deno.test("a group that is stopped ends, whether or not its leader listens to TERM", async () => {
  for (const trap of ["", 'trap "" TERM;']) {
    const heard = listener();
    const child = spawn("sh", {
      args: sh(`${trap} sleep ${FOREVER} & echo $!; wait; sleep ${FOREVER}`),
      stdout: heard.sink,
      group: true,
      killAfterMs: 100,
    });
    await heard.until("\n");
    await child.stop();
    await assertEnded(Number(heard.said()));
  }
});

Deno.test("a program that has ended in time leaves nothing to wait for, and may be stopped again", async () => {
  // Timers that are left would fail this test.
  const { code } = await run("sh", { args: sh("exit 3"), timeoutMs: 600_000 });
  assertEquals(code, 3);
  const child = spawn("sh", { args: sh("exit 4"), group: true });
  const ended = await child.ended;
  assertEquals([await child.stop(), ended.code], [ended, 4]);
});

Deno.test("who waits for a program listens to its signal no longer than that", async () => {
  const { signal, listeners } = watchedSignal();
  await run("true", { signal });
  assertEquals(listeners(), 0);
});

Deno.test("a program that is released is told by an empty line, and outlives the process that started it", async () => {
  await using dir = await temporaryDir();
  const script = `
    import { spawn } from "/lib/system/process.ts";
    const [told] = Deno.args;
    const code = "read -r line; echo \\"<$line>\\" >" + told + "; exec sleep ${FOREVER}";
    const child = spawn("sh", {
      args: ["-c", code],
      input: "held",
      stdout: () => {},
      stderr: () => {},
    });
    await child.release();
    console.log(child.pid);
  `;
  const told = `${dir.path}/told`;
  // It ends, though the program does not.
  const pid = await runScript(`${dir.path}/release.ts`, script, {
    args: [told],
  });
  try {
    for (let tries = 0; tries < 250; tries++) {
      if (await Deno.readTextFile(told).catch(() => "") !== "") break;
      await sleep(20);
    }
    assertEquals(await Deno.readTextFile(told), "<>\n");
  } finally {
    Deno.kill(Number(pid), "SIGKILL");
  }
});
