/**
 * The slot of a machine's snapshot: found by its key, dropped when it does not
 * restore, filled when the machine is ready.
 *
 * @module
 */
import type { Environment } from "../environment.ts";
import type { Emit } from "../events.ts";
import {
  type Snapshot,
  type SnapshotStore,
  snapshotStore,
} from "../cache/snapshots.ts";
import type { StartMachineOptions } from "../qemu/machine.ts";
import type { Qmp } from "../qemu/qmp.ts";
import type { SnapshotOptions } from "./options.ts";
import { saveMachine, type Saving } from "./_migrate.ts";
import { keyOf } from "./_snapshot_key.ts";

/** The slot of one machine's snapshot. */
export interface SnapshotSlot {
  /** The key of all that has to match. */
  readonly key: string;
  /** The snapshot to restore, if there is one that fits. */
  readonly found: Snapshot | undefined;
  /** Is the found snapshot still the one in the slot? */
  unchanged(): Promise<boolean>;
  /** Removes a snapshot that did not restore, and reports that. */
  drop(reason: string): Promise<void>;
  /** Saves the machine, unless that is not wanted or another process does. */
  save(qmp: Qmp): Promise<void>;
  /** Waits until what was saved is in its place, and reports that. */
  settled(): Promise<void>;
}

/** What {@linkcode findSlot} takes besides the machine. */
export interface FindSlotOptions {
  /** Where snapshots are; without them there is no slot. */
  snapshots: SnapshotOptions | undefined;
  /** Takes events. */
  emit: Emit;
  /** Read for `PATH`. @default {processEnvironment} */
  env?: Environment;
}

/**
 * Finds the slot of a machine's snapshot.
 *
 * Needs `--allow-read` for the QEMU program, `--allow-sys=cpus,osRelease`, and
 * `--allow-read` and `--allow-write` for the directory of snapshots.
 *
 * @param plan The machine.
 * @param options Where snapshots are.
 * @returns The slot, or `undefined` for a machine that cannot have one.
 */
export async function findSlot(
  plan: StartMachineOptions,
  options: FindSlotOptions,
): Promise<SnapshotSlot | undefined> {
  const { snapshots, emit, env } = options;
  if (!snapshots) return undefined;
  const key = await keyOf(plan, snapshots.digest, env);
  if (!key) return undefined;
  const slot = new Slot(key, plan.dir, { ...snapshots, emit });
  await slot.look();
  return slot;
}

class Slot implements SnapshotSlot {
  found: Snapshot | undefined;
  readonly #store: SnapshotStore;
  #saving: Saving | undefined;

  constructor(
    readonly key: string,
    private readonly machineDir: string,
    private readonly options: SnapshotOptions & { emit: Emit },
  ) {
    this.#store = snapshotStore(options.dir);
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

  async save(qmp: Qmp): Promise<void> {
    const { restore = true, save = true } = this.options;
    if (!save) return;
    try {
      // Another process may have been faster.
      const there = restore && await this.#store.find(this.key);
      if (typeof there === "object") return;
      const staging = await this.#store.stage(this.key);
      if (!staging) return;
      this.#saving = await saveMachine(qmp, this.machineDir, staging);
    } catch (error) {
      if (error instanceof Deno.errors.NotCapable) throw error;
      this.#warn(`The machine is not saved: ${(error as Error).message}`);
    }
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
      this.#warn(`The machine is not saved: ${(error as Error).message}`);
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
