/**
 * A running machine, to run commands in: one that this process has booted, or
 * one that several processes share.
 *
 * @module
 */
import type { Emit } from "../events.ts";
import type { ExecOptions, ExecResult } from "../guest/exec.ts";
import type { TerminalOptions, TerminalResult } from "../guest/terminal.ts";
import type { WaitingShell } from "../guest/waiting_shell.ts";
import type { Accelerator } from "../qemu/accelerator.ts";
import type { GuestShare } from "../qemu/args.ts";
import type { Monitor } from "../qemu/monitor.ts";

/** What a machine is, as far as others need to know. */
export interface VmFacts {
  /** Absolute path of the image. */
  image: string;
  /** The QEMU process. */
  pid: number;
  /** The directory of its sockets. */
  dir: string;
  /** QEMU's version. */
  version: string;
  /** How the guest's instructions are run. */
  accelerator: Accelerator;
  /** Memory, in MiB. */
  memory: number;
  /** Count of processors. */
  cpus: number;
  /** Directories of the host that are mounted in the guest. */
  shares: GuestShare[];
  /** Has the guest a network? */
  network: boolean;
}

/** How {@linkcode Vm.stop} ends a machine. */
export interface StopOptions {
  /**
   * Time that the guest may take to power down, in milliseconds. With 0 it is
   * not asked: what it wrote to a disk that is kept may be lost.
   *
   * @default {10_000} for a disk that is kept, else 0
   */
  graceMs?: number;
  /** Ends the wait when aborted; the machine may run on then. */
  signal?: AbortSignal;
}

/**
 * A running machine. Disposing it ends what this process has of it: one that it
 * has booted is stopped, one that is shared goes on for the others.
 */
export interface Vm extends AsyncDisposable {
  /** What the machine is. */
  readonly facts: VmFacts;
  /** Settles when the machine has ended, by itself or by a stop. */
  readonly ended: Promise<void>;
  /**
   * Runs a command in the guest; several may run at once.
   *
   * @param command Its name, found on the guest's PATH, or its path.
   * @param options Arguments, streams, limits.
   * @returns How it ended. A failure of the command is a result, not an error.
   * @throws {ToolsmithError} `command_not_found`, `timeout`, `guest_failed`,
   * `guest_panicked`, `guest_not_ready`, `usage`.
   * @throws The signal's reason when it is aborted.
   */
  exec(command: string, options?: ExecOptions): Promise<ExecResult>;
  /**
   * Runs a command on a terminal in the guest, for a person; three may run at
   * once.
   *
   * @param command Its name, found on the guest's PATH, or its path.
   * @param options The terminal here; arguments, limits.
   * @returns How it ended. A failure of the command is a result, not an error.
   * @throws {ToolsmithError} What {@linkcode Vm.exec} throws.
   * @throws The signal's reason when it is aborted.
   */
  terminal(command: string, options: TerminalOptions): Promise<TerminalResult>;
  /**
   * Ends the machine, and waits for that. Safe to repeat.
   *
   * @param options How long the guest may take.
   * @throws The signal's reason when it is aborted.
   */
  stop(options?: StopOptions): Promise<void>;
}

/** A machine that this process has booted. Disposing it stops it. */
export interface BootedVm extends Vm {
  /**
   * Lets the machine live on when this process ends. It is of no use here
   * afterwards; `detach` does this, and writes down where it is.
   */
  release(): Promise<void>;
}

/** What `makeVm` puts together. */
export interface VmParts {
  /** What the machine is. */
  facts: VmFacts;
  /** Talks to QEMU and to the guest agent. */
  monitor: Monitor;
  /** A shell that waits for the first command. */
  waiting?: WaitingShell;
  /** Settles when QEMU has ended. Never rejects. */
  ended: Promise<void>;
  /** Settles when the guest stands still for good: with the reason. */
  halted?: Promise<Error>;
  /** The default for {@linkcode StopOptions.graceMs}. */
  graceMs: number;
  /** Says why the machine has ended, where that is known. */
  failure: () => Promise<Error | undefined>;
  /** Ends QEMU by force, and waits for that. */
  kill: () => Promise<void>;
  /** Releases all that is held, and cleans the exports, once QEMU has ended. */
  cleanUp: (signal?: AbortSignal) => Promise<void>;
  /** Takes the machine's events. */
  emit: Emit;
}
