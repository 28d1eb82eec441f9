/**
 * Starts and stops child processes. The only module that uses `Deno.Command`.
 */
import { ToolsmithError } from "../errors.ts";
import {
  createOutputBuffer,
  type ProcessInput,
  type ProcessOutputTarget,
  readProcessOutput,
  writeProcessInput,
} from "./_process_pipes.ts";
import { isPermissionGranted } from "../environment.ts";
import { anySignal, startDeadline } from "./time.ts";

export type { ProcessInput, ProcessOutputTarget };

export interface SpawnOptions {
  /** Arguments, passed unchanged and without a shell. */
  args?: string[];
  /** Working directory. @default {undefined} the caller's */
  cwd?: string;
  /** Variables to add to the caller's environment or to override. */
  env?: Record<string, string>;
  /** Passes only the variables in `env`. @default {false} */
  clearEnv?: boolean;
  /**
   * Text, bytes or a stream to write; nothing by default. `"held"` keeps the pipe open
   * until the program exits or is detached, then writes an empty line. EOF without this
   * line tells descendants that this process died.
   */
  input?: ProcessInput;
  /**
   * Starts a new session, so that Ctrl-C and signals to this process group do not reach
   * the program.
   */
  newSession?: boolean;
  /**
   * Starts a new process group (and session), so that `stop()` also stops the
   * descendants. Without effect on Windows, and without `--allow-run` for all programs,
   * which Deno requires for killing a group.
   */
  ownProcessGroup?: boolean;
  /** Destination of standard output. @default {"null"} */
  stdout?: ProcessOutputTarget;
  /** Destination of standard error. @default {"null"} */
  stderr?: ProcessOutputTarget;
  /** Stops the program when aborted: TERM first, then KILL after 3 seconds. */
  signal?: AbortSignal;
}

/** How a program ended. */
export interface ProcessExit {
  /** Exit code; 128 plus the signal number after a signal. */
  code: number;
  /** Signal that ended the program, or `null`. */
  signal: Deno.Signal | null;
}

export interface RunningProcess extends AsyncDisposable {
  readonly pid: number;
  /** Resolves when the program has ended and its output is read. Never rejects. */
  readonly ended: Promise<ProcessExit>;
  /** Sends TERM, then KILL after a grace time, and waits. Idempotent. */
  stop(): Promise<ProcessExit>;
  /** Closes the input, and lets this process exit before the program. */
  detach(): Promise<void>;
}

export interface RunProcessOptions
  extends Omit<SpawnOptions, "stdout" | "stderr"> {
  /**
   * Timeout in milliseconds, by default none. Also stops the program's descendants,
   * unless `ownProcessGroup` is `false`.
   */
  timeoutMs?: number;
  onStart?: (pid: number) => void;
}

/** How a program ended, and what it printed. */
export interface ProcessResult extends ProcessExit {
  stdout: string;
  stdoutBytes: Uint8Array<ArrayBuffer>;
  stderr: string;
}

const KILL_AFTER_MS = 3000;
/** How long to wait for the remaining output of a stopped program. */
const DRAIN_TIMEOUT_MS = 500;

/**
 * Runs a program, named by path or found on PATH, to its end and returns its output. A
 * nonzero exit code is a result, not an error; more than 32 MiB of output is an error,
 * and so is a program that does not exist (`Deno.errors.NotFound`).
 */
export async function runProcess(
  program: string,
  options: RunProcessOptions = {},
): Promise<ProcessResult> {
  const { timeoutMs = Infinity, onStart, ...rest } = options;
  const lateMessage = `${program} did not end within ${timeoutMs / 1000} s`;
  const late = () => new ToolsmithError("timeout", lateMessage);
  using deadline = startDeadline(timeoutMs, late, rest.signal);
  // Endless output must not exhaust the memory.
  const tooMuchOutput = new AbortController();
  const onFull = () =>
    tooMuchOutput.abort(
      new ToolsmithError("failed", `${program} printed more than 32 MiB`),
    );
  const signal = anySignal(deadline.signal, tooMuchOutput.signal);
  const stdout = createOutputBuffer(onFull);
  const stderr = createOutputBuffer(onFull);
  await using child = spawnProcess(program, {
    ...rest,
    signal,
    ownProcessGroup: rest.ownProcessGroup ?? Number.isFinite(timeoutMs),
    stdout: stdout.add,
    stderr: stderr.add,
  });
  onStart?.(child.pid);
  const ended = await child.ended;
  signal.throwIfAborted();
  const stdoutBytes = await stdout.bytes();
  const [out, err] = [stdoutBytes, await stderr.bytes()]
    .map((bytes) => new TextDecoder().decode(bytes));
  return { ...ended, stdout: out, stdoutBytes, stderr: err };
}

/**
 * Starts a program, and reads its output continuously, so that a full pipe never blocks
 * the program. Throws `Deno.errors.NotFound` if the program does not exist.
 */
export function spawnProcess(
  program: string,
  options: SpawnOptions = {},
): RunningProcess {
  const { input = "null", stdout = "null", stderr = "null", signal } = options;
  signal?.throwIfAborted();
  const group = options.ownProcessGroup === true && canSignalProcessGroups();
  const child = new Deno.Command(program, {
    args: options.args ?? [],
    cwd: options.cwd,
    env: options.env,
    clearEnv: options.clearEnv,
    detached: options.newSession || group,
    stdin: input === "null" || input === "inherit" ? input : "piped",
    stdout: typeof stdout === "function" ? "piped" : stdout,
    stderr: typeof stderr === "function" ? "piped" : stderr,
  }).spawn();
  const stopper = createProcessStopper(child, group);
  signal?.addEventListener("abort", stopper.stop, { once: true });

  const stdin = writeProcessInput(child, input);
  const readers = (["stdout", "stderr"] as const).flatMap((name) => {
    const sink = options[name];
    return typeof sink === "function"
      ? [readProcessOutput(child[name], sink)]
      : [];
  });
  const ended = (async (): Promise<ProcessExit> => {
    const { code, signal: endedBy } = await child.status;
    stopper.onProcessEnd();
    const done = Promise.all([stdin.close(), ...readers.map((it) => it.done)]);
    await Promise.race([done, stopper.drainTimedOut]);
    await Promise.all(readers.map((it) => it.cancel()));
    stopper.cancelTimers();
    signal?.removeEventListener("abort", stopper.stop);
    return { code, signal: endedBy };
  })();

  return {
    pid: child.pid,
    ended,
    stop() {
      stopper.stop();
      return ended;
    },
    async detach() {
      await stdin.close();
      await Promise.all(readers.map((it) => it.cancel()));
      child.unref();
    },
    async [Symbol.asyncDispose]() {
      stopper.stop();
      await ended;
    },
  };
}

function canSignalProcessGroups(): boolean {
  // Queried first, because an attempt would show a permission prompt.
  return Deno.build.os !== "windows" && isPermissionGranted({ name: "run" });
}

/** Sends TERM and KILL to a program or its process group. */
function createProcessStopper(child: Deno.ChildProcess, group: boolean) {
  const timers: ReturnType<typeof setTimeout>[] = [];
  const drainTimeout = Promise.withResolvers<void>();
  let alive = true;
  let stopping = false;
  const sendSignal = (name: Deno.Signal) => {
    try {
      if (group) Deno.kill(-child.pid, name);
      else if (alive) child.kill(name);
    } catch {
      // The process has already ended.
    }
  };
  /** Limits the wait for descendants after a stop. */
  const limitDrain = () => {
    if (group) sendSignal("SIGKILL");
    timers.push(setTimeout(drainTimeout.resolve, DRAIN_TIMEOUT_MS));
  };
  return {
    /** Resolves when the wait for a stopped program's output is over. */
    drainTimedOut: drainTimeout.promise,
    /** Sends TERM, and KILL after the grace time. Idempotent. */
    stop() {
      if (stopping) return;
      stopping = true;
      if (!alive) return limitDrain();
      sendSignal("SIGTERM");
      timers.push(setTimeout(() => sendSignal("SIGKILL"), KILL_AFTER_MS));
    },
    /** Call when the program has ended; descendants may still hold its pipes. */
    onProcessEnd() {
      alive = false;
      if (stopping) limitDrain();
    },
    /** Disables later stops. */
    cancelTimers() {
      stopping = true;
      timers.forEach((timer) => clearTimeout(timer));
    },
  };
}
