/**
 * The slot of a machine's snapshot: found by its key, dropped when it does not
 * restore, filled when the machine is ready.
 *
 * @module
 */
import { dirname, resolve } from "../path.ts";
import {
  type Snapshot,
  type SnapshotStaging,
  type SnapshotStore,
  snapshotStore,
} from "../cache/snapshots.ts";
import type { Environment } from "../environment.ts";
import type { Emit } from "../events.ts";
import type { MachinePlan } from "../qemu/machine.ts";
import { freeBytes } from "../system/free_space.ts";
import type { SnapshotOptions } from "./options.ts";
import { keyOf } from "./_snapshot_key.ts";

/** The slot of one machine's snapshot. */
export interface SnapshotSlot {
  /** The key of all that has to match. */
  readonly key: string;
  /** Is the memory in a file that is mapped? */
  readonly mapped: boolean;
  /** The snapshot to restore, if there is one that fits. */
  readonly found: Snapshot | undefined;
  /** Is the found snapshot still the one in the slot? */
  unchanged(): Promise<boolean>;
  /** Removes a snapshot that did not restore, and reports that. */
  drop(reason: string): Promise<void>;
  /** Has the disk room for all of the memory, if it is to be mapped? */
  hasRoom(): Promise<boolean>;
  /**
   * Makes room for a machine that is to be saved.
   *
   * @returns Where to write; `undefined` if that is not wanted or not possible,
   * or another process saves the same.
   */
  stage(): Promise<SnapshotStaging | undefined>;
  /** Puts what was saved into its place, in the background. */
  place(staging: SnapshotStaging, pausedMs: number): void;
  /** Reports that the machine cannot be saved. */
  fail(error: unknown): void;
  /** Waits until what was saved is in its place, and reports that. */
  settled(): Promise<void>;
}

/** What {@linkcode findSlots} takes besides the machine. */
export interface FindSlotOptions {
  /** Where snapshots are; without them there are no slots. */
  snapshots: SnapshotOptions | undefined;
  /** Takes events. */
  emit: Emit;
  /** Read for `PATH`. @default {processEnvironment} */
  env?: Environment;
}

/**
 * Finds the slots of a machine's snapshots: of one whose memory is mapped, which
 * restores sooner, and of one whose memory is read, which every QEMU can restore.
 *
 * Needs `--allow-read` for the QEMU program, `--allow-sys=cpus,osRelease`, and
 * `--allow-read` and `--allow-write` for the directory of snapshots.
 *
 * @param plan The machine.
 * @param options Where snapshots are.
 * @returns The slots, the better first; none for a machine that cannot have one.
 */
export async function findSlots(
  plan: MachinePlan,
  options: FindSlotOptions,
): Promise<SnapshotSlot[]> {
  const { snapshots, emit, env } = options;
  if (!snapshots) return [];
  const slots: Slot[] = [];
  for (const mapped of [true, false]) {
    const memoryFile = mapped ? { path: "", shared: false } : undefined;
    const key = await keyOf({ ...plan, memoryFile }, snapshots.digest, env);
    if (!key) return [];
    const { memory } = plan;
    slots.push(new Slot(key, mapped, { ...snapshots, memory, emit }));
  }
  for (const slot of slots) {
    await slot.look();
    if (slot.found) break;
  }
  return slots;
}

interface SlotOptions extends SnapshotOptions {
  /** The guest's memory, in MiB. */
  memory: number;
  emit: Emit;
}

const MIB = 2 ** 20;

class Slot implements SnapshotSlot {
  found: Snapshot | undefined;
  readonly #store: SnapshotStore;
  #saving: { placed: Promise<Snapshot>; pausedMs: number } | undefined;

  constructor(
    readonly key: string,
    readonly mapped: boolean,
    private readonly options: SlotOptions,
  ) {
    // QEMU, which has a directory of its own, is given these paths.
    this.#store = snapshotStore(resolve(options.dir));
  }

  async look(): Promise<void> {
    if (this.options.restore === false) return;
    const found = await this.#lookFor();
    if (found === "damaged") return await this.drop("its file was changed");
    this.found = found;
    if (found) await this.#store.touch(this.key);
  }

  async unchanged(): Promise<boolean> {
    const now = await this.#lookFor();
    return typeof now === "object" && now.saved === this.found?.saved;
  }

  async drop(reason: string): Promise<void> {
    const snapshot = { key: this.key, saved: this.found?.saved };
    this.found = undefined;
    const removed = await this.#store.remove(snapshot).catch(() => false);
    const outcome = removed ? "was removed" : "is not used";
    this.#warn(`The snapshot ${outcome}: ${reason}; booting instead`);
  }

  async hasRoom(): Promise<boolean> {
    if (!this.mapped) return true;
    // The directory may have to be made yet: an image lies above it.
    const dirs = [this.options.dir, dirname(this.options.dir)];
    for (const dir of dirs) {
      const free = await freeBytes(dir);
      if (free !== undefined) return free > this.options.memory * MIB;
    }
    return true;
  }

  async stage(): Promise<SnapshotStaging | undefined> {
    if (this.options.save === false) return undefined;
    try {
      return await this.#store.stage(this.key);
    } catch (error) {
      if (error instanceof Deno.errors.NotCapable) throw error;
      this.fail(error);
      return undefined;
    }
  }

  place(staging: SnapshotStaging, pausedMs: number): void {
    const placed = staging.place()
      .finally(() => staging[Symbol.asyncDispose]());
    placed.catch(() => {});
    this.#saving = { placed, pausedMs: Math.round(pausedMs) };
  }

  fail(error: unknown): void {
    this.#warn(`The machine is not saved: ${(error as Error).message}`);
  }

  async settled(): Promise<void> {
    if (!this.#saving) return;
    const { placed, pausedMs } = this.#saving;
    this.#saving = undefined;
    try {
      const { path, bytes } = await placed;
      const saved = { path, bytes, stoodMs: pausedMs };
      this.options.emit({ type: "state_saved", ...saved });
    } catch (error) {
      this.fail(error);
    }
  }

  /** A snapshot in a directory that cannot be read is none. */
  async #lookFor() {
    try {
      return await this.#store.find(this.key);
    } catch (error) {
      if (error instanceof Deno.errors.NotCapable) throw error;
      return undefined;
    }
  }

  #warn(message: string): void {
    this.options.emit({ type: "warning", message });
  }
}
