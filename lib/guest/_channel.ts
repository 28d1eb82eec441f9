/**
 * The channel of a command: ports of the machine, and the shell in the guest
 * that joins them to the command's streams.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { VmDisconnectedError } from "../qemu/errors.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { abortable, settlesWithin, sleep } from "../system/time.ts";
import { type ProcessStatus, readPid, readStatus } from "./_answers.ts";
import { plugPorts, type Ports, unplugAbandoned } from "./_ports.ts";
import {
  COMMAND_SCRIPT,
  LEADER_SCRIPT,
  START_SCRIPT,
  TERMINAL_SCRIPT,
} from "./_scripts.ts";
import { sendLine } from "./_streams.ts";

/** What {@linkcode openChannel} takes. */
export interface ChannelOptions {
  /** Arguments of the start script: directory, environment, command. */
  words: string[];
  /** The command runs on this terminal. @default {undefined} on none */
  terminal?: TerminalLine;
  /** Has the command input? */
  input: boolean;
  /** A shell that waits for a command. @default {undefined} there is none */
  waiting?: WaitingShell;
  /** Called once if the machine has no free port for a while. */
  onWait?: () => void;
  /** Gives up when aborted. */
  signal?: AbortSignal;
  /** Time for the guest to open the ports, in milliseconds. @default {30_000} */
  greetingMs?: number;
}

/** A terminal of the guest. */
export interface TerminalLine extends TerminalSize {
  /** Its device. */
  device: string;
}

/** How much a terminal shows. */
export interface TerminalSize {
  /** Its height, in lines. */
  rows: number;
  /** Its width, in characters. */
  columns: number;
}

/** A command that has been started, and the ports of its streams. */
export interface Channel extends Ports {
  /** The shell around the command, as the guest agent knows it. */
  pid: number;
  /** What ends each stream. */
  marker: string;
}

/** A shell in the guest that becomes the first command which is small enough. */
export interface WaitingShell {
  /**
   * Starts a command, if it is the first.
   *
   * @returns Its channel.
   */
  become(command: WaitingCommand): Promise<Channel | undefined>;
}

/** What {@linkcode WaitingShell.become} takes. */
export type WaitingCommand = Pick<
  ChannelOptions,
  "words" | "input" | "signal"
>;

const SHELL = "/bin/sh";
/** What the shell says when it has opened the ports. */
const GREETING = "ready\n";
const GREETING_MS = 30_000;
const LOOK_MS = 500;
const DRAIN_MS = 3_000;
const FULL_PAUSE_MS = 100;
const ANNOUNCE_MS = 2_000;
/** Owners may die while others wait: so often is that looked at. */
const TRIES_PER_SWEEP = 20;

/**
 * Starts the command, by the shell that waits or on ports that are plugged in.
 * Machines have ports for ten commands at once or more; another waits until one of
 * them has ended.
 *
 * @param monitor The machine.
 * @param options The command.
 * @returns Its channel; disposing it unplugs the ports.
 * @throws {ToolsmithError} `guest_failed` when the guest cannot start it.
 * @throws The signal's reason when it is aborted.
 */
export async function openChannel(
  monitor: Monitor,
  options: ChannelOptions,
): Promise<Channel> {
  const { signal, onWait, waiting, terminal } = options;
  const started = terminal ? undefined : await waiting?.become(options);
  if (started) return started;
  const begun = performance.now();
  let announced = false;
  for (let tries = 0;; tries++) {
    // One after the other: QEMU drops what it reports to a guest about its
    // ports when the guest is too slow for many at once.
    const channel = await monitor.exclusive(async () => {
      if (tries % TRIES_PER_SWEEP === 0) await unplugAbandoned(monitor, signal);
      return await tryOpen(monitor, options);
    }, signal);
    if (channel) return channel;
    if (!announced && performance.now() - begun > ANNOUNCE_MS) {
      announced = true;
      onWait?.();
    }
    await sleep(FULL_PAUSE_MS, signal);
  }
}

async function tryOpen(
  monitor: Monitor,
  options: ChannelOptions,
): Promise<Channel | undefined> {
  const { input, signal } = options;
  const ports = await plugPorts(monitor, { input, signal });
  if (!ports) return undefined;
  try {
    const marker = newMarker();
    await abortable(sendLine(ports.err, marker), signal);
    const words = scriptWords(ports.name, options);
    const pid = await startShell(monitor, { ...options, ports, words });
    return { ...ports, pid, marker };
  } catch (error) {
    ports[Symbol.dispose]();
    throw error;
  }
}

/** Makes what no output has by chance, and no program can know. */
export function newMarker(): string {
  return crypto.randomUUID().replaceAll("-", "");
}

/** What {@linkcode startShell} takes. */
export interface StartShellOptions
  extends Pick<ChannelOptions, "signal" | "greetingMs"> {
  /** The ports of its streams. */
  ports: Ports;
  /** The script, `$0`, and its arguments. */
  words: string[];
}

/**
 * Starts a shell in the guest, and waits until it has opened its ports.
 *
 * @param monitor The machine.
 * @param options The shell.
 * @returns The shell, as the guest agent knows it.
 * @throws {ToolsmithError} `guest_failed` when the guest cannot do that.
 * @throws The signal's reason when it is aborted.
 */
export async function startShell(
  monitor: Monitor,
  options: StartShellOptions,
): Promise<number> {
  const { words, signal } = options;
  const command = { path: SHELL, arg: ["-c", ...words] };
  const pid = readPid(await monitor.agent(["guest-exec", command], signal));
  await greeted(monitor, pid, options);
  return pid;
}

function scriptWords(name: string, options: ChannelOptions): string[] {
  const { words, input, terminal } = options;
  const start = [START_SCRIPT, ...words];
  if (!terminal) {
    return [COMMAND_SCRIPT, "sh", name, input ? "yes" : "no", ...start];
  }
  const { device, rows, columns } = terminal;
  const line = [device, `${rows}`, `${columns}`];
  return [TERMINAL_SCRIPT, "sh", name, ...line, LEADER_SCRIPT, ...start];
}

/**
 * Waits for a shell's greeting, as long as it lives.
 *
 * @param monitor The machine.
 * @param pid The shell, as the guest agent knows it.
 * @param options Its ports.
 * @throws {ToolsmithError} `guest_failed` when it does not greet.
 * @throws The signal's reason when it is aborted.
 */
export async function greeted(
  monitor: Monitor,
  pid: number,
  { ports, signal, greetingMs = GREETING_MS }: Omit<StartShellOptions, "words">,
): Promise<void> {
  const deadline = performance.now() + greetingMs;
  const greeting = readGreeting(ports.err);
  const arrives = (ms: number) => settlesWithin(greeting, ms, { signal });
  let status: ProcessStatus | undefined;
  // A quick command may have ended before its greeting was read here.
  while (!await arrives(status?.exited ? DRAIN_MS : LOOK_MS)) {
    if (status?.exited) throw noPorts(status);
    if (performance.now() > deadline) throw noPorts();
    const answer = await monitor.agent(["guest-exec-status", { pid }], signal);
    status = readStatus(answer);
  }
  if (await greeting !== GREETING) throw noPorts();
}

/** Reads just as many bytes as the greeting has. */
async function readGreeting(port: Deno.UnixConn): Promise<string> {
  let text = "";
  while (text.length < GREETING.length) {
    const rest = new Uint8Array(GREETING.length - text.length);
    const count = await port.read(rest).catch(() => null);
    if (count === null) throw new VmDisconnectedError();
    text += new TextDecoder("latin1").decode(rest.subarray(0, count));
  }
  return text;
}

function noPorts(status?: ProcessStatus): ToolsmithError {
  const how = status?.exitCode === undefined
    ? ""
    : `: its shell ended with ${status.exitCode}`;
  return new ToolsmithError(
    "guest_failed",
    `The guest does not open the ports of a command${how}`,
    { hint: "its kernel needs virtio_console, and /dev and /sys mounted" },
  );
}
