/** The key of a snapshot: a digest of everything that must match on restore. */
import type { Environment } from "../environment.ts";
import { hashSnapshotKeyParts } from "../cache/snapshots.ts";
import { isPresentAtBoot, qemuArgs } from "../qemu/args.ts";
import { firmwarePaths } from "../qemu/firmware.ts";
import type { QemuPlan } from "../qemu/qemu_process.ts";
import { findProgram } from "../system/program_files.ts";
import { SAVED_GUEST_SCRIPTS } from "../guest/warm_shell.ts";
import { readSizeAndMtime } from "../system/files.ts";

/** Increased when this version cannot restore earlier snapshots. */
const KEY_LAYOUT_VERSION = 3;

/** QEMU options whose effect does not depend on host files. */
const SELF_CONTAINED_QEMU_OPTIONS = new Set(
  "M accel boot cpu device global m machine msg numa rtc smp vga".split(" "),
);

/** Returns the key; `undefined` for a VM with a kept disk or unknown dependencies. */
export async function vmSnapshotKey(
  plan: QemuPlan,
  digest: string,
  env?: Environment,
): Promise<string | undefined> {
  if (!plan.ephemeral || namesHostFiles(plan.extra)) return undefined;
  const program = await findProgram(plan.program, env);
  const cpu = await hostCpuAndKernel();
  if (!program || !cpu) return undefined;
  const path = await Deno.realPath(program);
  const firmware = firmwarePaths(plan.firmware);
  const shares = plan.shares.filter(isPresentAtBoot)
    .map((share) => ({ ...share, path: "" }));
  const memoryFile = { path: "", keepsWrites: false };
  return await hashSnapshotKeyParts({
    layout: KEY_LAYOUT_VERSION,
    shell: SAVED_GUEST_SCRIPTS,
    digest,
    program: await readSizeAndMtime(path),
    firmware: await Promise.all(firmware.map(readSizeAndMtime)),
    seed: plan.seed?.toBase64(),
    // Includes the image's path, as the snapshot's disk refers to that.
    args: qemuArgs({ ...plan, dir: "", shares, memoryFile }),
    cpu,
  });
}

/** Do arguments refer to host files, which may change between save and restore? */
function namesHostFiles(words: string[]): boolean {
  return words.some((word, index) =>
    // Options and values alternate; a word in an option's place is a disk file.
    index % 2 === 0
      ? !word.startsWith("-") ||
        !SELF_CONTAINED_QEMU_OPTIONS.has(word.replace(/^--?/, ""))
      : /[/\\]|(file|path|kernel|initrd|dtb|firmware|splash)=/.test(word)
  );
}

/** The host's processor and kernel, as the guest may depend on both. */
async function hostCpuAndKernel(): Promise<string | undefined> {
  // Imported lazily, as Node modules cost milliseconds at every start.
  const { cpus } = await import("node:os");
  try {
    const model = cpus().at(0)?.model;
    return model &&
      `${Deno.build.arch} ${model}, ${Deno.build.os} ${Deno.osRelease()}`;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) return undefined;
    throw error;
  }
}
