/**
 * A shell that waits in a guest for its first command. It is started before the
 * guest is saved: what a shell and its pipes cost, an emulated guest above all, no
 * machine that is restored pays again.
 *
 * @module
 */
import { FIRST_PORTS, portFile } from "../qemu/machine_dir.ts";
import { VmDisconnectedError } from "../qemu/errors.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { writeAll } from "../system/streams.ts";
import { abortable, settlesWithin } from "../system/time.ts";
import type { ProcessStatus } from "./_answers.ts";
import {
  type Channel,
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
  returnFirstPorts,
} from "./_ports.ts";
import type { RunScriptOptions } from "./_script.ts";
import { COMMAND_SCRIPT, WAITING_SCRIPT } from "./_scripts.ts";
import { receive, sendLine } from "./_streams.ts";

export { claimFirstPorts, closePorts, type PortClaim, type WaitingShell };

/** A shell that can set the guest up before; disposing it ends it. */
export interface SetUpShell extends WaitingShell, Disposable {
  /** Runs the set-up script, once, and returns how it ended. */
  setUp(words: string[], options: RunScriptOptions): Promise<ProcessStatus>;
  /** Lets go of it: its machine ends. */
  close(): void;
}

/** What runs in a guest that is saved: a snapshot has to match it. */
export const WAITING_PROGRAM: readonly string[] = [
  COMMAND_SCRIPT,
  WAITING_SCRIPT,
];

/** A guest's shell reads byte by byte: of more, another is told sooner. */
const MOST_BYTES = 4096;
const READY_MS = 30_000;
/** An exit status, and the shell as the guest agent knows it. */
const SETUP_WORD = /^(\d{1,3}) (\d{1,10})$/;

/**
 * Starts the shell, in a guest that is to be saved.
 *
 * @param monitor The machine.
 * @param signal Gives up when aborted.
 * @returns The shell; `undefined` where no port is left.
 * @throws {ToolsmithError} `guest_failed` when the guest cannot start it.
 */
export async function startWaitingShell(
  monitor: Monitor,
  signal?: AbortSignal,
): Promise<SetUpShell | undefined> {
  const ports = await plugPorts(monitor, { input: true, signal });
  if (!ports) return undefined;
  try {
    const words = [COMMAND_SCRIPT, "sh", ports.name, "yes", WAITING_SCRIPT];
    await startShell(monitor, { ports, words, signal });
    return new Shell(ports);
  } catch (error) {
    ports[Symbol.dispose]();
    throw error;
  }
}

/**
 * Finds the shell in a guest that was restored and runs.
 *
 * @param monitor The machine.
 * @param claim The machine's first ports.
 * @returns The shell, if the guest was saved with one: it has the ports open.
 */
export async function findWaitingShell(
  monitor: Monitor,
  claim: PortClaim,
): Promise<SetUpShell | undefined> {
  const [devices] = await monitor.qemu([["query-chardev"]]);
  const isOpen = (devices as CharacterDevice[]).some((device) =>
    device.label === portFile(FIRST_PORTS, "err") && device["frontend-open"]
  );
  if (isOpen) return new Shell(ownPorts(monitor, claim));
  await returnFirstPorts(monitor.dir, claim);
}

/** As QEMU tells of one (QEMU's QMP reference, ChardevInfo). */
interface CharacterDevice {
  label: string;
  "frontend-open": boolean;
}

class Shell implements SetUpShell {
  /** Its ports, until it has become a command. */
  #ports: Ports | undefined;
  readonly #marker = newMarker();
  #pid: number | undefined;

  constructor(ports: Ports) {
    this.#ports = ports;
  }

  async setUp(
    words: string[],
    options: RunScriptOptions,
  ): Promise<ProcessStatus> {
    try {
      return await this.#setUp(this.#ports!, words, options);
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  async become(
    { words, input, signal }: WaitingCommand,
  ): Promise<Channel | undefined> {
    const lines = linesOf([input ? "yes" : "no", ...words]);
    const ports = this.#ports;
    if (!ports || lines.length > MOST_BYTES) return undefined;
    this.#ports = undefined;
    try {
      if (this.#pid === undefined) {
        const late = () => new VmDisconnectedError();
        const how = { timeoutMs: READY_MS, late, signal };
        await this.#setUp(ports, [], how);
      }
      await abortable(writeAll(ports.err, lines), signal);
      if (!input) await abortable(sendLine(ports.in!, "0"), signal);
      return { ...ports, pid: this.#pid!, marker: this.#marker };
    } catch (error) {
      ports[Symbol.dispose]();
      throw error;
    }
  }

  async #setUp(
    { err }: Ports,
    words: string[],
    { timeoutMs, late, signal }: RunScriptOptions,
  ): Promise<ProcessStatus> {
    await abortable(writeAll(err, linesOf(words, this.#marker)), signal);
    const said = receive(err, this.#marker);
    if (!await settlesWithin(said.done, timeoutMs, { signal })) throw late();
    await said.done;
    const [, code, pid] = SETUP_WORD.exec(said.word()!) ?? [];
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

/** What the script reads: a line with the count of the words, and one for each. */
function linesOf(words: string[], ...before: string[]): Uint8Array {
  const lines = [...before, `${words.length}`, ...words.map(printable)];
  return new TextEncoder().encode(lines.map((line) => `${line}\n`).join(""));
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
