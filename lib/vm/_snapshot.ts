/**
 * The place of a machine's saved state: found by a key of all that has to match,
 * dropped when it does not restore, filled when the machine is ready.
 *
 * @module
 */
import { join, SEPARATOR } from "@std/path";
import { cpus } from "node:os";
import type { SnapshotOptions } from "./options.ts";
import type { Emit } from "../events.ts";
import { fingerprint } from "../system/files.ts";
import type { StartMachineOptions } from "../qemu/machine.ts";
import { qemuArgs } from "../qemu/args.ts";
import type { Qmp } from "../qemu/qmp.ts";
import { saveMachine, type Saving } from "./_migrate.ts";
import {
  findSnapshot,
  removeSnapshot,
  type Snapshot,
  snapshotKey,
  stageSnapshot,
  touchSnapshot,
} from "../cache/snapshots.ts";

/** The place of one machine's state. */
export interface SnapshotSlot {
  /** The key of all that has to match. */
  readonly key: string;
  /** The state to restore, if there is one that fits. */
  readonly found: Snapshot | undefined;
  /** Is the found state still the one that lies there? */
  unchanged(): Promise<boolean>;
  /** Removes a state that did not restore, and says so. */
  drop(reason: string): Promise<void>;
  /** Saves the machine, unless that is not wanted or another process does. */
  save(qmp: Qmp): Promise<void>;
  /** Waits until what was saved is in its place, and says so. */
  settled(): Promise<void>;
}

/** Grows when states of before cannot be restored by this program any more. */
const LAYOUT = 1;

/** Options of QEMU that say by themselves what the machine is like. */
const OWN_WORDS = new Set(
  "M accel boot cpu device global m machine msg numa rtc smp vga".split(" "),
);

/**
 * Finds the place of a machine's state.
 *
 * Needs `--allow-read` for the QEMU program, `--allow-sys=cpus,osRelease`, and
 * `--allow-read` and `--allow-write` for the directory of states.
 *
 * @param plan The machine.
 * @param options Where states are; without them there is no place.
 * @param emit Told of what happens.
 * @returns The place, or `undefined` for a machine whose disk is kept, or that
 * depends on what cannot be told.
 */
export async function findSlot(
  plan: StartMachineOptions,
  options: SnapshotOptions | undefined,
  emit: Emit,
): Promise<SnapshotSlot | undefined> {
  if (!options || !plan.ephemeral || namesFiles(plan.extra)) return undefined;
  const { dir, digest, restore = true, save = true } = options;
  const program = await programFile(plan.program);
  const cpu = hostProcessor();
  // What cannot be told apart must not be mixed up.
  if (!program || !cpu) return undefined;
  const key = await snapshotKey({
    layout: LAYOUT,
    digest,
    program,
    args: qemuArgs({ ...plan, dir: "", disk: "", shares: [] }),
    cpu,
  });
  let found: Snapshot | undefined;
  let saving: Saving | undefined;
  const say = (message: string) => emit({ type: "warning", message });
  const drop = async (reason: string) => {
    const state = { key, saved: found?.saved };
    found = undefined;
    const removed = await removeSnapshot(dir, state).catch(() => false);
    const outcome = removed ? "was removed" : "is not used";
    say(`The saved machine ${outcome}: ${reason}; booting instead`);
  };
  if (restore) {
    const state = await lookFor(dir, key);
    if (state === "damaged") await drop("its file was changed");
    else found = state;
    if (found) await touchSnapshot(dir, key);
  }
  return {
    key,
    get found() {
      return found;
    },
    async unchanged() {
      const now = await lookFor(dir, key);
      return typeof now === "object" && now.saved === found?.saved;
    },
    drop,
    async save(qmp) {
      if (!save) return;
      try {
        // Another process may have been faster.
        if (restore && typeof await findSnapshot(dir, key) === "object") return;
        const staging = await stageSnapshot(dir, key);
        if (staging) saving = await saveMachine(qmp, plan.dir, staging);
      } catch (error) {
        if (error instanceof Deno.errors.NotCapable) throw error;
        say(`The machine is not saved: ${(error as Error).message}`);
      }
    },
    async settled() {
      if (!saving) return;
      const { placed, pausedMs } = saving;
      saving = undefined;
      try {
        const { path, bytes } = await placed;
        emit({ type: "state_saved", path, bytes, stoodMs: pausedMs });
      } catch (error) {
        say(`The machine is not saved: ${(error as Error).message}`);
      }
    },
  };
}

/** A state in a directory that cannot be read is none. */
async function lookFor(dir: string, key: string) {
  try {
    return await findSnapshot(dir, key);
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    return undefined;
  }
}

/** What a file of the host holds may change between a save and a restore. */
function namesFiles(words: string[]): boolean {
  return words.some((word, index) =>
    // Each option takes a value; a word in an option's place is a disk's file.
    index % 2 === 0
      ? !word.startsWith("-") || !OWN_WORDS.has(word.replace(/^--?/, ""))
      : /[/\\]|(file|path|kernel|initrd|dtb|firmware|splash)=/.test(word)
  );
}

/** What tells one QEMU program from another, its next version included. */
async function programFile(program: string) {
  const path = await findOnPath(program);
  if (!path) return undefined;
  const real = await Deno.realPath(path);
  return { path: real, ...await fingerprint(real) };
}

async function findOnPath(program: string): Promise<string | undefined> {
  const dirs = program.includes(SEPARATOR)
    ? [""]
    : (Deno.env.get("PATH") ?? "").split(":");
  for (const dir of dirs) {
    const path = dir ? join(dir, program) : program;
    if (await Deno.stat(path).then(({ isFile }) => isFile, () => false)) {
      return path;
    }
  }
  return undefined;
}

/** The processor and kernel that the guest may have seen through. */
function hostProcessor(): string | undefined {
  try {
    const model = cpus().at(0)?.model;
    return model &&
      `${Deno.build.arch} ${model}, ${Deno.build.os} ${Deno.osRelease()}`;
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) return undefined;
    throw error;
  }
}
