/**
 * Runs a command on a terminal of the guest, for a person. The terminal is a
 * serial port of the machine: all guests have its driver, and what the host does
 * not take waits in the guest. A virtio console drops it.
 *
 * @module
 */
import { join } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import { TERMINAL_IRQS, terminalDevice, terminalId } from "../qemu/devices.ts";
import { terminalLock } from "../qemu/machine_dir.ts";
import { connectToMachine } from "../qemu/errors.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { tryLock } from "../system/lock.ts";
import { writeAll } from "../system/streams.ts";
import { timeLimit } from "../system/time.ts";
import { openChannel, type TerminalSize } from "./_channel.ts";
import {
  carryStreams,
  type ExecInGuestOptions,
  type ExecOptions,
  type ExecResult,
  startWords,
} from "./exec.ts";
import { type OutputSink, receive, sendLine } from "./_streams.ts";

export type { TerminalSize };

/** The terminal of a person, which a guest's follows. */
export interface TerminalScreen {
  /** What is typed, Ctrl-C among it; asked for once the guest listens. */
  input(): Promise<ReadableStream<Uint8Array>>;
  /** Shows what the guest writes; the guest waits while a promise is pending. */
  output: OutputSink;
  /** How much it shows now. */
  size(): TerminalSize;
  /**
   * Calls back whenever its size has changed, until the signal is aborted: the
   * command has ended then, and the screen is not the guest's any more.
   */
  onResize(changed: () => void, signal: AbortSignal): void;
}

/** How {@linkcode execOnTerminal} runs a command. */
export interface TerminalOptions
  extends Omit<ExecOptions, "stdin" | "stdout" | "stderr"> {
  /** The terminal here. */
  screen: TerminalScreen;
}

/** How a command on a terminal ended; all that it wrote counts as output. */
export type TerminalResult = Pick<
  ExecResult,
  "code" | "signal" | "stdoutBytes" | "stderrBytes"
>;

/**
 * Runs a command on a terminal in the guest, to its end. A machine has three
 * terminals.
 *
 * Needs `--allow-read`, `--allow-write` and `--allow-net=unix:…` for the
 * machine's directory.
 *
 * @param monitor The machine.
 * @param command Its name, found on the guest's PATH, or its path.
 * @param options The terminal here; arguments, limits.
 * @returns How it ended. A failure of the command is a result, not an error.
 * @throws {ToolsmithError} `command_not_found`, `timeout`, `guest_failed`,
 * `usage` for what cannot be passed exactly.
 * @throws The signal's reason when it is aborted.
 */
export async function execOnTerminal(
  monitor: Monitor,
  command: string,
  options:
    & Omit<TerminalOptions, "hostCwd">
    & Pick<ExecInGuestOptions, "onWait" | "otherwise">,
): Promise<TerminalResult> {
  const words = startWords(command, options);
  const { screen, timeoutMs = Infinity } = options;
  using limit = timeLimit(timeoutMs, "The command", options.signal);
  const { signal } = limit;
  signal.throwIfAborted();
  using line = await openLine(monitor.dir);
  const terminal = { device: line.device, ...screen.size() };
  const { onWait } = options;
  const open = { words, input: false, terminal, signal, onWait };
  using channel = await openChannel(monitor, open);
  const shown = receive(line.connection, channel.marker, screen.output);
  const say = (word: string) => void sendLine(channel.err, word).catch(noop);
  // Its leader holds the terminal until then.
  shown.done.then(() => say("KILL"), noop);
  const over = new AbortController();
  const follow = () => {
    const { rows, columns } = screen.size();
    say(`size ${rows} ${columns}`);
  };
  try {
    screen.onResize(follow, over.signal);
    // It may have changed while the command was started.
    follow();
    void type(line.connection, await screen.input(), over.signal);
    const session = { monitor, channel, command, options, signal };
    // A terminal that is read no more would hold the command for ever.
    const broken = shown.done.then(() => new Promise<never>(noop));
    const { code, signal: endedBy } = await Promise.race([
      carryStreams(session),
      broken,
    ]);
    return {
      code,
      signal: endedBy,
      stdoutBytes: shown.bytes(),
      stderrBytes: 0,
    };
  } finally {
    over.abort();
  }
}

/** Takes the first terminal that no process uses. */
async function openLine(dir: string) {
  for (let index = 0; index < TERMINAL_IRQS.length; index++) {
    const lock = await tryLock(join(dir, terminalLock(index)));
    if (!lock) continue;
    try {
      const path = join(dir, terminalId(index));
      const connection = await connectToMachine(path);
      return {
        device: terminalDevice(index),
        connection,
        [Symbol.dispose]() {
          connection.close();
          lock[Symbol.dispose]();
        },
      };
    } catch (error) {
      lock[Symbol.dispose]();
      if (!(error instanceof Deno.errors.NotFound)) throw error;
      throw new ToolsmithError(
        "guest_failed",
        "The machine has no terminals",
        {
          hint:
            "those for arm64 have none; one of an older Toolsmith: boot it again",
        },
      );
    }
  }
  throw new ToolsmithError(
    "guest_failed",
    `All ${TERMINAL_IRQS.length} terminals of the machine are in use`,
    { hint: "leave one of them, or use toolsmith run" },
  );
}

/** Sends what is typed, until the signal is aborted. */
async function type(
  connection: Deno.UnixConn,
  input: ReadableStream<Uint8Array>,
  signal: AbortSignal,
): Promise<void> {
  const reader = input.getReader();
  const cancel = () => void reader.cancel().catch(noop);
  signal.addEventListener("abort", cancel, { once: true });
  try {
    while (!signal.aborted) {
      const { value } = await reader.read();
      if (value === undefined) break;
      await writeAll(connection, value);
    }
  } catch {
    // The terminal here is gone, or the guest's: the command notices by itself.
  } finally {
    reader.releaseLock();
  }
}

function noop() {}
