/**
 * Makes a running machine from its parts.
 *
 * @module
 */
import { settlesWithin, timeLimit } from "../system/time.ts";
import { commandsOf } from "./_commands.ts";
import type { StopOptions, Vm, VmParts } from "./vm.ts";

const ASK_MS = 3_000;
const QUIT_MS = 5_000;

/**
 * Makes a machine from its parts.
 *
 * @param parts What differs between machines that are booted here and shared.
 * @returns The machine; what disposing it means is for the caller to add.
 */
export function makeVm(parts: VmParts): Omit<Vm, keyof AsyncDisposable> {
  const { facts } = parts;
  let stopping: Promise<void> | undefined;
  return {
    facts,
    ended: parts.ended,
    ...commandsOf(parts),
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

/** Asks the guest, then QEMU, then the system to end the machine. */
async function end(
  parts: VmParts,
  { graceMs = parts.graceMs, signal }: StopOptions,
): Promise<void> {
  const { monitor, ended, emit } = parts;
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
  await parts.cleanUp(signal);
  const elapsedMs = Math.round(performance.now() - begun);
  emit({ type: "shutdown", how, elapsedMs });
}
