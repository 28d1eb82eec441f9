/**
 * Ids of a machine's devices. QEMU's command line makes them, and QMP commands
 * find them again.
 *
 * @module
 */

/** The drive of the disk. */
export const DISK = "disk";

/** The guest's memory, where it is in a file. */
export const MEMORY = "memory";

/** The drive of the seed. */
export const SEED = "seed";

/** The guest agent's port; the socket behind it has the same id. */
export const AGENT = "agent";

/** The bus that the ports of commands are plugged into. */
export const STREAM_BUS = "streams";

/** The ends of a command's ports. */
export const ENDS = ["out", "err", "in"] as const;

/**
 * How many ports it has room for, besides the one that QEMU keeps for a console;
 * part of what a snapshot has to match, too.
 */
export const STREAM_PORTS = 30;

/**
 * How many slots there are to plug devices into while the machine runs: for the
 * workspace, exports, and a network card. The same for each machine, as it is
 * part of what a snapshot has to match.
 */
export const SLOTS = 8;

/**
 * Serial ports for terminals: COM2 and up, with interrupts that no other device
 * has, as the ISA bus cannot share them. The console is COM1.
 */
export const TERMINAL_IRQS = [3, 5, 7];

/** The slot of the network card; those before it are for directories. */
export const NETWORK_SLOT = SLOTS - 1;

/**
 * The id of a slot.
 *
 * @param index From 0.
 */
export function slotId(index: number): string {
  return `slot${index}`;
}

/**
 * The id of a terminal's serial port; the socket behind it has the same id.
 *
 * @param index From 0.
 */
export function terminalId(index: number): string {
  return `terminal${index}`;
}

/**
 * The device of a terminal in the guest: Linux has COM1 as `ttyS0`.
 *
 * @param index From 0.
 */
export function terminalDevice(index: number): string {
  return `/dev/ttyS${index + 1}`;
}

/**
 * The id of a directory of the host that QEMU has opened.
 *
 * @param index Its place among the shares, from 0.
 */
export function shareId(index: number): string {
  return `share${index}`;
}

/**
 * The id of the device that shows a directory to the guest.
 *
 * @param index Its place among the shares, from 0.
 */
export function directoryId(index: number): string {
  return `directory${index}`;
}

/**
 * The id of the port that a socket is plugged into.
 *
 * @param socket The id of the socket, which is the port's name in the guest, too.
 */
export function portId(socket: string): string {
  return `port.${socket}`;
}
