/**
 * The key of a snapshot: all that has to match before it can be restored.
 *
 * @module
 */
import type { Environment } from "../environment.ts";
import { snapshotKey } from "../cache/snapshots.ts";
import { isPlugged, qemuArgs } from "../qemu/args.ts";
import { seedImage } from "../guest/seed.ts";
import { firmwareFiles } from "../qemu/firmware.ts";
import type { MachinePlan } from "../qemu/machine.ts";
import { findProgram } from "../system/find_program.ts";
import { WAITING_PROGRAM } from "../guest/waiting_shell.ts";
import { fileVersion } from "../system/files.ts";

/** Grows when earlier snapshots cannot be restored by this program any more. */
const LAYOUT = 3;

/** Options of QEMU that say by themselves what the machine is like. */
const SELF_CONTAINED = new Set(
  "M accel boot cpu device global m machine msg numa rtc smp vga".split(" "),
);

/**
 * Makes the key of a machine's snapshot.
 *
 * Needs `--allow-read` for the QEMU program, `--allow-sys=cpus,osRelease`, and
 * `--allow-env=PATH`.
 *
 * @param plan The machine.
 * @param digest The image's digest.
 * @param env Read for `PATH`.
 * @returns The key; `undefined` for a machine whose disk is kept, or that
 * depends on what cannot be compared.
 */
export async function keyOf(
  plan: MachinePlan,
  digest: string,
  env?: Environment,
): Promise<string | undefined> {
  if (!plan.ephemeral || namesFiles(plan.extra)) return undefined;
  const program = await findProgram(plan.program, env);
  const cpu = await hostProcessor();
  if (!program || !cpu) return undefined;
  const path = await Deno.realPath(program);
  return await snapshotKey({
    layout: LAYOUT,
    shell: WAITING_PROGRAM,
    digest,
    program: await fileVersion(path),
    firmware: await Promise.all(firmwareFiles(plan.firmware).map(fileVersion)),
    seed: plan.seed && seedImage().toBase64(),
    // The snapshot's disk names the image by its path.
    args: qemuArgs({
      ...plan,
      dir: "",
      shares: plan.shares.filter(isPlugged).map((it) => ({ ...it, path: "" })),
      memoryFile: plan.memoryFile && { path: "", shared: false },
    }),
    cpu,
  });
}

/** What a file of the host holds may change between a save and a restore. */
function namesFiles(words: string[]): boolean {
  return words.some((word, index) =>
    // Each option takes a value; a word in an option's place is a disk's file.
    index % 2 === 0
      ? !word.startsWith("-") || !SELF_CONTAINED.has(word.replace(/^--?/, ""))
      : /[/\\]|(file|path|kernel|initrd|dtb|firmware|splash)=/.test(word)
  );
}

/** The processor and kernel that the guest may have seen. */
async function hostProcessor(): Promise<string | undefined> {
  // Modules of Node take milliseconds of every start: this one waits its turn.
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
