/**
 * A shell that waits in a guest for its first command. It is started before the
 * guest is saved: what a shell and its pipes cost, an emulated guest above all, no
 * machine that is restored pays again.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { VmDisconnectedError } from "../qemu/errors.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { writeAll } from "../system/streams.ts";
import { abortable, settlesWithin } from "../system/time.ts";
import type { ProcessStatus } from "./_answers.ts";
import {
  type Channel,
  greeted,
  newMarker,
  startShell,
  type WaitingCommand,
  type WaitingShell,
} from "./_channel.ts";
import {
  claimFirstPorts,
  closePorts,
  ownPorts,
  plugPorts,
  type PortClaim,
  type Ports,
} from "./_ports.ts";
import { COMMAND_SCRIPT, WAITING_SCRIPT } from "./_scripts.ts";
import { receive, sendLine } from "./_streams.ts";

export { claimFirstPorts, closePorts, type PortClaim, type WaitingShell };

/** A shell that can set the guest up before; disposing it ends it. */
export interface SetUpShell extends WaitingShell, Disposable {
  /**
   * Runs the set-up script, as long as the shell has not become a command.
   *
   * @returns How it ended.
   * @throws {VmDisconnectedError} When the guest does not answer, or malformed.
   * @throws The signal's reason when it is aborted.
   */
  setUp(words: string[], limits: SetUpLimits): Promise<ProcessStatus>;
  /** Lets go of it: its machine ends. */
  close(): void;
}

/** How long a set-up may take. */
export type SetUpLimits = { timeoutMs: number; signal?: AbortSignal };

/** What runs in a guest that is saved: a snapshot has to match it. */
export const WAITING_PROGRAM: readonly string[] = [
  COMMAND_SCRIPT,
  WAITING_SCRIPT,
];

/** A guest's shell reads byte by byte: of more, another is told sooner. */
const MOST_BYTES = 2048;
const MOST_WORDS = 64;
/** Each of these costs it a process. */
const MOST_ESCAPED = 8;
const READY_MS = 30_000;
/** An exit status, and the shell as the guest agent knows it. */
const SETUP_WORD = /^(\d{1,3}) (\d{1,10})$/;

/**
 * Starts the shell, in a guest that was booted and is to be saved.
 *
 * @param monitor The machine.
 * @param signal Gives up when aborted.
 * @returns The shell.
 * @throws {ToolsmithError} `guest_failed` when the guest cannot start it.
 * @throws The signal's reason when it is aborted.
 */
export async function startWaitingShell(
  monitor: Monitor,
  signal?: AbortSignal,
): Promise<SetUpShell> {
  // No command has taken the ports that it has from its start.
  const how = { input: true, signal };
  const ports =
    (await monitor.exclusive(() => plugPorts(monitor, how), signal))!;
  try {
    const words = [COMMAND_SCRIPT, "sh", ports.name, "yes", WAITING_SCRIPT];
    await startShell(monitor, { ports, words, signal });
    return new Shell(monitor, ports);
  } catch (error) {
    ports[Symbol.dispose]();
    throw error;
  }
}

/**
 * The shell in a guest that was restored.
 *
 * @param monitor The machine.
 * @param claim The machine's first ports.
 * @returns The shell.
 */
export function restoredShell(monitor: Monitor, claim: PortClaim): SetUpShell {
  return new Shell(monitor, ownPorts(monitor, claim));
}

class Shell implements SetUpShell {
  readonly #monitor: Monitor;
  /** Its ports, until it has become a command. */
  #ports: Ports | undefined;
  readonly #marker = newMarker();
  #pid: number | undefined;

  constructor(monitor: Monitor, ports: Ports) {
    this.#monitor = monitor;
    this.#ports = ports;
  }

  async setUp(words: string[], limits: SetUpLimits): Promise<ProcessStatus> {
    try {
      if (!this.#ports) throw new VmDisconnectedError();
      return await this.#setUp(this.#ports, words, limits);
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  async become(
    { words, input, signal }: WaitingCommand,
  ): Promise<Channel | undefined> {
    const all = [input ? "yes" : "no", ...words];
    const ports = this.#ports;
    if (!ports || !isSmall(all)) return undefined;
    this.#ports = undefined;
    try {
      if (this.#pid === undefined) {
        await this.#setUp(ports, [], { timeoutMs: READY_MS, signal });
      }
      const pid = this.#pid!;
      await abortable(writeAll(ports.err, linesOf("command", all)), signal);
      if (!input) await abortable(sendLine(ports.in!, "0"), signal);
      await greeted(this.#monitor, pid, { ports, signal });
      return { ...ports, pid, marker: this.#marker };
    } catch (error) {
      ports[Symbol.dispose]();
      signal?.throwIfAborted();
      // An earlier command may have killed it: this one has not begun, and where the
      // machine itself is gone, another shell says so.
      if (error instanceof ToolsmithError) return undefined;
      throw error;
    }
  }

  async #setUp(
    { err }: Ports,
    words: string[],
    { timeoutMs, signal }: SetUpLimits,
  ): Promise<ProcessStatus> {
    const first = this.#pid === undefined ? [this.#marker] : [];
    const lines = linesOf("setup", words, first);
    await abortable(writeAll(err, lines), signal);
    const said = receive(err, this.#marker);
    const answers = await settlesWithin(said.done, timeoutMs, { signal });
    if (answers) await said.done;
    const [, code, pid] = SETUP_WORD.exec(said.word() ?? "") ?? [];
    if (code === undefined) throw new VmDisconnectedError();
    this.#pid = Number(pid);
    return { exited: true, exitCode: Number(code), output: said.text() };
  }

  close(): void {
    this.#ports?.close();
    this.#ports = undefined;
  }

  [Symbol.dispose](): void {
    this.#ports?.[Symbol.dispose]();
    this.#ports = undefined;
  }
}

/** What {@linkcode WAITING_SCRIPT} reads. */
function linesOf(
  kind: "setup" | "command",
  words: string[],
  before: string[] = [],
): Uint8Array {
  const lines = [...before, `${kind} ${words.length}`, ...words.map(printable)];
  return new TextEncoder().encode(lines.map((line) => `${line}\n`).join(""));
}

/** Is it read sooner than another shell starts? */
function isSmall(words: string[]): boolean {
  const isEscaped = (word: string) => printable(word) !== word;
  return words.length <= MOST_WORDS &&
    linesOf("command", words).length <= MOST_BYTES &&
    words.filter(isEscaped).length <= MOST_ESCAPED;
}

/** Writes what is not printable for the guest's `printf %b`. */
function printable(word: string): string {
  const bytes = Array.from(new TextEncoder().encode(word));
  return bytes.map((byte) => {
    const isPlain = byte >= 0x20 && byte < 0x7f && byte !== 0x5c;
    return isPlain
      ? String.fromCharCode(byte)
      : `\\0${byte.toString(8).padStart(3, "0")}`;
  }).join("");
}
