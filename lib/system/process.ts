/**
 * Starts and stops child processes. The only module that uses `Deno.Command`.
 */
import { ToolsmithError } from "../errors.ts";
import { isPermissionGranted } from "../environment.ts";
import { anySignal, settlesWithin, startDeadline } from "./time.ts";

/** Standard input of a program. */
export type ProcessInput =
  | "inherit"
  | "null"
  | string
  | { bytes: Uint8Array }
  | { stream: ReadableStream<Uint8Array> }
  | "held";

/**
 * Destination of a program's output stream. A callback must not throw; while its
 * promise is pending, backpressure stops the program.
 */
export type ProcessOutputTarget =
  | "inherit"
  | "null"
  | ((chunk: Uint8Array) => void)
  | ((chunk: Uint8Array) => Promise<void>);

export interface SpawnOptions {
  /** Arguments, passed unchanged and without a shell. */
  args?: string[];
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
  extends Omit<SpawnOptions, "stdout" | "stderr" | "ownProcessGroup"> {
  /** In milliseconds, by default none. Also stops the program's descendants. */
  timeoutMs?: number;
  onStart?: (pid: number) => void;
}

export interface ProcessResult extends ProcessExit {
  stdout: string;
  stdoutBytes: Uint8Array<ArrayBuffer>;
  stderr: string;
}

const KILL_AFTER_MS = 3000;
/** How long to wait for the remaining output of a stopped program. */
const DRAIN_TIMEOUT_MS = 500;
const MAX_CAPTURED_BYTES = 32 * 1024 * 1024;

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
  const capture = () => {
    const chunks: Uint8Array<ArrayBuffer>[] = [];
    let size = 0;
    const add = (chunk: Uint8Array) => {
      size += chunk.length;
      if (size <= MAX_CAPTURED_BYTES) {
        chunks.push(chunk as Uint8Array<ArrayBuffer>);
      } else {
        const message = `${program} printed more than 32 MiB`;
        tooMuchOutput.abort(new ToolsmithError("failed", message));
      }
    };
    return { add, bytes: () => new Blob(chunks).bytes() };
  };
  const [stdout, stderr] = [capture(), capture()];
  const signal = anySignal(deadline.signal, tooMuchOutput.signal);
  await using child = spawnProcess(program, {
    ...rest,
    signal,
    ownProcessGroup: Number.isFinite(timeoutMs),
    stdout: stdout.add,
    stderr: stderr.add,
  });
  onStart?.(child.pid);
  const exit = await child.ended;
  signal.throwIfAborted();
  const stdoutBytes = await stdout.bytes() as Uint8Array<ArrayBuffer>;
  const decode = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return {
    ...exit,
    stdout: decode(stdoutBytes),
    stdoutBytes,
    stderr: decode(await stderr.bytes()),
  };
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
  // Queried first, because an attempt would show a permission prompt.
  const isGroup = options.ownProcessGroup === true &&
    Deno.build.os !== "windows" && isPermissionGranted({ name: "run" });
  const child = new Deno.Command(program, {
    args: options.args ?? [],
    cwd: options.cwd,
    env: options.env,
    clearEnv: options.clearEnv,
    detached: options.newSession || isGroup,
    stdin: input === "null" || input === "inherit" ? input : "piped",
    stdout: typeof stdout === "function" ? "piped" : stdout,
    stderr: typeof stderr === "function" ? "piped" : stderr,
  }).spawn();
  const closeInput = writeInput(child, input);
  const readers = (["stdout", "stderr"] as const).flatMap((name) => {
    const sink = options[name];
    return typeof sink === "function" ? [readOutput(child[name], sink)] : [];
  });
  const cancelReaders = () => Promise.all(readers.map((it) => it.cancel()));

  const stopRequest = Promise.withResolvers<void>();
  let canStop = true;
  let killTimer: ReturnType<typeof setTimeout> | undefined;
  const sendSignal = (name: Deno.Signal) => {
    try {
      if (isGroup) Deno.kill(-child.pid, name);
      else child.kill(name);
    } catch {
      // The process has already ended.
    }
  };
  const stop = () => {
    if (canStop) {
      canStop = false;
      sendSignal("SIGTERM");
      killTimer = setTimeout(() => sendSignal("SIGKILL"), KILL_AFTER_MS);
      stopRequest.resolve();
    }
    return ended;
  };
  const ended = (async (): Promise<ProcessExit> => {
    const { code, signal: endedBy } = await child.status;
    const outputs = readers.map((it) => it.done);
    const drained = Promise.all([closeInput(), ...outputs]);
    // Descendants may hold the pipes, those of a stopped program not for long.
    await Promise.race([drained, stopRequest.promise]);
    if (!canStop) {
      if (isGroup) sendSignal("SIGKILL");
      await settlesWithin(drained, DRAIN_TIMEOUT_MS);
    }
    canStop = false;
    clearTimeout(killTimer);
    signal?.removeEventListener("abort", stop);
    await cancelReaders();
    return { code, signal: endedBy };
  })();
  signal?.addEventListener("abort", stop, { once: true });

  return {
    pid: child.pid,
    ended,
    stop,
    async detach() {
      await closeInput();
      await cancelReaders();
      child.unref();
    },
    async [Symbol.asyncDispose]() {
      await stop();
    },
  };
}

/**
 * Writes the input; returns what ends it. EPIPE is ignored: a program may stop
 * reading early.
 */
function writeInput(child: Deno.ChildProcess, input: ProcessInput) {
  if (input === "null" || input === "inherit") return async () => {};
  const ignore = () => {};
  if (input === "held") {
    const writer = child.stdin.getWriter();
    const endOfInput = new Uint8Array([0x0a]);
    return () =>
      writer.write(endOfInput).then(() => writer.close()).catch(ignore);
  }
  const stop = new AbortController();
  const { signal } = stop;
  const isStream = typeof input === "object" && "stream" in input;
  const stream = isStream ? input.stream : ReadableStream.from([
    typeof input === "string" ? new TextEncoder().encode(input) : input.bytes,
  ]);
  const done = stream.pipeTo(child.stdin, { signal }).catch(ignore);
  return () => {
    // A stream may never end.
    if (isStream) stop.abort();
    return done;
  };
}

function readOutput(
  stream: ReadableStream<Uint8Array>,
  sink: Exclude<ProcessOutputTarget, string>,
) {
  const reader = stream.getReader();
  return {
    done: (async () => {
      for (;;) {
        const { value } = await reader.read();
        if (value === undefined) return;
        await sink(value);
      }
    })(),
    cancel: () => reader.cancel(),
  };
}
