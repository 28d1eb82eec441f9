/**
 * A running machine, to run commands in: one that this process has booted, or
 * one that several processes share.
 *
 * @module
 */
import type { Accelerator } from "../qemu/accelerator.ts";
import { WORKSPACE_TAG } from "./shares.ts";
import { type Emit, nextCommandId } from "../events.ts";
import { lock } from "../system/lock.ts";
import { abortable, settlesWithin, timeLimit } from "../system/time.ts";
import {
  execInGuest,
  type ExecOptions,
  type ExecResult,
} from "../guest/exec.ts";
import type { ExecLimits } from "../guest/exec.ts";
import { copyFromGuest } from "../guest/copy.ts";
import { join } from "../path.ts";
import { MACHINE_FILES } from "../qemu/machine_dir.ts";
import { leftOut } from "./_left_out.ts";
import {
  execOnTerminal,
  type TerminalOptions,
  type TerminalResult,
} from "../guest/terminal.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { VmDisconnectedError } from "../qemu/errors.ts";
import type { GuestShare } from "../qemu/args.ts";
import { HALT_QUERIES, haltOfAnswers } from "../qemu/halt.ts";
import { clearSetIdBits } from "./_set_id.ts";

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

/** What {@linkcode makeVm} puts together. */
export interface VmParts {
  /** What the machine is. */
  facts: VmFacts;
  /** Talks to QEMU and to the guest agent. */
  monitor: Monitor;
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
  /** Releases all that is held, once QEMU has ended. */
  cleanUp: () => Promise<void>;
  /** Takes the machine's events. */
  emit: Emit;
}

const ASK_MS = 3_000;
const QUIT_MS = 5_000;
/** A machine that ends takes the connections to it along a bit earlier. */
const NOTICE_MS = 1_000;
const ALL_PORTS_IN_USE =
  "The machine runs as many commands as it can: waiting until one has ended";

/**
 * Makes a machine from its parts.
 *
 * @param parts What differs between machines that are booted here and shared.
 * @returns The machine; what disposing it means is for the caller to add.
 */
export function makeVm(parts: VmParts): Omit<Vm, keyof AsyncDisposable> {
  const { facts, monitor, emit } = parts;
  // A guest that stands still does not end its commands. One listener serves all
  // of them: each that waited for the promise would be kept as long as it.
  const halt = new AbortController();
  parts.halted?.then((error) => halt.abort(error));
  let stopping: Promise<void> | undefined;
  const onWait = () => emit({ type: "warning", message: ALL_PORTS_IN_USE });
  /** Runs a command between the events that say so. */
  const reported = async <Result extends TerminalResult>(
    command: string,
    options: ExecLimits,
    run: (signal: AbortSignal) => Promise<Result>,
  ): Promise<Result> => {
    const { timeoutMs = Infinity, signal } = options;
    const id = nextCommandId();
    const begun = performance.now();
    emit({ type: "command_dispatch", id, command, backend: "qemu" });
    using limit = timeLimit(timeoutMs, "The command", signal);
    const work = async () => {
      const result = await run(limit.signal);
      try {
        await bringBack(parts, limit.signal);
      } finally {
        const { code, signal: endedBy, stdoutBytes, stderrBytes } = result;
        const elapsedMs = Math.round(performance.now() - begun);
        const how = { code, signal: endedBy, stdoutBytes, stderrBytes };
        emit({ type: "command_end", id, ...how, elapsedMs });
      }
      return result;
    };
    try {
      return await abortable(work(), halt.signal);
    } catch (error) {
      throw await explain(parts, error);
    }
  };
  return {
    facts,
    ended: parts.ended,
    exec(command, options = {}) {
      const cwd = guestDir(facts, options.cwd);
      return reported(
        command,
        options,
        (signal) =>
          execInGuest(monitor, command, {
            ...options,
            ...{ cwd, onWait, signal, timeoutMs: undefined },
          }),
      );
    },
    terminal(command, options) {
      const cwd = guestDir(facts, options.cwd);
      return reported(
        command,
        options,
        (signal) =>
          execOnTerminal(monitor, command, {
            ...options,
            ...{ cwd, onWait, signal, timeoutMs: undefined },
          }),
      );
    },
    stop(options = {}) {
      // One that was given up may be tried again.
      stopping ??= end(parts, options).catch((error) => {
        stopping = undefined;
        throw error;
      });
      return stopping;
    },
  };
}

/** What was copied into the guest to be written there comes back. */
async function bringBack(
  { facts, monitor, emit }: VmParts,
  signal: AbortSignal,
) {
  const copies = facts.shares.filter((it) => it.copied && it.writable);
  if (copies.length === 0) return;
  // Commands that end together, of other processes as well, take turns.
  using _lock = await lock(join(facts.dir, MACHINE_FILES.back), { signal });
  for (const share of copies) {
    const { refused, changed } = await copyFromGuest(monitor, share, {
      signal,
    });
    const warn = (what: string) =>
      emit({ type: "warning", message: `The export ${share.tag} ${what}` });
    if (changed) warn(`changed while it was brought back: ${changed}`);
    if (refused.count === 0) continue;
    warn(`has what a host must not take${leftOut(refused)}`);
  }
}

/** A relative directory is one of the workspace. */
function guestDir({ shares }: VmFacts, cwd = ""): string {
  if (cwd.startsWith("/")) return cwd;
  const workspace = shares.some(({ tag }) => tag === WORKSPACE_TAG);
  return (workspace ? `/mnt/${WORKSPACE_TAG}` : "") + `/${cwd}`;
}

/**
 * A broken connection says little where the machine itself has ended, and an
 * agent's silence where QEMU has stopped the guest.
 */
async function explain(parts: VmParts, error: unknown): Promise<unknown> {
  if (error instanceof VmDisconnectedError) {
    if (!await settlesWithin(parts.ended, NOTICE_MS)) return error;
    return await parts.failure() ?? error;
  }
  const { code } = error as { code?: unknown };
  if (code !== "guest_failed" && code !== "timeout") return error;
  using limit = timeLimit(ASK_MS, "query-status");
  const answers = await parts.monitor.qemu(HALT_QUERIES, limit.signal)
    .catch(() => []);
  return haltOfAnswers(answers) ?? error;
}

/** Asks the guest, then QEMU, then the system to end the machine. */
async function end(
  parts: VmParts,
  { graceMs = parts.graceMs, signal }: StopOptions,
): Promise<void> {
  const { facts, monitor, ended, emit } = parts;
  const begun = performance.now();
  const ask = async (command: string) => {
    // Another process may hold the monitor, and hang.
    using limit = timeLimit(ASK_MS, command, signal);
    await monitor.qemu([[command]], limit.signal).catch(() => {});
    signal?.throwIfAborted();
  };
  let how: "powered_down" | "stopped" | "killed" = "powered_down";
  let over = await settlesWithin(ended, 0);
  if (!over && graceMs > 0) {
    await ask("system_powerdown");
    over = await settlesWithin(ended, graceMs, { signal });
  }
  if (!over) {
    how = "stopped";
    await ask("quit");
    over = await settlesWithin(ended, QUIT_MS, { signal });
  }
  if (!over) {
    how = "killed";
    await parts.kill();
  }
  await monitor[Symbol.asyncDispose]();
  await parts.cleanUp();
  await clearSetIdBits(facts.shares);
  const elapsedMs = Math.round(performance.now() - begun);
  emit({ type: "shutdown", how, elapsedMs });
}
