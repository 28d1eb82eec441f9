import {
  assertEquals,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import {
  type ProcessExit,
  runProcess,
  spawnProcess,
} from "../../lib/system/process.ts";
import { orIfNotFound } from "../../lib/system/files.ts";
import { sleep } from "../../lib/system/time.ts";
import { assertEnded } from "../support/processes.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { temporaryDir } from "../support/directory.ts";
import { waitingTextSink } from "../support/text_sink.ts";
import { runScript } from "../support/script.ts";
import { watchedSignal } from "../support/signals.ts";
import { waitUntil } from "../support/wait_until.ts";
import { holdTimers } from "../support/timers.ts";

/** Longer than any test may take, in seconds. */
const FOREVER = "600";
/** A timeout that the test expires itself. */
const LIMIT_MS = 123_457;
/** Time between TERM and KILL, in milliseconds. */
const KILL_AFTER_MS = 3000;

const sh = (script: string, ...args: string[]) => ["-c", script, "sh", ...args];

Deno.test("runProcess() returns the program's output, errors and exit code", async () => {
  const args = sh("echo out; echo err >&2; exit 3");
  const output = await runProcess("sh", { args });
  assertEquals(output, {
    code: 3,
    signal: null,
    stdout: "out\n",
    stdoutBytes: new TextEncoder().encode("out\n"),
    stderr: "err\n",
  });
});

Deno.test("runProcess() passes arguments byte for byte", async () => {
  const odd = ["", " ", "a b", "$(id)", "'", '"', "\n", "*", "-n", "ä\\", ";"];
  const args = sh('printf "%s\\0" "$@"', ...odd);
  const { stdout } = await runProcess("sh", { args });
  assertEquals(stdout.split("\0").slice(0, -1), odd);
});

Deno.test("runProcess() sets the working directory and adds environment variables", async () => {
  await using dir = await temporaryDir();
  const { stdout } = await runProcess("sh", {
    args: sh('pwd -P; echo "$GREETING"; [ -n "$PATH" ] && echo path'),
    cwd: dir.path,
    env: { GREETING: "hello" },
  });
  assertEquals(stdout, `${dir.path}\nhello\npath\n`);
});

Deno.test("runProcess() and spawnProcess() throw NotFound for a missing program", async () => {
  await assertRejects(
    () => runProcess("no-such-program-7"),
    Deno.errors.NotFound,
  );
  assertThrows(() => spawnProcess("/no/such/program"), Deno.errors.NotFound);
});

Deno.test("runProcess() returns the signal that ended the program", async () => {
  const { code, signal } = await runProcess("sh", { args: sh("kill -9 $$") });
  assertEquals({ code, signal }, { code: 137, signal: "SIGKILL" });
});

Deno.test("runProcess() with clearEnv passes only the given variables", async () => {
  const { stdout } = await runProcess("/usr/bin/env", {
    env: { ONLY: "this" },
    clearEnv: true,
  });
  assertEquals(stdout, "ONLY=this\n");
});

Deno.test("RunningProcess.stop() sends KILL after 3 seconds to a program that ignores TERM", async () => {
  const heard = waitingTextSink();
  const child = spawnProcess("sh", {
    args: sh('trap "" TERM; echo ready; while :; do sleep 0.05; done'),
    stdout: heard.sink,
  });
  await heard.until("ready");
  using kills = holdTimers(KILL_AFTER_MS);
  const stopping = [child.stop(), child.stop()];
  assertEquals(kills.count(), 1);
  kills.expire();
  const stopped: ProcessExit[] = await Promise.all(stopping);
  for (const { signal } of stopped) assertEquals(signal, "SIGKILL");
  assertEquals(await child.stop(), stopped[0]);
});

Deno.test("RunningProcess.stop() lets a program clean up after TERM", async () => {
  const heard = waitingTextSink();
  const child = spawnProcess("sh", {
    args: sh(
      'trap "echo bye; exit 7" TERM; echo ready; while :; do sleep 0.05; done',
    ),
    stdout: heard.sink,
  });
  await heard.until("ready");
  using _kills = holdTimers(KILL_AFTER_MS);
  assertEquals((await child.stop()).code, 7);
  assertStringIncludes(heard.said(), "bye");
});

Deno.test("spawnProcess() stops the program at the end of an await using scope", async () => {
  let ended: Promise<ProcessExit>;
  {
    await using child = spawnProcess("sleep", { args: [FOREVER] });
    ended = child.ended;
  }
  assertEquals((await ended).signal, "SIGTERM");
});

Deno.test("runProcess() stops the program on abort, and throws the signal's reason", async () => {
  const abort = new AbortController();
  const running = runProcess("sh", {
    args: sh(`exec sleep ${FOREVER}`),
    signal: abort.signal,
    onStart: () => abort.abort(new DOMException("enough", "AbortError")),
  });
  const error = await assertRejects(() => running, DOMException, "enough");
  assertEquals(error.name, "AbortError");
});

Deno.test("runProcess() starts nothing when its signal is already aborted", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/made`;
  await assertRejects(
    () => runProcess("touch", { args: [path], signal: AbortSignal.abort() }),
    DOMException,
  );
  await assertRejects(() => Deno.stat(path), Deno.errors.NotFound);
});

Deno.test("runProcess() stops the program after its timeout, and names the program in the error", async () => {
  const error = await expectFailure(
    "timeout",
    () => runProcess("sleep", { args: [FOREVER], timeoutMs: 50 }),
  );
  assertEquals(error.message, "sleep did not end within 0.05 s");
});

Deno.test("RunningProcess.stop() returns while a descendant process still holds the pipes", async () => {
  // The child process holds both pipes, like a hung credential helper of oras.
  const script = `sleep ${FOREVER} & echo $! >&2; wait`;
  const heard = waitingTextSink();
  const child = spawnProcess("sh", {
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

Deno.test("runProcess() also stops descendant processes after its timeout", async () => {
  // One script waits for its child process, the other exits first.
  for (const last of ["wait", "exit 0"]) {
    await using dir = await temporaryDir();
    const path = `${dir.path}/pid`;
    const args = sh(
      `(trap "" TERM; sleep ${FOREVER}) & echo $! > ${path}; ${last}`,
    );
    using limits = holdTimers(LIMIT_MS);
    const options = { args, timeoutMs: LIMIT_MS };
    const late = expectFailure("timeout", () => runProcess("sh", options));
    const helper = async () =>
      Number(await orIfNotFound(Deno.readTextFile(path)) ?? 0);
    await waitUntil("the child process runs", async () => await helper() > 0);
    limits.expire();
    await late;
    await assertEnded(await helper());
  }
});

Deno.test("runProcess() leaves a program without a timeout in this process's group, which gets the terminal's signals", async () => {
  const groupOf = async (pid: string) => {
    const args = sh(`ps -o pgid= -p ${pid}`);
    return (await runProcess("sh", { args })).stdout.trim();
  };
  assertEquals(await groupOf("$$"), await groupOf(`${Deno.pid}`));
});

Deno.test("runProcess() enforces its timeout when --allow-run allows only one program", async () => {
  await using dir = await temporaryDir();
  const script = `
    import { runProcess } from "/lib/system/process.ts";
    const late = runProcess("sleep", { args: ["${FOREVER}"], timeoutMs: 50 });
    console.log(await late.catch((error) => error.code));
  `;
  const said = await runScript(`${dir.path}/late.ts`, script, {
    permissions: ["--allow-run=sleep"],
  });
  assertEquals(said, "timeout\n");
});

Deno.test("RunningProcess.stop() kills the whole process group, even if its leader ignores TERM", async () => {
  for (const trap of ["", 'trap "" TERM;']) {
    const heard = waitingTextSink();
    const child = spawnProcess("sh", {
      args: sh(`${trap} sleep ${FOREVER} & echo $!; wait; sleep ${FOREVER}`),
      stdout: heard.sink,
      ownProcessGroup: true,
    });
    await heard.until("\n");
    using kills = holdTimers(KILL_AFTER_MS);
    const stopped = child.stop();
    if (trap) kills.expire();
    await stopped;
    await assertEnded(Number(heard.said()));
  }
});

Deno.test("runProcess() leaves no timer after the program ends, and stop() can be repeated", async () => {
  // A leaked timer would fail this test.
  const { code } = await runProcess("sh", {
    args: sh("exit 3"),
    timeoutMs: 600_000,
  });
  assertEquals(code, 3);
  const child = spawnProcess("sh", {
    args: sh("exit 4"),
    ownProcessGroup: true,
  });
  const ended = await child.ended;
  assertEquals([await child.stop(), ended.code], [ended, 4]);
});

Deno.test("runProcess() removes its abort listener when the program ends", async () => {
  const { signal, listeners } = watchedSignal();
  await runProcess("true", { signal });
  assertEquals(listeners(), 0);
});

Deno.test("RunningProcess.detach() writes an empty line to the program, which outlives this process", async () => {
  await using dir = await temporaryDir();
  const script = `
    import { spawnProcess } from "/lib/system/process.ts";
    const [told] = Deno.args;
    const code = "read -r line; echo \\"$? <$line>\\" >" + told + "; exec sleep ${FOREVER}";
    const child = spawnProcess("sh", {
      args: ["-c", code],
      input: "held",
      stdout: () => {},
      stderr: () => {},
    });
    await child.detach();
    console.log(child.pid);
  `;
  const told = `${dir.path}/told`;
  // The script ends, but the program keeps running.
  const pid = await runScript(`${dir.path}/release.ts`, script, {
    args: [told],
  });
  try {
    while (await Deno.readTextFile(told).catch(() => "") === "") {
      await sleep(20);
    }
    // At EOF, read would fail.
    assertEquals(await Deno.readTextFile(told), "0 <>\n");
  } finally {
    Deno.kill(Number(pid), "SIGKILL");
  }
});
