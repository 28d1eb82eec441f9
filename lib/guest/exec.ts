/**
 * Runs commands in a guest. The guest agent starts them, or a shell that waits
 * becomes them; their streams go over virtio-serial ports of their own, so that
 * output is seen as it comes, byte for byte, for several commands at once.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { VmDisconnectedError } from "../qemu/errors.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { timeLimit } from "../system/time.ts";
import { type Channel, openChannel, type WaitingShell } from "./_channel.ts";
import { endOnAbort, type ExecLimits, watchShell } from "./_limits.ts";
import { START_FAILURES } from "./_scripts.ts";
import {
  type CommandInput,
  feed,
  type OutputSink,
  receive,
  sendLine,
} from "./_streams.ts";

export type { CommandInput, ExecLimits, OutputSink };

/** How {@linkcode execInGuest} runs a command. */
export interface ExecOptions extends ExecLimits {
  /** Arguments, each passed byte for byte. @default {[]} */
  args?: string[];
  /** What the command reads. @default {undefined} nothing */
  stdin?: CommandInput;
  /** Sees standard output. @default {undefined} it is collected */
  stdout?: OutputSink;
  /** Sees standard error. @default {undefined} it is collected */
  stderr?: OutputSink;
  /** Added to the guest's environment, or overriding it. @default {{}} */
  env?: Record<string, string>;
  /**
   * The command's directory in the guest; a relative one starts from where the
   * guest has `hostCwd`.
   *
   * @default {undefined} where the guest has `hostCwd`
   */
  cwd?: string;
  /**
   * A directory of the host, such as `Deno.cwd()`: the command starts where the
   * guest has it, in the workspace or an export.
   *
   * @default {undefined} `/mnt/work`, as for a directory that the guest does not
   * have; `/` where no workspace is mounted
   */
  hostCwd?: string;
}

/** What {@linkcode execInGuest} takes. */
export interface ExecInGuestOptions extends Omit<ExecOptions, "hostCwd"> {
  /** The directory for want of the other. @default {undefined} that is an error */
  otherwise?: string;
  /** Called once if the command has to wait until others have ended. */
  onWait?: () => void;
  /** A shell that waits for a command. @default {undefined} there is none */
  waiting?: WaitingShell;
}

/** How a command ended. */
export interface ExecResult {
  /** The exit status; 128 plus the number for a signal. */
  code: number;
  /**
   * The signal that ended the command, or `null`. A status of 130 or 141 counts
   * as SIGINT or SIGPIPE, which a guest's shell does not tell from an exit.
   */
  signal: Deno.Signal | null;
  /** Collected standard output, as text; empty if a sink took it. */
  stdout: string;
  /** Collected standard error, as text; empty if a sink took it. */
  stderr: string;
  /** Was more written than is collected of a stream, which is 32 MiB? */
  truncated: boolean;
  /** Bytes on standard output. */
  stdoutBytes: number;
  /** Bytes on standard error. */
  stderrBytes: number;
}

const SIGNALS: Record<number, Deno.Signal> = {
  1: "SIGHUP",
  2: "SIGINT",
  3: "SIGQUIT",
  4: "SIGILL",
  5: "SIGTRAP",
  6: "SIGABRT",
  7: "SIGBUS",
  8: "SIGFPE",
  9: "SIGKILL",
  10: "SIGUSR1",
  11: "SIGSEGV",
  12: "SIGUSR2",
  13: "SIGPIPE",
  14: "SIGALRM",
  15: "SIGTERM",
};

/** Shells report each death by a signal but these. */
const UNREPORTED: (Deno.Signal | null)[] = ["SIGINT", "SIGPIPE"];
/** An exit status, and `s` if the shell reported a signal. */
const EXIT_WORD = /^(\d{1,3})(s?)$/;

/**
 * Runs a command in the guest to its end.
 *
 * Needs `--allow-read`, `--allow-write` and `--allow-net=unix:…` for the
 * machine's directory.
 *
 * @param monitor The machine.
 * @param command Its name, found on the guest's PATH, or its path.
 * @param options Arguments, streams, limits.
 * @returns How it ended. A failure of the command is a result, not an error.
 * @throws {ToolsmithError} `command_not_found`, `timeout`, `guest_failed`,
 * `usage` for what cannot be passed exactly.
 * @throws The signal's reason when it is aborted.
 */
export async function execInGuest(
  monitor: Monitor,
  command: string,
  options: ExecInGuestOptions = {},
): Promise<ExecResult> {
  const words = startWords(command, options);
  const { timeoutMs = Infinity, stdin, onWait, waiting } = options;
  using limit = timeLimit(timeoutMs, "The command", options.signal);
  const { signal } = limit;
  signal.throwIfAborted();
  const input = stdin !== undefined;
  const open = { words, input, signal, onWait, waiting };
  using channel = await openChannel(monitor, open);
  const session = { monitor, channel, command, options, signal };
  return await carryStreams(session);
}

/**
 * Refuses what cannot arrive, and writes the words of the start script.
 *
 * @param command The command.
 * @param options Its arguments, environment and directory.
 * @throws {ToolsmithError} `usage`.
 */
export function startWords(
  command: string,
  options: Pick<ExecInGuestOptions, "cwd" | "otherwise" | "env" | "args">,
): string[] {
  const { cwd = "/", otherwise = cwd, env = {}, args = [] } = options;
  const variables = Object.entries(env);
  for (const [name] of variables) {
    if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(name)) {
      throw usage(`Not a name of an environment variable: ${name}`);
    }
  }
  if (command === "") throw usage("The command is empty");
  const words = [
    cwd,
    otherwise,
    `${variables.length}`,
    ...variables.map(([name, value]) => `${name}=${value}`),
    command,
    ...args,
  ];
  for (const word of words) {
    if (word.includes("\0")) {
      throw usage("A command, argument or variable holds a zero byte");
    }
    // Half of a surrogate pair would arrive as another character.
    if (!word.isWellFormed()) {
      throw usage("A command, argument or variable is not valid Unicode");
    }
  }
  return words;
}

function usage(message: string): ToolsmithError {
  return new ToolsmithError("usage", message);
}

/** A command that runs. */
export interface ExecSession {
  /** The machine. */
  monitor: Monitor;
  /** Its streams. */
  channel: Channel;
  /** The command. */
  command: string;
  /** How it is run. */
  options: ExecInGuestOptions;
  /** Ends it when aborted. */
  signal: AbortSignal;
}

/**
 * Carries the streams of a command until it has ended.
 *
 * @param session The command.
 * @returns How it ended.
 * @throws {ToolsmithError} What {@linkcode execInGuest} throws.
 */
export async function carryStreams(session: ExecSession): Promise<ExecResult> {
  const { monitor, channel, options, signal } = session;
  const { marker } = channel;
  const out = receive(channel.out, marker, options.stdout);
  const err = receive(channel.err, marker, options.stderr);
  const kill = (name: string) => void sendLine(channel.err, name).catch(noop);
  const input = carryInput(channel, options.stdin);
  const { killAfterMs } = options;
  try {
    using abort = endOnAbort(kill, { signal, killAfterMs });
    using shell = watchShell(monitor, channel.pid);
    await Promise.race([
      Promise.all([out.done, err.done]),
      shell.lost,
      abort.givenUp,
      input.broken,
    ]);
  } finally {
    input.stop();
  }
  signal.throwIfAborted();
  const failure = err.word() ?? "";
  if (isStartFailure(failure)) throw startFailure(session, failure);
  if (failure !== "") throw new VmDisconnectedError();
  return {
    ...readExit(out.word() ?? ""),
    stdout: out.text(),
    stderr: err.text(),
    truncated: out.truncated() || err.truncated(),
    stdoutBytes: out.bytes(),
    stderrBytes: err.bytes(),
  };
}

/** Sends the input; `broken` rejects if it breaks off. */
function carryInput(channel: Channel, stdin: CommandInput | undefined) {
  const stop = new AbortController();
  const broken = Promise.withResolvers<never>();
  broken.promise.catch(noop);
  const fed = channel.in && stdin !== undefined
    ? feed(channel.in, stdin, stop.signal).catch((error) => {
      // A command that stops reading is fine; input that breaks off is not.
      if (error instanceof ToolsmithError) broken.reject(error);
    })
    : undefined;
  return {
    broken: broken.promise,
    stop() {
      stop.abort();
      // A write that the guest does not take would wait without end.
      channel.endInput(fed);
    },
  };
}

function noop() {}

/** The guest may say what it likes, and this becomes the exit status here. */
function readExit(word: string): Pick<ExecResult, "code" | "signal"> {
  const [, status, reported] = EXIT_WORD.exec(word) ?? [];
  const code = Number(status);
  if (!(code <= 255)) throw new VmDisconnectedError();
  const signal = SIGNALS[code - 128] ?? null;
  const known = reported || UNREPORTED.includes(signal);
  return { code, signal: known ? signal : null };
}

type StartFailure = keyof typeof START_FAILURES;

function isStartFailure(word: string): word is StartFailure {
  return Object.hasOwn(START_FAILURES, word);
}

function startFailure(
  { command, options }: ExecSession,
  failure: StartFailure,
): ToolsmithError {
  if (failure === "D") {
    return new ToolsmithError(
      "guest_failed",
      `No such directory in the guest: ${options.cwd}`,
      { hint: "name a directory of the guest; the workspace is /mnt/work" },
    );
  }
  if (failure === "T") {
    return new ToolsmithError(
      "guest_failed",
      "The guest has no terminal for a command",
      { hint: "it needs stty, setsid -c, and a kernel with 8250 serial ports" },
    );
  }
  return new ToolsmithError(
    "command_not_found",
    `Command ${START_FAILURES[failure]} in the guest: ${command}`,
    { hint: "give its path in the guest, or name it in the manifest's tools" },
  );
}
