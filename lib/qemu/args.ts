/** QEMU's command line. Nothing here starts QEMU. */
import { join } from "../path.ts";
import {
  AGENT_PORT_ID,
  COMMAND_PORT_BUS_ID,
  DISK_ID,
  HOTPLUG_SLOT_COUNT,
  hotplugSlotId,
  MAX_COMMAND_PORTS,
  portDeviceId,
  shareDeviceId,
  shareFsdevId,
  STDIO_PORTS,
  TERMINAL_IRQS,
  terminalSerialPortId,
} from "./device_ids.ts";
import type { ImageArch } from "../image/boot_loader.ts";
import type { Firmware } from "./firmware.ts";
import { FIRST_COMMAND_PORT_NAME, portFileName, VM_FILES } from "./vm_dir.ts";

/** How QEMU runs the guest: with KVM or HVF, or by emulation (TCG). */
export type Accelerator = "kvm" | "hvf" | "tcg";

/** A host directory shared with the guest. */
export interface GuestShare {
  /** Absolute path on the host. */
  path: string;
  /** Mount tag: the guest mounts the directory at `/mnt/<tag>`. */
  tag: string;
  /** Can the guest write to the directory? */
  writable: boolean;
  /** Does the guest have a copy because it cannot mount 9p? @default {false} */
  copied?: boolean;
}

export interface QemuOptions {
  arch?: ImageArch;
  /** Firmware that starts the boot loader. @default {undefined} QEMU's own BIOS */
  firmware?: Firmware;
  /** Absolute path of the QCOW2 disk. */
  disk: string;
  /** Discard the guest's writes to the disk. */
  ephemeral: boolean;
  /** Skip disk flushes: writes may be lost if the host crashes. @default {false} */
  skipFlushes?: boolean;
  /** Content of the cloud-init seed disk. @default {undefined} none */
  seed?: Uint8Array;
  /** Absolute path of the VM's directory, for sockets. */
  dir: string;
  accelerator: Accelerator;
  /** Memory, in MiB. */
  memory: number;
  cpus: number;
  /**
   * File mapped as the guest's memory; QEMU grows an empty one. Unless it keeps the
   * guest's writes, they are copy-on-write, and any number of guests share the rest.
   *
   * @default {undefined} anonymous memory
   */
  memoryFile?: { path: string; keepsWrites: boolean };
  /** Host directories to share, at boot or by hot-plug. */
  shares: GuestShare[];
  extra: string[];
  hostOs?: typeof Deno.build.os;
}

/** The guest agent looks for a virtio-serial port of this name. */
const AGENT_PORT_NAME = "org.qemu.guest_agent.0";
const SANDBOX_RULES =
  "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/**
 * Builds QEMU's arguments. The guest is paused at its first instruction until QMP's
 * `cont`. Devices that differ between runs of one image (exports, network card, ports
 * of later commands) are hot-plugged.
 */
export function qemuArgs(options: QemuOptions): string[] {
  const { dir, shares, hostOs = Deno.build.os } = options;
  const isArm = options.arch === "aarch64";
  // The arm64 machine type has no ISA bus.
  const irqs = isArm ? [] : TERMINAL_IRQS;
  const socket = (id: string, name: string) => [
    "-chardev",
    `socket,id=${id},path=${escapeCommas(join(dir, name))},server=on,wait=off`,
  ];
  return [
    ...["-no-user-config", "-nodefaults", "-S", "-no-reboot"],
    ...["-name", "toolsmith"],
    ...["-machine", machineType(options), "-cpu", cpuModel(options)],
    ...memoryArgs(options),
    ...firmwareArgs(options),
    ...["-m", `${options.memory}M`, "-smp", `${options.cpus}`],
    ...["-display", "none", "-nic", "none"],
    // QEMU's seccomp sandbox exists on Linux only.
    ...hostOs === "linux" ? ["-sandbox", SANDBOX_RULES] : [],
    ...socket("qmp", VM_FILES.qmp),
    ...["-mon", "chardev=qmp,mode=control"],
    ...socket("console", VM_FILES.console),
    ...["-serial", "chardev:console"],
    ...irqs.flatMap((irq, index) => {
      const id = terminalSerialPortId(index);
      const port = `isa-serial,chardev=${id},index=${index + 1},irq=${irq}`;
      return [...socket(id, id), "-device", port];
    }),
    "-drive",
    // Without an explicit format, a raw disk could pose as a QCOW2.
    `file=${escapeCommas(options.disk)},format=qcow2,if=none,id=${DISK_ID},` +
    `snapshot=${options.ephemeral ? "on" : "off"},discard=unmap` +
    (options.skipFlushes ? ",cache=unsafe" : ""),
    ...["-device", `virtio-blk-pci,drive=${DISK_ID},bootindex=0`],
    ...["-device", "virtio-serial-pci,id=control"],
    ...socket(AGENT_PORT_ID, VM_FILES.agent),
    "-device",
    `virtserialport,bus=control.0,chardev=${AGENT_PORT_ID},id=${AGENT_PORT_ID},` +
    `name=${AGENT_PORT_NAME}`,
    "-device",
    `virtio-serial-pci,id=${COMMAND_PORT_BUS_ID},` +
    `max_ports=${MAX_COMMAND_PORTS + 1}`,
    ...STDIO_PORTS.flatMap((end) => {
      const id = portFileName(FIRST_COMMAND_PORT_NAME, end);
      const port =
        `virtserialport,bus=${COMMAND_PORT_BUS_ID}.0,chardev=${id},` +
        `id=${portDeviceId(id)},name=${id}`;
      return [...socket(id, id), "-device", port];
    }),
    ...["-object", "rng-random,id=random,filename=/dev/urandom"],
    ...["-device", "virtio-rng-pci,rng=random"],
    // Tells a restored guest that it is a copy, so that it reseeds its RNG.
    ...isArm ? [] : ["-device", "vmgenid,guid=auto"],
    ...seedDiskArgs(options),
    ...Array.from({ length: HOTPLUG_SLOT_COUNT }, (_, index) => [
      "-device",
      `pcie-root-port,id=${hotplugSlotId(index)},` +
      `chassis=${index + 1},slot=${index + 1}`,
    ]).flat(),
    ...shares.flatMap(({ path, writable }, index) => [
      "-fsdev",
      `local,id=${shareFsdevId(index)},path=${escapeCommas(path)},` +
      `security_model=none,multidevs=remap,readonly=${writable ? "off" : "on"}`,
    ]),
    ...shares.flatMap((share, index) => {
      if (!isPresentAtBoot(share)) return [];
      const slot = `id=${shareDeviceId(index)},bus=${hotplugSlotId(index)}`;
      const source = `fsdev=${shareFsdevId(index)},mount_tag=${share.tag}`;
      return ["-device", `virtio-9p-pci,${slot},${source}`];
    }),
    ...options.extra,
  ];
}

/**
 * Does the VM boot with a directory's device? The workspace's is part of snapshots,
 * as most VMs have one; exports are hot-plugged.
 */
export function isPresentAtBoot(share: GuestShare): boolean {
  return !share.writable;
}

function memoryArgs({ memory, memoryFile }: QemuOptions): string[] {
  if (!memoryFile) return [];
  const { path, keepsWrites } = memoryFile;
  return [
    "-object",
    `memory-backend-file,id=memory,size=${memory}M,` +
    `mem-path=${escapeCommas(path)},share=${keepsWrites ? "on" : "off"}`,
    ...["-machine", "memory-backend=memory"],
  ];
}

/** Without graphics, firmware prints to the serial console. */
function machineType({ arch, accelerator }: QemuOptions): string {
  const common = `accel=${accelerator},graphics=off`;
  return arch === "aarch64"
    ? `virt,${common},gic-version=max`
    : `q35,${common},vmport=off`;
}

function cpuModel({ arch, accelerator }: QemuOptions): string {
  if (accelerator !== "tcg") return "host";
  // Emulating the architected pointer authentication and byte-wise string copies is
  // slow: guests use cheaper variants of both without these features.
  return arch === "aarch64" ? "max,pauth-impdef=on" : "max,-erms,-fsrm";
}

function firmwareArgs({ arch, firmware }: QemuOptions): string[] {
  if (!firmware) return [];
  // Flash on arm64 accepts only files of its exact size, -bios on x86_64 only
  // multiples of 64 KiB.
  const isRom = "rom" in firmware;
  if (isRom && arch === "aarch64") return ["-bios", firmware.rom];
  const flash = (unit: number, file: string, how: string) => [
    "-drive",
    `if=pflash,format=raw,file=${escapeCommas(file)},unit=${unit},${how}`,
  ];
  // Guest writes stay in memory and become part of the VM's snapshot.
  const writes = "snapshot=on";
  if (isRom) return flash(0, firmware.rom, writes);
  return [
    ...flash(0, firmware.code, "readonly=on"),
    ...flash(1, firmware.variables, writes),
  ];
}

/** Follows the boot disk, so that this keeps its device name in the guest. */
function seedDiskArgs({ dir, seed }: QemuOptions): string[] {
  if (!seed) return [];
  const file = escapeCommas(join(dir, VM_FILES.seed));
  return [
    "-drive",
    `file=${file},format=raw,if=none,id=seed,readonly=on`,
    ...["-device", "virtio-blk-pci,drive=seed"],
    // Tells cloud-init that there is a NoCloud seed.
    ...["-smbios", "type=1,serial=ds=nocloud"],
  ];
}

/** QEMU separates options by commas; a literal comma is doubled. */
function escapeCommas(value: string): string {
  return value.replaceAll(",", ",,");
}
