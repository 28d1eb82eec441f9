/**
 * How a machine is started, and what is known of it meanwhile.
 *
 * @module
 */
import type { SnapshotFiles, SnapshotStaging } from "../cache/snapshots.ts";
import type { BootReadyEvent, Emit } from "../events.ts";
import type { PortClaim, SetUpShell } from "../guest/waiting_shell.ts";
import type {
  Machine,
  MachinePlan,
  StartMachineOptions,
} from "../qemu/machine.ts";
import type { BootOptions } from "./options.ts";
import type { SnapshotSlot } from "./_snapshot.ts";
import type { Typing } from "./_typing.ts";

/** How a machine is started. */
export interface Course {
  /** The machine. */
  plan: MachinePlan;
  /** What the caller chose. */
  options: BootOptions;
  /** Takes events. */
  emit: Emit;
  /** Measures the start. */
  clock: Clock;
  /** The slot of its snapshot, if it can have one. */
  slot?: SnapshotSlot;
  /** Where to save it. */
  staging?: SnapshotStaging;
  /** What is restored; `undefined` for a boot. */
  files?: SnapshotFiles;
  /** The machine that was saved just now: this one goes on in its place. */
  saved?: Saved;
}

/** A machine that was saved, and ends then. */
export interface Saved {
  /** The machine that goes on in its place. */
  successor: StartedMachine;
  /** When it was stopped for that, as `performance.now()` has it. */
  stopped: number;
  /** Which agent had answered. */
  agent: string | undefined;
}

/** A QEMU that answers. */
export interface StartedMachine {
  /** It. */
  machine: Machine;
  /** What it was started with. */
  qemu: StartMachineOptions;
}

/** A machine that is being started. */
export interface Start extends Course, StartedMachine {
  /** What is typed into its console. */
  typing: Typing;
  /** Directories that the guest may have written to. */
  exported?: string[];
  /** The ports that a restored machine has for its waiting shell. */
  claim?: PortClaim;
  /** A shell that waits in the guest. */
  waiting?: SetUpShell;
  /** Starts the QEMU that goes on with what is saved. */
  startSuccessor(): Promise<StartedMachine>;
  /** It, once it was started. */
  successor?: Promise<StartedMachine>;
}

/** This way to save a machine does not work here; another may. */
export class NotSavable extends Error {}

/** Nothing can be saved here, whatever the way: there is no room, for instance. */
export class NoPlaceError extends NotSavable {}

/** Measures the phases of a start, in whole milliseconds. */
export interface Clock {
  /** What was measured so far. */
  phases: BootReadyEvent["phases"];
  /** Ends a phase: the time since the one before is added to it. */
  lap(phase: keyof BootReadyEvent["phases"]): void;
}

/** Starts to measure. */
export function startClock(): Clock {
  const phases = { start: 0, guest: 0, save: 0, attach: 0 };
  let last = performance.now();
  return {
    phases,
    lap(phase) {
      const now = performance.now();
      phases[phase] += Math.round(now - last);
      last = now;
    },
  };
}

/**
 * Says why something failed, in one line, without the end of a console that
 * showed nothing yet.
 *
 * @param error What was thrown.
 */
export function reasonOf(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.split(/\n|; its console /)[0];
}
