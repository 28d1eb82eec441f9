/**
 * Starts programs and ends them. The only file that names `Deno.Command`.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import {
  capture,
  drain,
  feed,
  type ProcessInput,
  type ProcessOutput,
} from "./_pipes.ts";

export type { ProcessInput, ProcessOutput };

/** How {@linkcode spawn} starts a program. */
export interface SpawnOptions {
  /** Arguments, each passed byte for byte; no shell reads them. */
  args?: string[];
  /** Working directory. @default {undefined} the caller's */
  cwd?: string;
  /** Added to the caller's environment, or overriding it. */
  env?: Record<string, string>;
  /** Passes nothing of the caller's environment but `env`. @default {false} */
  clearEnv?: boolean;
  /**
   * Text, bytes or a stream to write; `"held"` keeps the pipe open until the
   * program has ended or is released, then writes an empty line. A pipe that
   * ends without it notifies child processes that this process has died.
   *
   * @default {"null"}
   */
  input?: ProcessInput;
  /**
   * Starts a session of its own, which signals to this process's group and
   * Ctrl-C do not reach.
   *
   * @default {false}
   */
  detached?: boolean;
  /**
   * Stops what the program has started together with it: in a session of its
   * own, which Ctrl-C does not reach. On Windows, and without `--allow-run` for
   * all programs, which Deno wants for it, the program alone is stopped.
   *
   * @default {false}
   */
  group?: boolean;
  /** Where standard output goes. @default {"null"} */
  stdout?: ProcessOutput;
  /** Where standard error goes. @default {"null"} */
  stderr?: ProcessOutput;
  /** Stops the program when aborted: TERM first, then KILL. */
  signal?: AbortSignal;
  /** Time between TERM and KILL, in milliseconds. @default {3000} */
  killAfterMs?: number;
}

/** How a program ended. */
export interface ProcessExit {
  /** The exit code; 128 plus the number for a signal. */
  code: number;
  /** The signal that ended it, or `null`. */
  signal: Deno.Signal | null;
}

/** A running program. */
export interface Child extends AsyncDisposable {
  /** The process id. */
  readonly pid: number;
  /** Settles when the program has ended and its output is read. Never rejects. */
  readonly ended: Promise<ProcessExit>;
  /** Sends TERM, then KILL after a grace time, and waits. Safe to repeat. */
  stop(): Promise<ProcessExit>;
  /** Ends a `"held"` input, and lets this process end before the program. */
  release(): Promise<void>;
}

/** What {@linkcode run} takes besides the options of {@linkcode spawn}. */
export interface RunOptions extends Omit<SpawnOptions, "stdout" | "stderr"> {
  /**
   * Time the program may take, in milliseconds. After it, what it has started
   * is stopped as well (`group`).
   *
   * @default {Infinity}
   */
  timeoutMs?: number;
  /** Gets each chunk of standard error as it comes. */
  onStderr?: (chunk: Uint8Array) => void;
  /** Gets the process id. */
  onStart?: (pid: number) => void;
}

/** How a program ended, and what it printed. */
export interface Output extends ProcessExit {
  /** Standard output as text. */
  stdout: string;
  /** Standard output as it came. */
  stdoutBytes: Uint8Array<ArrayBuffer>;
  /** Standard error as text. */
  stderr: string;
}

const KILL_AFTER_MS = 3000;
/** How long the last output of a stopped program is waited for. */
const DRAIN_MS = 500;

/**
 * Runs a program to its end and returns what it printed. A failure of the
 * program is a result, not an error.
 *
 * Needs `--allow-run` for the program.
 *
 * @param program Its name, found on PATH, or its path.
 * @param options Arguments, input, deadline.
 * @returns Exit code and output.
 * @throws {ToolsmithError} `timeout` when the deadline passes; `failed` when the
 * program prints more than 32 MiB.
 * @throws {Deno.errors.NotFound} When there is no such program.
 * @throws The signal's reason when it is aborted.
 */
export async function run(
  program: string,
  options: RunOptions = {},
): Promise<Output> {
  const { timeoutMs = Infinity, onStderr, onStart, ...rest } = options;
  const limited = Number.isFinite(timeoutMs);
  let failure: ToolsmithError | undefined;
  const giveUp = (error: ToolsmithError) => {
    failure ??= error;
    child.stop();
  };
  // A program that prints without end must not fill the memory.
  const flooded = () =>
    giveUp(new ToolsmithError("failed", `${program} printed over 32 MiB`));
  const stdout = capture(flooded);
  const stderr = capture(flooded);
  await using child = spawn(program, {
    ...rest,
    group: rest.group ?? limited,
    stdout: stdout.add,
    stderr: (chunk) => {
      stderr.add(chunk);
      onStderr?.(chunk);
    },
  });
  onStart?.(child.pid);
  const late = `${program} did not end within ${timeoutMs / 1000} s`;
  const timer = limited
    ? setTimeout(() => giveUp(new ToolsmithError("timeout", late)), timeoutMs)
    : undefined;
  const ended = await child.ended;
  clearTimeout(timer);
  rest.signal?.throwIfAborted();
  if (failure) throw failure;
  const stdoutBytes = stdout.bytes();
  const decoder = new TextDecoder();
  return {
    ...ended,
    stdout: decoder.decode(stdoutBytes),
    stdoutBytes,
    stderr: decoder.decode(stderr.bytes()),
  };
}

/**
 * Starts a program. Its output is read as it comes, so that it never waits for
 * a full pipe.
 *
 * Needs `--allow-run` for the program.
 *
 * @param program Its name, found on PATH, or its path.
 * @param options Arguments and where its streams go.
 * @returns The running program.
 * @throws {Deno.errors.NotFound} When there is no such program.
 * @throws The signal's reason when it was aborted before.
 */
export function spawn(program: string, options: SpawnOptions = {}): Child {
  const { input = "null", stdout = "null", stderr = "null", signal } = options;
  signal?.throwIfAborted();
  const group = options.group === true && canStopGroups();
  const child = new Deno.Command(program, {
    args: options.args ?? [],
    cwd: options.cwd,
    env: options.env,
    clearEnv: options.clearEnv,
    detached: options.detached || group,
    stdin: input === "null" || input === "inherit" ? input : "piped",
    stdout: typeof stdout === "function" ? "piped" : stdout,
    stderr: typeof stderr === "function" ? "piped" : stderr,
  }).spawn();
  const stopper = makeStopper(child, {
    group,
    killAfterMs: options.killAfterMs ?? KILL_AFTER_MS,
  });
  signal?.addEventListener("abort", stopper.stop, { once: true });

  const fed = feed(child, input);
  const drains = [
    typeof stdout === "function" ? drain(child.stdout, stdout) : undefined,
    typeof stderr === "function" ? drain(child.stderr, stderr) : undefined,
  ];
  const ended = (async (): Promise<ProcessExit> => {
    const { code, signal: endedBy } = await child.status;
    stopper.noteEnd();
    const done = Promise.all([fed.close(), ...drains.map((it) => it?.done)]);
    await Promise.race([done, stopper.patience]);
    await Promise.all(drains.map((it) => it?.cancel()));
    stopper.close();
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
    async release() {
      await fed.close();
      await Promise.all(drains.map((it) => it?.cancel()));
      child.unref();
    },
    async [Symbol.asyncDispose]() {
      stopper.stop();
      await ended;
    },
  };
}

function canStopGroups(): boolean {
  // Asked first: to try would ask the person at the terminal.
  return Deno.build.os !== "windows" &&
    Deno.permissions.querySync({ name: "run" }).state === "granted";
}

/** What stops a program. */
interface Stopper {
  /** Sends TERM, and KILL after the grace time. Safe to repeat. */
  stop(): void;
  /** The program itself has ended; what it started may run, and hold its pipes. */
  noteEnd(): void;
  /** Settles when the output of a stopped program is not waited for any more. */
  patience: Promise<void>;
  /** Nothing is left to stop. */
  close(): void;
}

function makeStopper(
  child: Deno.ChildProcess,
  { group, killAfterMs }: { group: boolean; killAfterMs: number },
): Stopper {
  const timers: ReturnType<typeof setTimeout>[] = [];
  const patience = Promise.withResolvers<void>();
  let alive = true;
  let stopping = false;
  const send = (name: Deno.Signal) => {
    try {
      if (group) Deno.kill(-child.pid, name);
      else if (alive) child.kill(name);
    } catch {
      // It ended in between.
    }
  };
  /** After a stop, nobody waits for what the program has left running. */
  const cutSoon = () => {
    if (group) send("SIGKILL");
    timers.push(setTimeout(patience.resolve, DRAIN_MS));
  };
  return {
    patience: patience.promise,
    stop() {
      if (stopping) return;
      stopping = true;
      if (!alive) return cutSoon();
      send("SIGTERM");
      timers.push(setTimeout(() => send("SIGKILL"), killAfterMs));
    },
    noteEnd() {
      alive = false;
      if (stopping) cutSoon();
    },
    close() {
      stopping = true;
      timers.forEach((timer) => clearTimeout(timer));
    },
  };
}
