/**
 * QEMU's arguments. Nothing here starts a machine.
 *
 * @module
 */
import { join } from "../path.ts";
import {
  AGENT,
  directoryId,
  DISK,
  ENDS,
  MEMORY,
  portId,
  SEED,
  shareId,
  slotId,
  SLOTS,
  STREAM_BUS,
  STREAM_PORTS,
  TERMINAL_IRQS,
  terminalId,
} from "./devices.ts";
import type { ImageArch } from "../image/boot_loader.ts";
import type { Firmware } from "./firmware.ts";
import { FIRST_PORTS, MACHINE_FILES, portFile } from "./machine_dir.ts";

/** How QEMU runs the guest's instructions. */
export type Accelerator = "kvm" | "hvf" | "tcg";

/** A directory of the host that the guest may see. */
export interface GuestShare {
  /** Absolute path of the directory. */
  path: string;
  /** Its name; it is mounted at `/mnt/<tag>`. */
  tag: string;
  /** May the guest write to it? */
  writable: boolean;
  /** Is it a copy in the guest, as that cannot mount it? @default {false} */
  copied?: boolean;
}

/** A file that holds a guest's memory, and is mapped by QEMU. */
export interface MemoryFile {
  /** Absolute path of the file; an empty one gets the memory's size. */
  path: string;
  /**
   * Does the guest write to it? Else it gets copies of the pages that it writes,
   * and any number of guests share the others.
   */
  shared: boolean;
}

/** What a machine is like. */
export interface MachineOptions {
  /** The processor. @default {"x86_64"} */
  arch?: ImageArch;
  /** What starts the boot loader. @default {undefined} QEMU's own BIOS */
  firmware?: Firmware;
  /** Absolute path of the disk's QCOW2. */
  disk: string;
  /** Throw away what the guest writes to the disk. */
  ephemeral: boolean;
  /**
   * May what the guest writes to the disk be lost with the host (QEMU's cache mode
   * `unsafe`)?
   *
   * @default {false}
   */
  unsafe?: boolean;
  /** Is there a seed in the directory? @default {false} */
  seed?: boolean;
  /** Absolute path of the directory for sockets. */
  dir: string;
  /** How to run the guest's instructions. */
  accelerator: Accelerator;
  /** Memory, in MiB. */
  memory: number;
  /** Count of processors. */
  cpus: number;
  /** The file that holds the guest's memory. @default {undefined} none */
  memoryFile?: MemoryFile;
  /** Directories that can be plugged in later. */
  shares: GuestShare[];
  /** More arguments for QEMU. */
  extra: string[];
  /** The host's system. @default {Deno.build.os} */
  os?: typeof Deno.build.os;
}

/** QEMU's name for it; the agent looks for a port of this name. */
const AGENT_PORT = "org.qemu.guest_agent.0";

/**
 * Writes QEMU's arguments. The machine waits at its first instruction for
 * QMP's `cont`. What differs between runs of one image (exports, network, ports of
 * commands after the first) is plugged in later.
 *
 * @param options The machine.
 * @returns The arguments, each a word.
 */
export function qemuArgs(options: MachineOptions): string[] {
  const { dir, os = Deno.build.os } = options;
  const socket = (id: string, name: string) => [
    "-chardev",
    `socket,id=${id},path=${quote(join(dir, name))},server=on,wait=off`,
  ];
  return [
    ...["-no-user-config", "-nodefaults", "-S", "-no-reboot"],
    ...["-name", "toolsmith"],
    ...["-machine", machineType(options), "-cpu", processor(options)],
    ...memoryArgs(options),
    ...firmware(options),
    ...["-m", `${options.memory}M`, "-smp", `${options.cpus}`],
    ...["-display", "none", "-nic", "none"],
    ...sandbox(os),
    ...socket("qmp", MACHINE_FILES.qmp),
    ...["-mon", "chardev=qmp,mode=control"],
    ...socket("console", MACHINE_FILES.console),
    ...["-serial", "chardev:console"],
    // Machines for arm64 have no ISA bus.
    ...(options.arch === "aarch64" ? [] : TERMINAL_IRQS).flatMap((
      irq,
      index,
    ) => [
      ...socket(terminalId(index), terminalId(index)),
      "-device",
      `isa-serial,chardev=${terminalId(index)},index=${index + 1},irq=${irq}`,
    ]),
    ...["-drive", drive(options)],
    ...["-device", `virtio-blk-pci,drive=${DISK},bootindex=0`],
    ...["-device", "virtio-serial-pci,id=control"],
    ...socket(AGENT, MACHINE_FILES.agent),
    "-device",
    `virtserialport,bus=control.0,chardev=${AGENT},id=${AGENT},` +
    `name=${AGENT_PORT}`,
    ...[
      "-device",
      `virtio-serial-pci,id=${STREAM_BUS},max_ports=${STREAM_PORTS + 1}`,
    ],
    ...ENDS.map((end) => portFile(FIRST_PORTS, end)).flatMap((id) => [
      ...socket(id, id),
      "-device",
      `virtserialport,bus=${STREAM_BUS}.0,chardev=${id},id=${
        portId(id)
      },name=${id}`,
    ]),
    ...["-object", "rng-random,id=random,filename=/dev/urandom"],
    ...["-device", "virtio-rng-pci,rng=random"],
    ...generation(options),
    ...seed(options),
    ...Array.from({ length: SLOTS }, (_, slot) => [
      "-device",
      `pcie-root-port,id=${slotId(slot)},chassis=${slot + 1},slot=${slot + 1}`,
    ]).flat(),
    ...options.shares.flatMap((share, index) => [
      "-fsdev",
      `local,id=${shareId(index)},path=${
        quote(share.path)
      },security_model=none,` +
      `multidevs=remap,readonly=${share.writable ? "off" : "on"}`,
    ]),
    ...options.shares.flatMap((share, index) =>
      isPlugged(share)
        ? [
          "-device",
          `virtio-9p-pci,id=${directoryId(index)},bus=${slotId(index)},` +
          `fsdev=${shareId(index)},mount_tag=${share.tag}`,
        ]
        : []
    ),
    ...options.extra,
  ];
}

/**
 * Is a directory's device there from the start? The workspace's is: most machines
 * have one, and a snapshot then has it, too, whatever directory it shows.
 *
 * @param share The directory.
 */
export function isPlugged(share: GuestShare): boolean {
  return !share.writable;
}

function memoryArgs({ memory, memoryFile }: MachineOptions): string[] {
  if (!memoryFile) return [];
  const { path, shared } = memoryFile;
  return [
    "-object",
    `memory-backend-file,id=${MEMORY},size=${memory}M,` +
    `mem-path=${quote(path)},share=${shared ? "on" : "off"}`,
    ...["-machine", `memory-backend=${MEMORY}`],
  ];
}

/** Without graphics the firmware speaks on the serial console. */
function machineType({ arch, accelerator }: MachineOptions): string {
  const common = `accel=${accelerator},graphics=off`;
  return arch === "aarch64"
    ? `virt,${common},gic-version=max`
    : `q35,${common},vmport=off`;
}

function processor({ arch, accelerator }: MachineOptions): string {
  if (accelerator !== "tcg") return "host";
  // To emulate the architecture's own pointer authentication costs much time, and
  // so does each byte of a string copy: guests then copy words instead.
  return arch === "aarch64" ? "max,pauth-impdef=on" : "max,-erms,-fsrm";
}

function firmware({ arch, firmware }: MachineOptions): string[] {
  if (!firmware) return [];
  const flash = (unit: number, file: string, how: string) => [
    "-drive",
    `if=pflash,format=raw,file=${quote(file)},unit=${unit},${how}`,
  ];
  // The memory of the flash is the machine's, and goes into its snapshot.
  const own = "snapshot=on";
  if ("rom" in firmware) {
    // The flash of one machine takes files of its own size alone, the memory for
    // the BIOS of the other those of whole 64 KiB.
    return arch === "aarch64"
      ? ["-bios", firmware.rom]
      : flash(0, firmware.rom, own);
  }
  return [
    ...flash(0, firmware.code, "readonly=on"),
    ...flash(1, firmware.variables, own),
  ];
}

/** It comes after the disk, which keeps its name in the guest. */
function seed({ dir, seed }: MachineOptions): string[] {
  if (!seed) return [];
  const file = quote(join(dir, MACHINE_FILES.seed));
  return [
    "-drive",
    `file=${file},format=raw,if=none,id=${SEED},readonly=on`,
    ...["-device", `virtio-blk-pci,drive=${SEED}`],
    // Where cloud-init looks first, to find out whether it has work.
    ...["-smbios", "type=1,serial=ds=nocloud"],
  ];
}

/** Notifies the guest that it is a copy, where it was restored. */
function generation({ arch }: MachineOptions): string[] {
  return arch === "aarch64" ? [] : ["-device", "vmgenid,guid=auto"];
}

/** In a value of QEMU's options a comma is written twice. */
function quote(value: string): string {
  return value.replaceAll(",", ",,");
}

function drive({ disk, ephemeral, unsafe }: MachineOptions): string {
  // The format is never guessed: a raw disk could pretend to be a QCOW2.
  return `file=${quote(disk)},format=qcow2,if=none,id=${DISK},` +
    `snapshot=${ephemeral ? "on" : "off"},discard=unmap` +
    (unsafe ? ",cache=unsafe" : "");
}

/** QEMU can only confine itself on Linux. */
function sandbox(os: typeof Deno.build.os): string[] {
  if (os !== "linux") return [];
  return [
    "-sandbox",
    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
  ];
}
