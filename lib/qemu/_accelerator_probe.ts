/** Finds out whether an accelerator works, and is faster than emulation. */
import { join } from "../path.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import { settlesWithin } from "../system/time.ts";
import { textTailBuffer } from "./_console.ts";
import { spawnSupervisedQemu, type SuperviseOptions } from "./_supervisor.ts";
import type { Accelerator } from "./args.ts";
import { qemuNotFoundError } from "./program.ts";
import { makeVmDir } from "./vm_dir.ts";

/** A working accelerator needs a tenth of this, emulation a third. */
const TCG_DELAY_MS = 1000;
const PROBE_TIMEOUT_MS = 30_000;
const PROBE_MEMORY_MIB = 64;
/** The BIOS does not boot from a smaller disk. */
const PROBE_DISK_SIZE_BYTES = 2 ** 20;
/** File name and drive id of the disk, in QEMU's working directory. */
const PROBE_DISK_NAME = "payload";

/** The BIOS loads this sector to 0x7c00. Emulated KVM is slowest without paging. */
// deno-fmt-ignore
const PROBE_BOOT_SECTOR = [
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
 * Lets an x86_64 guest count to fifty million with an accelerator, as nested KVM may
 * fail at its first instructions, or be emulated itself and take minutes for a boot
 * loader. After a second, emulation starts counting too, under the same host load:
 * comparing the two needs no timeout that a busy host could exceed. Returns why the
 * accelerator is unusable, `""` if usable, `undefined` if both hang.
 */
export async function probeAccelerator(
  accelerator: Accelerator,
  options: Pick<SuperviseOptions, "program" | "env"> & { signal?: AbortSignal },
): Promise<string | undefined> {
  const { program, env, signal } = options;
  signal?.throwIfAborted();
  const dir = await makeVmDir(env);
  const memory = PROBE_MEMORY_MIB;
  const qemu = { program, env, dir, memory, extra: [], shares: [] };
  await using undo = new AsyncDisposableStack();
  undo.defer(() => Deno.remove(dir, { recursive: true }).catch(() => {}));
  const disk = new Uint8Array(PROBE_DISK_SIZE_BYTES);
  disk.set(PROBE_BOOT_SECTOR);
  disk.set([0x55, 0xaa], 510);
  await Deno.writeFile(join(dir, PROBE_DISK_NAME), disk);
  const tail = textTailBuffer(4096);
  const args = qemuArgsForProbe(accelerator);
  await using probed = spawnSupervisedQemu(qemu, args, tail.add);
  const finished = probed.ended.then(({ code }) => code);
  await using emulated = await settlesWithin(finished, TCG_DELAY_MS, options)
    ? undefined
    : spawnSupervisedQemu(qemu, qemuArgsForProbe("tcg"), () => {});
  // If emulation itself fails, wait for the probe to finish.
  const overtaken = emulated?.ended
    .then(async ({ code }) => code === 0 ? "overtaken" : await finished);
  const first = Promise.race([finished, overtaken ?? finished]);
  if (!await settlesWithin(first, PROBE_TIMEOUT_MS, options)) {
    return undefined;
  }
  const code = await first;
  const stderr = sanitizeLine(tail.text());
  if (code === 0) return "";
  if (code === 127 || code === 126) throw qemuNotFoundError(program, stderr);
  // When KVM fails mid-run, QEMU prints an error, stops the guest and stays alive.
  if (code === "overtaken" && !stderr) {
    return `${accelerator.toUpperCase()} is available but slower than emulation on this host`;
  }
  const why = stderr || `QEMU exited with status ${code}`;
  return describeAcceleratorFailure(accelerator, why);
}

export function describeAcceleratorFailure(
  accelerator: Accelerator,
  why: string,
): string {
  return `${accelerator.toUpperCase()} does not work on this host: ${why}`;
}

function qemuArgsForProbe(accelerator: Accelerator): string[] {
  return [
    ...["-no-user-config", "-nodefaults", "-no-reboot"],
    ...["-m", `${PROBE_MEMORY_MIB}M`],
    ...["-machine", `q35,accel=${accelerator},graphics=off,vmport=off`],
    ...["-cpu", accelerator === "tcg" ? "max" : "host"],
    ...["-display", "none", "-nic", "none"],
    "-drive",
    `file=${PROBE_DISK_NAME},format=raw,if=none,id=${PROBE_DISK_NAME},readonly=on`,
    ...["-device", `virtio-blk-pci,drive=${PROBE_DISK_NAME},bootindex=0`],
  ];
}
