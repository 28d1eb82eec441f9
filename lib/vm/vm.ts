/** A running VM, booted by this process or detached and shared by several. */
import type { ExecOptions, ExecResult } from "../guest/exec.ts";
import type { TerminalOptions, TerminalResult } from "../guest/terminal.ts";
import type { Accelerator } from "../qemu/accelerator.ts";
import type { GuestShare } from "../qemu/args.ts";

/** Facts about a running VM. */
export interface VmFacts {
  /** Absolute path of the image. */
  image: string;
  /** Process id of QEMU. */
  pid: number;
  /** Directory of the VM's sockets. */
  dir: string;
  /** Version of QEMU. */
  version: string;
  /** Accelerator that runs the guest. */
  accelerator: Accelerator;
  /** Memory, in MiB. */
  memory: number;
  /** Number of processors. */
  cpus: number;
  /** Host directories that are mounted or copied in the guest. */
  shares: GuestShare[];
  /** Has the guest a network? */
  network: boolean;
}

/** How {@linkcode Vm.stop} ends a VM. */
export interface StopOptions {
  /**
   * Time for the guest to power down, in milliseconds. With 0 it is not powered down,
   * and recent writes to a kept disk may be lost.
   *
   * @default {10_000} with an overlay, else 0
   */
  graceMs?: number;
  /** Ends the wait when aborted; the VM may then run on. */
  signal?: AbortSignal;
}

/**
 * A running VM. Disposing it stops a VM that this process has booted, and disconnects
 * from a detached one.
 */
export interface Vm extends AsyncDisposable {
  /** The VM's image, size, process and directories. */
  readonly facts: VmFacts;
  /** Settles when the VM has ended, by itself or by a stop. */
  readonly ended: Promise<void>;
  /**
   * Runs a command in the guest; several may run at once.
   *
   * @param command Name of a program on the guest's PATH, or its path.
   * @param options Arguments, streams, limits.
   * @returns Exit status and output. A failed command is a result, not an error.
   * @throws {ToolsmithError} `command_not_found`, `timeout`, `guest_failed`,
   * `guest_panicked`, `guest_not_ready`, `usage`.
   * @throws The signal's reason when it is aborted.
   */
  exec(command: string, options?: ExecOptions): Promise<ExecResult>;
  /**
   * Runs an interactive command on a terminal in the guest; three may run at once.
   *
   * @param command Name of a program on the guest's PATH, or its path.
   * @param options The host's terminal; arguments, limits.
   * @returns Exit status and output. A failed command is a result, not an error.
   * @throws {ToolsmithError} What {@linkcode Vm.exec} throws.
   * @throws The signal's reason when it is aborted.
   */
  terminal(command: string, options: TerminalOptions): Promise<TerminalResult>;
  /**
   * Stops the VM and waits for its end. Safe to repeat.
   *
   * @param options Grace period and signal.
   * @throws The signal's reason when it is aborted.
   */
  stop(options?: StopOptions): Promise<void>;
}

/** A VM that this process has booted. Disposing it stops the VM. */
export interface BootedVm extends Vm {
  /** Does this process serve the guest's network? @default {false} */
  readonly needsThisProcess?: boolean;
  /**
   * Lets the VM outlive this process, which cannot use it afterwards. `detachVm` does
   * this and saves a record of the VM.
   */
  leaveRunning(): Promise<void>;
}
