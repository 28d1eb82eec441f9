/**
 * Runs commands in a machine, between the events that say so, and brings back
 * what they have written to a copy of an export.
 *
 * @module
 */
import { nextCommandId } from "../events.ts";
import { copyFromGuest } from "../guest/copy.ts";
import { execInGuest, type ExecLimits } from "../guest/exec.ts";
import { execOnTerminal, type TerminalResult } from "../guest/terminal.ts";
import { join } from "../path.ts";
import { VmDisconnectedError } from "../qemu/errors.ts";
import { HALT_QUERIES, haltOfAnswers } from "../qemu/halt.ts";
import { MACHINE_FILES } from "../qemu/machine_dir.ts";
import { lock } from "../system/lock.ts";
import { abortable, settlesWithin, timeLimit } from "../system/time.ts";
import { leftOut } from "./_left_out.ts";
import { surroundings } from "./_surroundings.ts";
import type { Vm, VmParts } from "./vm.ts";

const ASK_MS = 3_000;
/** A machine that ends takes the connections to it along a bit earlier. */
const NOTICE_MS = 1_000;
const ALL_PORTS_IN_USE =
  "The machine runs as many commands as it can: waiting until one has ended";

/**
 * Makes what runs commands in a machine.
 *
 * @param parts The machine.
 */
export function commandsOf(parts: VmParts): Pick<Vm, "exec" | "terminal"> {
  const { facts, monitor, waiting, emit } = parts;
  // A guest that stands still does not end its commands. One listener serves all
  // of them: each that waited for the promise would be kept as long as it.
  const halt = new AbortController();
  parts.halted?.then((error) => halt.abort(error));
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
    exec: (command, options = {}) =>
      reported(
        command,
        options,
        async (signal) =>
          await execInGuest(monitor, command, {
            ...options,
            ...await surroundings(facts.shares, options),
            ...{ onWait, waiting, signal, timeoutMs: undefined },
          }),
      ),
    terminal: (command, options) =>
      reported(
        command,
        options,
        async (signal) =>
          await execOnTerminal(monitor, command, {
            ...options,
            ...await surroundings(facts.shares, options),
            ...{ onWait, signal, timeoutMs: undefined },
          }),
      ),
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
      stagingDir: facts.dir,
      signal,
    });
    const warn = (what: string) =>
      emit({ type: "warning", message: `The export ${share.tag} ${what}` });
    if (changed) warn(`changed while it was brought back: ${changed}`);
    if (refused.count === 0) continue;
    warn(`has what a host must not take${leftOut(refused)}`);
  }
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
