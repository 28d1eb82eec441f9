/**
 * The place of a VM's snapshot in the store: finds it by its key, removes it if it does
 * not restore, and saves a new one.
 */
import {
  type Snapshot,
  type SnapshotStaging,
  type SnapshotStore,
  snapshotStore,
} from "../cache/snapshots.ts";
import type { Environment } from "../environment.ts";
import type { Emit } from "../events.ts";
import { SAVED_GUEST_SCRIPTS } from "../guest/warm_shell.ts";
import { resolve } from "../path.ts";
import { isPresentAtBoot, qemuArgs } from "../qemu/args.ts";
import { firmwarePaths } from "../qemu/firmware.ts";
import type { QemuPlan } from "../qemu/qemu_process.ts";
import { sha256OfText } from "../system/digest.ts";
import { readSizeAndMtime } from "../system/files.ts";
import { findProgram } from "../system/find_program.ts";
import { readFreeDiskBytes } from "../system/free_space.ts";
import type { BootOptions, SnapshotOptions } from "./boot_options.ts";

/** Increased when this version cannot restore earlier snapshots. */
const KEY_LAYOUT_VERSION = 3;

/** QEMU options whose effect does not depend on host files. */
const SELF_CONTAINED_QEMU_OPTIONS = new Set(
  "M accel boot cpu device global m machine msg numa rtc smp vga".split(" "),
);
const MIB_BYTES = 2 ** 20;

/**
 * Computes a VM's snapshot key and looks the snapshot up; `undefined` for a VM that
 * cannot have one.
 */
export async function findSnapshotSlot(
  plan: QemuPlan,
  { snapshots, env }: Pick<BootOptions, "snapshots" | "env">,
  emit: Emit,
): Promise<SnapshotSlot | undefined> {
  const key = snapshots && await vmSnapshotKey(plan, snapshots.digest, env);
  if (!key) return undefined;
  const options = { ...snapshots, memoryMib: plan.memory, emit };
  const slot = new SnapshotSlot(key, options);
  await slot.findSnapshot();
  return slot;
}

type SnapshotSlotOptions = SnapshotOptions & { memoryMib: number; emit: Emit };

export class SnapshotSlot {
  foundSnapshot: Snapshot | undefined;
  readonly #store: SnapshotStore;
  /** Reports whether the snapshot was committed. */
  #pendingCommit: Promise<() => void> | undefined;

  constructor(
    readonly key: string,
    private readonly options: SnapshotSlotOptions,
  ) {
    // Absolute, as QEMU has another working directory.
    this.#store = snapshotStore(resolve(options.dir));
  }

  async findSnapshot(): Promise<void> {
    if (this.options.restore === false) return;
    const found = await this.#store.find(this.key).catch((error) => {
      if (error instanceof Deno.errors.NotCapable) throw error;
      // An unreadable directory is as good as an empty one.
    });
    if (found === "damaged") return this.removeAndWarn("its file has changed");
    if (!found) return;
    this.foundSnapshot = found;
    await this.#store.markUsed(this.key);
  }

  /** Is the found snapshot still the one in the store? */
  async isUnchanged(): Promise<boolean> {
    const now = await this.#store.find(this.key);
    return typeof now === "object" && now.saved === this.foundSnapshot?.saved;
  }

  /** Removes a snapshot that did not restore, and warns. */
  async removeAndWarn(reason: string): Promise<void> {
    const snapshot = { key: this.key, saved: this.foundSnapshot?.saved };
    this.foundSnapshot = undefined;
    const removed = await this.#store.remove(snapshot).catch(() => false);
    const outcome = removed ? "was removed" : "is not used";
    const message = `The snapshot ${outcome}: ${reason}; booting instead`;
    this.options.emit({ type: "warning", message });
  }

  /**
   * Creates a staging directory for a new snapshot; `undefined` if saving is off or
   * impossible, or another process is saving.
   */
  async tryCreateStaging(): Promise<SnapshotStaging | undefined> {
    const { save, dir, memoryMib } = this.options;
    if (save === false) return undefined;
    try {
      const staging = await this.#store.createStaging(this.key);
      const free = await readFreeDiskBytes(dir) ?? Infinity;
      if (!staging || free > memoryMib * MIB_BYTES) return staging;
      await staging[Symbol.asyncDispose]();
      const memory = `${memoryMib} MiB of guest memory`;
      throw new Error(`not enough disk space in ${dir} for ${memory}`);
    } catch (error) {
      if (error instanceof Deno.errors.NotCapable) throw error;
      this.warnNotSaved(error);
    }
  }

  /** Moves the saved snapshot into the store, in the background. */
  commitInBackground(staging: SnapshotStaging, stoodMs: number): void {
    const { emit } = this.options;
    this.#pendingCommit = staging.commit()
      .finally(() => staging[Symbol.asyncDispose]())
      .then(({ path, bytes }) => () => {
        const fields = { path, bytes, stoodMs: Math.round(stoodMs) };
        emit({ type: "state_saved", ...fields });
      }, (error) => () => this.warnNotSaved(error));
  }

  warnNotSaved(error: unknown): void {
    const message = `The VM was not saved: ${(error as Error).message}`;
    this.options.emit({ type: "warning", message });
  }

  /** Waits for the commit and emits `state_saved`, or warns. */
  async waitForCommit(): Promise<void> {
    const pending = this.#pendingCommit;
    this.#pendingCommit = undefined;
    const report = await pending;
    report?.();
  }
}

/**
 * Returns a digest of everything that must match on restore; `undefined` for a VM with a
 * kept disk or unknown dependencies.
 */
async function vmSnapshotKey(
  plan: QemuPlan,
  digest: string,
  env?: Environment,
): Promise<string | undefined> {
  if (!plan.ephemeral || namesHostFiles(plan.extra)) return undefined;
  const program = await findProgram(plan.program, env);
  const cpu = await hostCpuAndKernel();
  if (!program || !cpu) return undefined;
  const firmware = firmwarePaths(plan.firmware);
  const shares = plan.shares.filter(isPresentAtBoot)
    .map((share) => ({ ...share, path: "" }));
  const memoryFile = { path: "", keepsWrites: false };
  return await sha256OfText(JSON.stringify({
    layout: KEY_LAYOUT_VERSION,
    shell: SAVED_GUEST_SCRIPTS,
    digest,
    program: await readSizeAndMtime(await Deno.realPath(program)),
    firmware: await Promise.all(firmware.map(readSizeAndMtime)),
    seed: plan.seed?.toBase64(),
    // Includes the image's path, as the snapshot's disk refers to that.
    args: qemuArgs({ ...plan, dir: "", shares, memoryFile }),
    cpu,
  }));
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
