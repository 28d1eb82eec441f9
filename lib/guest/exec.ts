/**
 * Runs commands in a guest. The guest agent starts them; their streams go over
 * virtio-serial ports that are plugged in for each command, so that output is
 * seen as it comes, byte for byte, for several commands at once.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { type Channel, openChannel } from "./_channel.ts";
import { type ExecLimits, watchLimits, watchShell } from "./_limits.ts";

import { START_FAILURES } from "./_scripts.ts";
import {
  type CommandInput,
  feed,
  type OutputSink,
  receive,
  send,
} from "./_streams.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { VmDisconnectedError } from "../qemu/errors.ts";

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
   * The command's directory in the guest; a relative one is in the workspace.
   *
   * @default {"/mnt/work"} or `/` where no workspace is mounted
   */
  cwd?: string;
}

/** How a command ended. */
export interface ExecResult {
  /** The exit status; 128 plus the number for a signal. */
  code: number;
  /** The signal that a status above 128 stands for, or `null`. */
  signal: Deno.Signal | null;
  /** Collected standard output, as text; empty if a sink took it. */
  stdout: string;
  /** Collected standard error, as text; empty if a sink took it. */
  stderr: string;
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
 * @throws {ToolsmithError} `command_not_found`, `timeout`, `guest_failed`.
 * @throws The signal's reason when it is aborted.
 */
export async function execInGuest(
  monitor: Monitor,
  command: string,
  options: ExecOptions = {},
): Promise<ExecResult> {
  const words = checked(command, options);
  options.signal?.throwIfAborted();
  const marker = crypto.randomUUID().replaceAll("-", "");
  const input = options.stdin !== undefined;
  using channel = await openChannel(monitor, { words, input, marker });
  return await talk({ monitor, channel, marker, command, options });
}

/** Refuses what cannot arrive, and writes the words of the start script. */
function checked(command: string, options: ExecOptions): string[] {
  const env = Object.entries(options.env ?? {});
  for (const [name] of env) {
    if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(name)) {
      throw new ToolsmithError(
        "usage",
        `Not a name of an environment variable: ${name}`,
      );
    }
  }
  const words = [
    options.cwd ?? "/",
    `${env.length}`,
    ...env.map(([name, value]) => `${name}=${value}`),
    command,
    ...options.args ?? [],
  ];
  if (command === "" || words.some((word) => word.includes("\0"))) {
    throw new ToolsmithError(
      "usage",
      command === ""
        ? "The command is empty"
        : "A command, argument or variable holds a zero byte",
    );
  }
  return words;
}

interface ExecSession {
  monitor: Monitor;
  channel: Channel;
  marker: string;
  command: string;
  options: ExecOptions;
}

/** Carries the streams of a command until it has ended. */
async function talk(parts: ExecSession): Promise<ExecResult> {
  const { monitor, channel, marker, command, options } = parts;
  const out = receive(channel.out, marker, options.stdout);
  const err = receive(channel.err, marker, options.stderr);
  const kill = (name: string) => send(channel.err, `${name}\n`).catch(() => {});
  const stopFeeding = new AbortController();
  const unreadable = Promise.withResolvers<never>();
  unreadable.promise.catch(() => {});
  const fed = channel.in && options.stdin !== undefined
    ? feed(channel.in, options.stdin, stopFeeding.signal).catch((error) => {
      // A command that stops reading is fine; input that breaks off is not.
      if (error instanceof ToolsmithError) unreadable.reject(error);
    })
    : undefined;
  const limits = watchLimits(kill, options);
  const watch = watchShell(monitor, channel.pid);
  try {
    await Promise.race([
      Promise.all([out.done, err.done]),
      watch.lost,
      limits.expired,
      unreadable.promise,
    ]);
  } finally {
    limits.clear();
    stopFeeding.abort();
    // A write that the guest does not take would wait without end.
    channel.endInput(fed);
    await watch.clear();
  }
  limits.check();
  const failure = err.word() ?? "";
  if (isStartFailure(failure)) throw startFailure(command, failure, options);
  // The guest may say what it likes, and this becomes the exit status here.
  const word = out.word() ?? "";
  const code = /^\d{1,3}$/.test(word) ? Number(word) : NaN;
  if (failure !== "" || !(code <= 255)) throw new VmDisconnectedError();
  return {
    code,
    signal: code > 128 ? SIGNALS[code - 128] ?? null : null,
    stdout: out.text(),
    stderr: err.text(),
    stdoutBytes: out.bytes(),
    stderrBytes: err.bytes(),
  };
}

type StartFailure = keyof typeof START_FAILURES;

function isStartFailure(word: string): word is StartFailure {
  return Object.hasOwn(START_FAILURES, word);
}

function startFailure(
  command: string,
  failure: StartFailure,
  options: ExecOptions,
): ToolsmithError {
  if (failure === "D") {
    return new ToolsmithError(
      "guest_failed",
      `No such directory in the guest: ${options.cwd}`,
      { hint: "name a directory of the guest; the workspace is /mnt/work" },
    );
  }
  return new ToolsmithError(
    "command_not_found",
    `Command ${START_FAILURES[failure]} in the guest: ${command}`,
    { hint: "give its path in the guest, or name it in the manifest's tools" },
  );
}
