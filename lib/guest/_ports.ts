/**
 * The virtio-serial ports of a command: there from the machine's start for the
 * first, plugged in for each other, and unplugged after it, or by another process
 * if the one that had them was killed.
 *
 * @module
 */
import { join } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import { ENDS, portId, STREAM_BUS, STREAM_PORTS } from "../qemu/devices.ts";
import {
  FIRST_PORTS,
  portFile,
  portName,
  portNameOf,
} from "../qemu/machine_dir.ts";
import { connectToMachine } from "../qemu/errors.ts";
import type { Monitor } from "../qemu/monitor.ts";
import type { Command } from "../qemu/qmp.ts";
import { lock, tryLock } from "../system/lock.ts";
import { abortable, sleep } from "../system/time.ts";

/** What {@linkcode plugPorts} takes. */
export interface PlugPortsOptions {
  /** Has the command input? */
  input: boolean;
  /** Ends the wait for QEMU when aborted. */
  signal?: AbortSignal;
}

/** Ports that are plugged in, and connections to them. Disposing unplugs them. */
export interface Ports extends Disposable {
  /** Lets go of them as they are: their machine ends. */
  close(): void;
  /** Their name in the guest; `.out`, `.err` and `.in` come after it. */
  name: string;
  /** Standard output. */
  out: Deno.UnixConn;
  /** Standard error; takes names of signals. */
  err: Deno.UnixConn;
  /** Standard input, if the command has any. */
  in?: Deno.UnixConn;
  /** Takes no more input; a write that hangs ends when QEMU hangs up. */
  endInput(writing: Promise<void> | undefined): void;
}

/** QEMU's words when a bus has no port left. */
const FULL = /max\. allowed|port limit|maximum/i;
const BUSY = / is busy$/;
const LONGEST_PAUSE_MS = 256;

/**
 * Plugs the ports of one command in. While they are there, a lock says that
 * their owner lives.
 *
 * The caller has {@linkcode Monitor.exclusive}.
 *
 * @param monitor The machine.
 * @param options Which ports.
 * @returns The ports, or `undefined` if the machine has no more.
 * @throws {ToolsmithError} `guest_failed` when QEMU refuses for another reason.
 * @throws The signal's reason when it is aborted.
 */
export async function plugPorts(
  monitor: Monitor,
  { input, signal }: PlugPortsOptions,
): Promise<Ports | undefined> {
  const { dir } = monitor;
  const ends = input ? ENDS : ENDS.slice(0, 2);
  const { sockets, unclaimed } = await findPorts(dir);
  // To plug only some in, and unplug them again, would hold up the others.
  if (!unclaimed && sockets + ends.length > STREAM_PORTS) return undefined;
  const name = unclaimed ? FIRST_PORTS : portName();
  const claim = await claimPorts(dir, name, signal);
  try {
    const commands = ends.flatMap((end) => plugging(dir, portFile(name, end)));
    if (!unclaimed) await monitor.qemu(commands, signal);
    await connect(dir, claim, ends);
    return ownPorts(monitor, claim);
  } catch (error) {
    dispose(monitor, claim);
    // Only QEMU has been asked for something: these are not the guest's words.
    if (error instanceof ToolsmithError && FULL.test(error.message)) return;
    throw error;
  }
}

/** Ports that this process has, and its connections to them. */
export interface PortClaim {
  /** Their name. */
  name: string;
  /** The lock that says so. */
  owned: Disposable;
  /** Connections to their ends, in order. */
  connections: Deno.UnixConn[];
  /** What still writes to the last of them. */
  writing?: Promise<void>;
}

/**
 * Connects to the ports that a machine has from its start: before it is restored,
 * or its guest would see that nobody was there.
 *
 * @param dir The machine's directory.
 * @returns The ports.
 */
export async function claimFirstPorts(dir: string): Promise<PortClaim> {
  const claim = await claimPorts(dir, FIRST_PORTS);
  try {
    await connect(dir, claim, ENDS);
    return claim;
  } catch (error) {
    closePorts(claim);
    throw error;
  }
}

/** Lets go of ports as they are. */
export function closePorts({ connections, owned }: PortClaim): void {
  connections.forEach(closeQuietly);
  owned[Symbol.dispose]();
}

async function claimPorts(
  dir: string,
  name: string,
  signal?: AbortSignal,
): Promise<PortClaim> {
  const owned = await lock(join(dir, portFile(name, "lock")), { signal });
  return { name, owned, connections: [] };
}

async function connect(
  dir: string,
  { name, connections }: PortClaim,
  ends: readonly (typeof ENDS[number])[],
) {
  for (const end of ends) {
    const path = join(dir, portFile(name, end));
    connections.push(await connectToMachine(path));
  }
}

/**
 * Makes ports of those that this process has.
 *
 * @param monitor The machine.
 * @param claim The ports.
 * @returns The ports; disposing them unplugs them.
 */
export function ownPorts(monitor: Monitor, claim: PortClaim): Ports {
  const [out, err, stdin] = claim.connections;
  return {
    name: claim.name,
    out,
    err,
    in: stdin,
    endInput(pending) {
      if (stdin) closeQuietly(stdin);
      claim.writing = pending;
    },
    close: () => closePorts(claim),
    [Symbol.dispose]: () => dispose(monitor, claim),
  };
}

function dispose(monitor: Monitor, claim: PortClaim) {
  claim.connections.forEach(closeQuietly);
  monitor.runInBackground(async (signal) => {
    using _owned = claim.owned;
    await unplug(monitor, claim.name, signal);
    // Older versions of Deno only give up a write when QEMU hangs up.
    if (claim.writing) await abortable(claim.writing, signal);
  });
}

/**
 * Unplugs the ports of owners that are gone: a process that is killed leaves its
 * ports plugged in, and shells in the guest that wait for them.
 *
 * The caller has {@linkcode Monitor.exclusive}.
 *
 * @param monitor The machine.
 * @param signal Ends the wait for QEMU when aborted.
 * @throws The signal's reason when it is aborted.
 */
export async function unplugAbandoned(
  monitor: Monitor,
  signal?: AbortSignal,
): Promise<void> {
  const { names } = await findPorts(monitor.dir);
  for (const name of names) {
    using orphan = await tryLock(join(monitor.dir, portFile(name, "lock")));
    if (orphan) await unplug(monitor, name, signal);
  }
}

/**
 * All ports of the machine, by their files: whose they are, how many, and whether
 * those that it has from its start wait for a command yet: they have no lock then.
 */
async function findPorts(dir: string) {
  const names = new Set<string>();
  const locked = new Set<string>();
  let sockets = 0;
  for await (const file of Deno.readDir(dir)) {
    const name = portNameOf(file.name);
    if (!name) continue;
    names.add(name);
    if (file.name === portFile(name, "lock")) locked.add(name);
    else sockets++;
  }
  const unclaimed = names.has(FIRST_PORTS) && !locked.has(FIRST_PORTS);
  if (unclaimed) names.delete(FIRST_PORTS);
  return { names, sockets, unclaimed };
}

function plugging(dir: string, id: string): Command[] {
  const addr = { type: "unix", data: { path: join(dir, id) } };
  const data = { addr, server: true, wait: false };
  return [
    ["chardev-add", { id, backend: { type: "socket", data } }],
    ["device_add", {
      driver: "virtserialport",
      bus: `${STREAM_BUS}.0`,
      id: portId(id),
      chardev: id,
      name: id,
    }],
  ];
}

/** The files are what others find the ports by: they go last. */
async function unplug(monitor: Monitor, name: string, signal?: AbortSignal) {
  const ids = ENDS.map((end) => portFile(name, end));
  const devices = ids.map((id): Command => ["device_del", {
    id: portId(id),
  }]);
  await refusal(monitor, devices, signal);
  for (const id of ids) {
    // QEMU lets go of a device somewhat later than it says so.
    for (let pause = 1; pause <= LONGEST_PAUSE_MS; pause *= 2) {
      const why = await refusal(monitor, [["chardev-remove", { id }]], signal);
      if (!BUSY.test(why)) break;
      await sleep(pause, signal);
    }
  }
  for (const end of [...ENDS, "lock"] as const) {
    await Deno.remove(join(monitor.dir, portFile(name, end))).catch(() => {});
  }
}

/** QEMU refuses what was not plugged in, or went with the machine. */
async function refusal(
  monitor: Monitor,
  commands: Command[],
  signal?: AbortSignal,
): Promise<string> {
  try {
    await monitor.qemu(commands, signal);
    return "";
  } catch (error) {
    signal?.throwIfAborted();
    return (error as Error).message;
  }
}

function closeQuietly(connection: Deno.UnixConn) {
  try {
    connection.close();
  } catch {
    // It was closed before.
  }
}
