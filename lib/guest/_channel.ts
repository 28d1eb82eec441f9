/**
 * The channel of a command: virtio-serial ports that are plugged in for it, and
 * the shell in the guest that joins them to the command's streams.
 *
 * @module
 */
import { join } from "@std/path";
import { ToolsmithError } from "../errors.ts";
import { COMMAND_SCRIPT, START_SCRIPT } from "./_scripts.ts";
import { send } from "./_streams.ts";
import { STREAM_BUS } from "../qemu/devices.ts";
import { portName } from "../qemu/machine_dir.ts";
import type { Monitor } from "../qemu/monitor.ts";
import type { Command } from "../qemu/qmp.ts";
import { VmDisconnectedError } from "../qemu/errors.ts";

/** What {@linkcode openChannel} takes. */
export interface ChannelOptions {
  /** Arguments of the start script: directory, environment, command. */
  words: string[];
  /** Has the command input? */
  input: boolean;
  /** What ends each stream. */
  marker: string;
}

/** The ports of a command that has been started. */
export interface Channel extends Disposable {
  /** The shell around the command, as the guest agent knows it. */
  pid: number;
  /** Standard output. */
  out: Deno.UnixConn;
  /** Standard error; takes names of signals. */
  err: Deno.UnixConn;
  /** Standard input, if the command has any. */
  in?: Deno.UnixConn;
  /** Takes no more input; what is still being written ends by and by. */
  endInput(writing: Promise<void> | undefined): void;
}

const SHELL = "/bin/sh";
/** What the shell says when it has opened the ports. */
const GREETING = "ready\n";
const GREETING_MS = 30_000;
const LOOK_MS = 500;
const DRAIN_MS = 3_000;
const FULL_PAUSE_MS = 100;
const FULL = /max\. allowed|port limit|maximum/i;

/**
 * Plugs ports in and starts the command. Machines have ports for ten commands
 * at once or more; another waits until one of them has ended.
 *
 * @param monitor The machine.
 * @param options The command.
 * @returns Its channel; disposing it unplugs the ports.
 * @throws {ToolsmithError} `guest_failed` when the guest cannot start it.
 */
export async function openChannel(
  monitor: Monitor,
  options: ChannelOptions,
): Promise<Channel> {
  while (true) {
    try {
      // One after the other: QEMU drops what it tells a guest about its ports
      // when the guest is too slow for many at once.
      return await monitor.exclusive(() => tryOpen(monitor, options));
    } catch (error) {
      if (!FULL.test((error as Error).message)) throw error;
    }
    await new Promise((done) => setTimeout(done, FULL_PAUSE_MS));
  }
}

interface Port {
  id: string;
  path: string;
}

async function tryOpen(
  monitor: Monitor,
  { words, input, marker }: ChannelOptions,
): Promise<Channel> {
  const name = portName();
  const ports = (input ? ["out", "err", "in"] : ["out", "err"]).map((end) => ({
    id: `${name}.${end}`,
    path: join(monitor.dir, `${name}.${end}`),
  }));
  const connections: Deno.UnixConn[] = [];
  try {
    await monitor.qemu(...ports.flatMap(plugging));
    for (const { path } of ports) {
      connections.push(await Deno.connect({ transport: "unix", path }));
    }
    const [out, err, stdin] = connections;
    const script = [COMMAND_SCRIPT, "sh", name, input ? "yes" : "no"];
    const { pid } = await monitor.agent(["guest-exec", {
      path: SHELL,
      arg: ["-c", ...script, START_SCRIPT, ...words],
    }]) as { pid: number };
    await send(err, `${marker}\n`);
    await greeted(monitor, pid, err);
    let writing: Promise<void> | undefined;
    return {
      ...{ pid, out, err, in: stdin },
      endInput(pending) {
        closeQuietly(stdin);
        writing = pending;
      },
      [Symbol.dispose]() {
        connections.forEach(closeQuietly);
        monitor.runInBackground(async () => {
          await unplug(monitor, ports);
          // Older versions of Deno only give up a write when QEMU hangs up.
          await writing;
        });
      },
    };
  } catch (error) {
    connections.forEach(closeQuietly);
    await unplug(monitor, ports);
    throw error;
  }
}

/** Waits for the greeting, as long as the shell lives. */
async function greeted(monitor: Monitor, pid: number, port: Deno.UnixConn) {
  let over = false;
  const word = readWord(port).finally(() => over = true);
  word.catch(() => {});
  const orAfter = async (ms: number) => {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const pause = new Promise((done) => timer = setTimeout(done, ms));
    await Promise.race([word, pause]).finally(() => clearTimeout(timer));
  };
  const deadline = Date.now() + GREETING_MS;
  let status: { exited: boolean; exitcode?: number } = { exited: false };
  while (!over) {
    await orAfter(LOOK_MS);
    if (over) break;
    if (status.exited || Date.now() > deadline) throw noPorts(status.exitcode);
    status = await monitor.agent(["guest-exec-status", {
      pid,
    }]) as typeof status;
    // A quick command may have ended before its greeting was read here.
    if (status.exited) await orAfter(DRAIN_MS);
  }
  if (await word !== GREETING) throw noPorts();
}

/** Reads just as many bytes as the greeting has. */
async function readWord(port: Deno.UnixConn): Promise<string> {
  let text = "";
  while (text.length < GREETING.length) {
    const rest = new Uint8Array(GREETING.length - text.length);
    const count = await port.read(rest).catch(() => null);
    if (count === null) throw new VmDisconnectedError();
    text += new TextDecoder().decode(rest.subarray(0, count));
  }
  return text;
}

function noPorts(status?: number): ToolsmithError {
  const how = status === undefined ? "" : `: its shell ended with ${status}`;
  return new ToolsmithError(
    "guest_failed",
    `The guest does not open the ports of a command${how}`,
    { hint: "its kernel needs virtio_console, and /dev and /sys mounted" },
  );
}

function plugging({ id, path }: Port): Command[] {
  const addr = { type: "unix", data: { path } };
  const data = { addr, server: true, wait: false };
  return [
    ["chardev-add", { id, backend: { type: "socket", data } }],
    ["device_add", {
      driver: "virtserialport",
      bus: `${STREAM_BUS}.0`,
      id: `port.${id}`,
      chardev: id,
      name: id,
    }],
  ];
}

function closeQuietly(connection: Deno.UnixConn | undefined) {
  try {
    connection?.close();
  } catch {
    // It was closed before.
  }
}

async function unplug(monitor: Monitor, ports: Port[]) {
  const commands = ports.flatMap(({ id }): Command[] => [
    ["device_del", { id: `port.${id}` }],
    ["chardev-remove", { id }],
  ]);
  // What was not plugged in, or went with the machine, need not be told.
  await monitor.qemu(...commands).catch(() => {});
  for (const { path } of ports) await Deno.remove(path).catch(() => {});
}
