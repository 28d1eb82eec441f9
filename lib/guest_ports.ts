/**
 * Virtio-serial ports that are plugged into a machine for a command.
 *
 * @module
 */
import type { Monitor } from "./monitor.ts";
import type { Command } from "./qmp.ts";

/** A port, and its socket on the host. */
export interface Port {
  /** Its name in the guest, and its id. */
  id: string;
  /** The socket. */
  path: string;
}

const PORTS_FULL_PAUSE_MS = 200;

/**
 * Plugs ports in; waits where other commands occupy all there are.
 *
 * @param monitor The machine.
 * @param ports The ports; their sockets are made.
 * @returns What unplugs them again, whatever became of the machine.
 * @throws {ToolsmithError} `guest_failed` when QEMU refuses.
 */
export async function plugPorts(
  monitor: Monitor,
  ports: Port[],
): Promise<{ remove: () => Promise<void> }> {
  const add = ports.flatMap(({ id, path }): Command[] => [
    ["chardev-add", {
      id,
      backend: {
        type: "socket",
        data: {
          addr: { type: "unix", data: { path } },
          server: true,
          wait: false,
        },
      },
    }],
    ["device_add", {
      driver: "virtserialport",
      bus: "streams.0",
      id: `port.${id}`,
      chardev: id,
      name: id,
    }],
  ]);
  const remove = async () => {
    const unplug = ports.flatMap(({ id }): Command[] => [
      ["device_del", { id: `port.${id}` }],
      ["chardev-remove", { id }],
    ]);
    await monitor.qemu(...unplug).catch(() => {});
    for (const { path } of ports) await Deno.remove(path).catch(() => {});
  };
  while (true) {
    try {
      await monitor.qemu(...add);
      return { remove };
    } catch (error) {
      await remove();
      if (!/port limit|No free ports/i.test((error as Error).message)) {
        throw error;
      }
    }
    await new Promise((done) => setTimeout(done, PORTS_FULL_PAUSE_MS));
  }
}
