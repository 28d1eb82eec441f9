/**
 * Finds out whether an accelerator is worth using, by a race against emulation.
 * Virtual machines offer a KVM that fails at its first instructions, or that is
 * itself emulated and takes minutes for what a boot loader does.
 *
 * @module
 */
import { join } from "../path.ts";
import { oneLine } from "../system/text.ts";
import { settlesWithin } from "../system/time.ts";
import { keepTail } from "./_console.ts";
import { spawnSupervised, type SuperviseOptions } from "./_supervisor.ts";
import type { Accelerator } from "./args.ts";
import { makeMachineDir } from "./machine_dir.ts";
import { qemuNotFound } from "./program.ts";

/** A sound accelerator takes a tenth of it, emulation a third. */
const HEAD_START_MS = 1000;
const LONGEST_MS = 30_000;
const MEMORY = 64;
/** Firmware reads no sector of a smaller disk. */
const DISK_BYTES = 2 ** 20;
/** Its file, in the directory that QEMU starts in. */
const DISK = "payload";

/** A BIOS loads this sector to 0x7c00. Without paging an emulated KVM is slowest. */
// deno-fmt-ignore
const BOOT_SECTOR = [
  0xfa, 0x31, 0xc0, 0x8e, 0xd8,       // 7c00  cli; xor ax, ax; mov ds, ax
  0x0f, 0x01, 0x16, 0x24, 0x7c,       // 7c05  lgdt [0x7c24]
  0x0f, 0x20, 0xc0, 0x0c, 0x01,       // 7c0a  mov eax, cr0; or al, 1
  0x0f, 0x22, 0xc0,                   // 7c0f  mov cr0, eax: protected mode
  0xea, 0x17, 0x7c, 0x08, 0x00,       // 7c12  jmp 0x08:0x7c17
  0xb9, 0x80, 0xf0, 0xfa, 0x02,       // 7c17  mov ecx, 50000000: 32-bit code
  0x49, 0x75, 0xfd,                   // 7c1c  dec ecx; jnz 0x7c1c
  0xb0, 0xfe, 0xe6, 0x64, 0xf4,       // 7c1f  mov al, 0xfe; out 0x64, al: reset; hlt
  0x0f, 0x00, 0x24, 0x7c, 0, 0, 0, 0, // 7c24  GDT: its limit and address, for lgdt
  0xff, 0xff, 0, 0, 0, 0x9a, 0xcf, 0, // 7c2c  0x08: code, 4 GiB from address 0
];

/**
 * Lets QEMU count to fifty million with an accelerator, for guests of x86_64. If
 * that takes longer than a second, emulation starts to count as well and shares
 * whatever load the host has: no clock condemns an accelerator.
 *
 * Needs `--allow-run=sh`, and `--allow-write` for the temporary directory.
 *
 * @param accelerator Which one.
 * @param options QEMU, and what ends the race when aborted.
 * @returns Why it is not to be used, `""` where it is; `undefined` where both hang.
 * @throws {ToolsmithError} `qemu_not_found`.
 * @throws The signal's reason when it is aborted.
 */
export async function prove(
  accelerator: Accelerator,
  options: Pick<SuperviseOptions, "program" | "env"> & { signal?: AbortSignal },
): Promise<string | undefined> {
  const { program, env, signal } = options;
  signal?.throwIfAborted();
  const dir = await makeMachineDir(env);
  const machine = { program, env, dir, memory: MEMORY, extra: [], shares: [] };
  const start = (accelerator: Accelerator) => {
    const stderr = keepTail(4096);
    const child = spawnSupervised(machine, probeArgs(accelerator), stderr.add);
    return Object.assign(child, { words: () => oneLine(stderr.text()) });
  };
  try {
    const disk = new Uint8Array(DISK_BYTES);
    disk.set(BOOT_SECTOR);
    disk.set([0x55, 0xaa], 510);
    await Deno.writeFile(join(dir, DISK), disk);
    await using tried = start(accelerator);
    let outrun = false;
    if (!await settlesWithin(tried.ended, HEAD_START_MS, { signal })) {
      await using emulated = start("tcg");
      const finished = tried.ended.then(() => false);
      // A QEMU that cannot emulate leaves nothing to compare with.
      const lost = emulated.ended.then(({ code }) => code === 0 || finished);
      const first = Promise.race([finished, lost]);
      const decided = await settlesWithin(first, LONGEST_MS, { signal });
      if (!decided) return undefined;
      outrun = await first;
    }
    const words = tried.words();
    // QEMU only stops a guest that KVM cannot go on with, and says so.
    if (outrun && words) return doesNotWork(accelerator, words);
    if (outrun) {
      return `${accelerator.toUpperCase()} is offered but slower than emulation here`;
    }
    const { code } = await tried.ended;
    if (code === 0) return "";
    if (code === 127 || code === 126) throw qemuNotFound(program, words);
    return doesNotWork(accelerator, words || `QEMU ended with status ${code}`);
  } finally {
    await Deno.remove(dir, { recursive: true }).catch(() => {});
  }
}

/** Says that an accelerator is of no use on this host. */
export function doesNotWork(accelerator: Accelerator, words: string): string {
  return `${accelerator.toUpperCase()} does not work here: ${words}`;
}

function probeArgs(accelerator: Accelerator): string[] {
  return [
    ...["-no-user-config", "-nodefaults", "-no-reboot", "-m", `${MEMORY}M`],
    ...["-machine", `q35,accel=${accelerator},graphics=off,vmport=off`],
    ...["-cpu", accelerator === "tcg" ? "max" : "host"],
    ...["-display", "none", "-nic", "none"],
    ...["-drive", `file=${DISK},format=raw,if=none,id=${DISK},readonly=on`],
    ...["-device", `virtio-blk-pci,drive=${DISK},bootindex=0`],
  ];
}
