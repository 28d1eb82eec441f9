/**
 * The virtio-serial ports of a command. The first command uses the ports present
 * at boot; each other command hot-plugs its own. Ports are unplugged after the
 * command, or by another process if their owner was killed.
 */
import { join } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import {
  COMMAND_PORT_BUS_ID,
  MAX_COMMAND_PORTS,
  portDeviceId,
  STDIO_PORTS,
} from "../qemu/device_ids.ts";
import {
  FIRST_COMMAND_PORT_NAME,
  newPortName,
  portFileName,
  portNameOfFile,
} from "../qemu/vm_dir.ts";
import { connectToVmSocket, VmDisconnectedError } from "../qemu/errors.ts";
import type { Monitor } from "../qemu/monitor.ts";
import type { QmpCommand } from "../qemu/qmp.ts";
import { orIfNotFound } from "../system/files.ts";
import { acquireFileLock, tryFileLock } from "../system/lock.ts";
import { sleep } from "../system/time.ts";
import { sendLine } from "./_command_stdin.ts";

/** QEMU's error messages for a bus without a free port. */
const NO_FREE_PORT_PATTERN = /max\. allowed|port limit|maximum/i;
const CHARDEV_BUSY_PATTERN = / is busy$/;
const MAX_BUSY_RETRY_PAUSE_MS = 256;

/**
 * The ports that this process owns, and its connections to them. A held lock
 * shows other processes that the owner is alive. Disposing closes the connections
 * and unplugs the ports in the background.
 */
export class CommandPorts implements Disposable {
  /** Ends each output stream; unguessable, so that output cannot contain it. */
  readonly endMarker = crypto.randomUUID().replaceAll("-", "");
  /** The guest agent's process id for the shell around the command. */
  shellPid: number | undefined;
  /** Unplugs the ports. @default {undefined} they are only disconnected */
  monitor: Monitor | undefined;
  stdout!: Deno.UnixConn;
  /** Carries stderr to the host, and signal names to the guest. */
  stderr!: Deno.UnixConn;
  /** `undefined` for a command without standard input. */
  stdin: Deno.UnixConn | undefined;
  readonly #connections: Deno.UnixConn[] = [];

  private constructor(
    private readonly vmDir: string,
    /** Port name in the guest, without its suffix `.out`, `.err` or `.in`. */
    readonly baseName: string,
    private readonly ownerLock: Disposable,
  ) {}

  static async claim(dir: string, name: string, signal?: AbortSignal) {
    const lockPath = join(dir, portFileName(name, "lock"));
    const ownerLock = await acquireFileLock(lockPath, { signal });
    return new CommandPorts(dir, name, ownerLock);
  }

  async connect(ends: readonly (typeof STDIO_PORTS[number])[]): Promise<void> {
    for (const end of ends) {
      const path = join(this.vmDir, portFileName(this.baseName, end));
      const connection = await orIfNotFound(connectToVmSocket(path));
      // QEMU removes its sockets when it ends.
      if (!connection) throw new VmDisconnectedError();
      this.#connections.push(connection);
    }
    [this.stdout, this.stderr, this.stdin] = this.#connections;
  }

  /** Sends a signal's name or a terminal's size to a guest that may be gone. */
  tellGuest(line: string): void {
    sendLine(this.stderr, line).catch(() => {});
  }

  [Symbol.dispose](): void {
    const { monitor, baseName, ownerLock } = this;
    this.#connections.forEach(closeQuietly);
    if (!monitor) return ownerLock[Symbol.dispose]();
    monitor.runInBackground(
      (signal) => unplugPorts(monitor, baseName, signal),
      ownerLock,
    );
  }
}

/**
 * Hot-plugs the ports of one command, or takes the unused boot ports; `undefined` if
 * the VM has no free port. The caller holds {@linkcode Monitor.runExclusively}.
 */
export async function acquireCommandPorts(
  monitor: Monitor,
  { hasStdin, signal }: { hasStdin: boolean; signal?: AbortSignal },
): Promise<CommandPorts | undefined> {
  const { dir } = monitor;
  const ends = hasStdin ? STDIO_PORTS : STDIO_PORTS.slice(0, 2);
  const { sockets, unclaimed } = await scanPortFiles(dir);
  // Plugging only some of the ports would delay other commands.
  if (!unclaimed && sockets + ends.length > MAX_COMMAND_PORTS) return undefined;
  const name = unclaimed ? FIRST_COMMAND_PORT_NAME : newPortName();
  using undo = new DisposableStack();
  const ports = undo.use(await CommandPorts.claim(dir, name, signal));
  ports.monitor = monitor;
  try {
    const ids = ends.map((end) => portFileName(name, end));
    const commands = ids.flatMap((id) => qmpCommandsToPlug(dir, id));
    if (!unclaimed) await monitor.qemu(commands, signal);
    await ports.connect(ends);
  } catch (error) {
    // The message is QEMU's: the guest has not been asked yet.
    const isFull = error instanceof ToolsmithError &&
      NO_FREE_PORT_PATTERN.test(error.message);
    if (isFull) return undefined;
    throw error;
  }
  undo.move();
  return ports;
}

/**
 * Connects to the ports present at boot. Must happen before the VM is restored, or
 * the guest sees closed ports.
 */
export async function connectFirstCommandPorts(dir: string) {
  using undo = new DisposableStack();
  const ports = undo.use(
    await CommandPorts.claim(dir, FIRST_COMMAND_PORT_NAME),
  );
  await ports.connect(STDIO_PORTS);
  undo.move();
  return ports;
}

/**
 * Unplugs the ports of processes that were killed: these leave ports plugged in and
 * guest shells waiting. The caller holds {@linkcode Monitor.runExclusively}.
 */
export async function unplugOrphanedPorts(
  monitor: Monitor,
  signal?: AbortSignal,
): Promise<void> {
  const { names } = await scanPortFiles(monitor.dir);
  for (const name of names) {
    const lockPath = join(monitor.dir, portFileName(name, "lock"));
    using orphan = await tryFileLock(lockPath);
    if (orphan) await unplugPorts(monitor, name, signal);
  }
}

/**
 * Lists the VM's ports by their files. `unclaimed`: no command has used the boot
 * ports yet, so they have no lock file.
 */
async function scanPortFiles(dir: string) {
  const names = new Set<string>();
  const locked = new Set<string>();
  let sockets = 0;
  for await (const file of Deno.readDir(dir)) {
    const name = portNameOfFile(file.name);
    if (!name) continue;
    names.add(name);
    if (file.name === portFileName(name, "lock")) locked.add(name);
    else sockets++;
  }
  const unclaimed = names.has(FIRST_COMMAND_PORT_NAME) &&
    !locked.has(FIRST_COMMAND_PORT_NAME);
  if (unclaimed) names.delete(FIRST_COMMAND_PORT_NAME);
  return { names, sockets, unclaimed };
}

function qmpCommandsToPlug(dir: string, id: string): QmpCommand[] {
  const addr = { type: "unix", data: { path: join(dir, id) } };
  const data = { addr, server: true, wait: false };
  const bus = `${COMMAND_PORT_BUS_ID}.0`;
  const port = { driver: "virtserialport", bus, id: portDeviceId(id) };
  return [
    ["chardev-add", { id, backend: { type: "socket", data } }],
    ["device_add", { ...port, chardev: id, name: id }],
  ];
}

/** Removes the files last: other processes find the ports by them. */
async function unplugPorts(
  monitor: Monitor,
  name: string,
  signal?: AbortSignal,
) {
  /** QEMU's error, or "": it refuses to unplug what is not plugged. */
  const refusal = (commands: QmpCommand[]) =>
    monitor.qemu(commands, signal).then(() => "", (error: Error) => {
      signal?.throwIfAborted();
      return error.message;
    });
  const ids = STDIO_PORTS.map((end) => portFileName(name, end));
  await refusal(ids.map((id) => ["device_del", { id: portDeviceId(id) }]));
  for (const id of ids) {
    // QEMU releases the device some time after device_del returns.
    for (let pause = 1; pause <= MAX_BUSY_RETRY_PAUSE_MS; pause *= 2) {
      const message = await refusal([["chardev-remove", { id }]]);
      if (!CHARDEV_BUSY_PATTERN.test(message)) break;
      await sleep(pause, signal);
    }
  }
  for (const file of [...ids, portFileName(name, "lock")]) {
    await Deno.remove(join(monitor.dir, file)).catch(() => {});
  }
}

export function closeQuietly(connection: Deno.UnixConn) {
  try {
    connection.close();
  } catch {
    // Already closed.
  }
}
