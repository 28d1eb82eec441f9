/**
 * Ids and limits of a VM's devices, shared by QEMU's command line and QMP commands.
 * Snapshots and guests depend on these values.
 */

export const DISK_ID = "disk";

/** Device and chardev id of the guest agent's virtio-serial port. */
export const AGENT_PORT_ID = "agent";

/** Id of the virtio-serial bus for the ports of commands. */
export const COMMAND_PORT_BUS_ID = "streams";

/** A command's virtio-serial ports: standard output, error and input. */
export const STDIO_PORTS = ["out", "err", "in"] as const;

/** Ports on that bus, besides the one that QEMU reserves for a console. */
export const MAX_COMMAND_PORTS = 30;

/** PCIe slots for hot-plugged devices: workspace, exports and the network card. */
export const HOTPLUG_SLOT_COUNT = 8;

/**
 * Interrupts of the terminals' serial ports, COM2 and up. No other device uses them,
 * as the ISA bus cannot share interrupts. The console is COM1.
 */
export const TERMINAL_IRQS = [3, 5, 7];

/** The last slot is for the network card, those before it for directories. */
export const NETWORK_SLOT = HOTPLUG_SLOT_COUNT - 1;

export const hotplugSlotId = (index: number) => `slot${index}`;

/** Chardev id and socket name of a terminal's serial port. */
export const terminalSerialPortId = (index: number) => `terminal${index}`;

/** Device file of a terminal in the guest: Linux calls COM1 `ttyS0`. */
export const terminalDevicePath = (index: number) => `/dev/ttyS${index + 1}`;

export const shareFsdevId = (index: number) => `share${index}`;

/** Id of the 9p device that shows a shared directory to the guest. */
export const shareDeviceId = (index: number) => `directory${index}`;

/** Device id of the virtio-serial port that is connected to a socket. */
export const portDeviceId = (socket: string) => `port.${socket}`;
