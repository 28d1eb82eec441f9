/**
 * Boot timeout that depends on the guest's activity: a slow guest is waited for, a guest
 * that prints nothing and reads nothing is not.
 */
import type { QemuProcess } from "../qemu/qemu_process.ts";
import { sleep } from "../system/time.ts";
import type { BootOptions } from "./boot_options.ts";

export class BootTimeoutError extends Error {
  constructor(readonly seconds: number, readonly guestActivity: string) {
    super(`not ready within ${seconds} s; ${guestActivity}`);
  }
}

export interface BootTimeouts {
  /** Longest time without activity, in milliseconds. */
  idleMs: number;
  /** Longest time in total, in milliseconds: a guest may print endlessly. */
  totalMs: number;
  signal?: AbortSignal;
}

const BOOT_TIMEOUTS = { idleMs: 120_000, totalMs: 1_800_000 };
/** A restored guest answers at once or never, but many that start at once are slow. */
const RESTORE_TIMEOUTS = { idleMs: 60_000, totalMs: 300_000 };
/** A user at the console sees the progress and can end the guest there. */
const CONSOLE_BOOT_TIMEOUT_MS = 120_000;
const PROGRESS_POLL_MS = 5000;

export function bootTimeouts(
  { agentOptional, bootTimeoutMs, signal }: BootOptions,
): BootTimeouts {
  const usualMs = agentOptional ? CONSOLE_BOOT_TIMEOUT_MS : undefined;
  const totalMs = bootTimeoutMs ?? usualMs;
  return totalMs === undefined
    ? { ...BOOT_TIMEOUTS, signal }
    : { idleMs: Infinity, totalMs, signal };
}

export function restoreTimeouts(
  { bootTimeoutMs = Infinity, signal }: BootOptions,
): BootTimeouts {
  const totalMs = Math.min(bootTimeoutMs, RESTORE_TIMEOUTS.totalMs);
  return { ...RESTORE_TIMEOUTS, totalMs, signal };
}

/**
 * Polls a guest's console, agent and disk for activity until disposed. The signal
 * aborts with `BootTimeoutError` or the caller's reason.
 */
export function watchBootProgress(
  qemu: QemuProcess,
  { idleMs, totalMs, signal }: BootTimeouts,
  now = () => performance.now(),
) {
  const [timeout, stop] = [new AbortController(), new AbortController()];
  const begun = now();
  let [activeAt, state, read] = [begun, "", 0];
  const watch = async () => {
    while (true) {
      const left = Math.min(begun + totalMs, activeAt + idleMs) - now();
      if (left <= 0) break;
      await sleep(Math.min(left, PROGRESS_POLL_MS), stop.signal);
      read = await queryDiskBytesRead(qemu).catch(() => read);
      const before = state;
      const printed = qemu.consoleByteCount();
      state = `${printed} ${qemu.agentHasConnected()} ${read}`;
      if (state !== before) activeAt = now();
    }
    const isIdle = now() - begun < totalMs;
    const ms = isIdle ? now() - begun : totalMs;
    const idle = isIdle ? `, then did nothing for ${idleMs / 1000} s` : "";
    const mib = (read / 2 ** 20).toFixed(1);
    const activity = `the guest read ${mib} MiB of its disk${idle}`;
    timeout.abort(new BootTimeoutError(Math.round(ms / 10) / 100, activity));
  };
  const watched = watch().catch(() => {});
  return {
    signal: signal ? AbortSignal.any([signal, timeout.signal]) : timeout.signal,
    async [Symbol.asyncDispose]() {
      stop.abort();
      await watched;
    },
  };
}

/** Bytes that the guest has read from its disks (QEMU's QMP reference, BlockStats). */
async function queryDiskBytesRead({ qmp }: QemuProcess): Promise<number> {
  const [answer] = await qmp.execute(["query-blockstats"]);
  return (answer as { stats: { rd_bytes: number } }[])
    .reduce((sum, { stats }) => sum + stats.rd_bytes, 0);
}
