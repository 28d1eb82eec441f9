/**
 * Limits how long a guest may take to be ready by what it does: one that is slow
 * and works is waited for, one that shows and reads nothing is not.
 *
 * @module
 */
import type { Machine } from "../qemu/machine.ts";
import { sleep } from "../system/time.ts";
import type { Start } from "./_course.ts";

/** The guest is not waited for any longer: for how long it was, and what it did. */
export class NoProgress extends Error {
  constructor(readonly seconds: number, readonly done: string) {
    super(`not ready within ${seconds} s; ${done}`);
  }
}

/** Without progress, and in all: a guest may print without end. */
const BOOT = { idleMs: 120_000, totalMs: 1_800_000 };
/** A restored guest answers at once, or never; many at once take their time. */
const RESTORE = { idleMs: 60_000, totalMs: 300_000 };
/** Who has the console sees the progress, and may end the guest there. */
const CONSOLE_MS = 120_000;
const LOOK_MS = 5000;

/**
 * Watches console, agent and disk of a guest until it is disposed.
 *
 * @param start The machine.
 * @param now The time in milliseconds.
 * @returns A signal that aborts with `NoProgress`, or with the caller's reason.
 */
export function watchProgress(start: Start, now = () => performance.now()) {
  const { machine, options: { signal } } = start;
  const { idleMs, totalMs } = limitsOf(start);
  const [late, stop] = [new AbortController(), new AbortController()];
  const begun = now();
  let [last, seen, read] = [begun, "", 0];
  const watch = async () => {
    while (true) {
      const left = Math.min(begun + totalMs, last + idleMs) - now();
      if (left <= 0) break;
      await sleep(Math.min(left, LOOK_MS), stop.signal);
      read = await bytesRead(machine).catch(() => read);
      const before = seen;
      seen = `${machine.consoleBytes()} ${machine.agentSeen()} ${read}`;
      if (seen !== before) last = now();
    }
    const isIdle = now() - begun < totalMs;
    const ms = isIdle ? now() - begun : totalMs;
    const idle = isIdle ? `, then did nothing for ${idleMs / 1000} s` : "";
    const mib = (read / 2 ** 20).toFixed(1);
    const done = `the guest read ${mib} MiB of its disk${idle}`;
    late.abort(new NoProgress(Math.round(ms / 10) / 100, done));
  };
  const watched = watch().catch(() => {});
  return {
    signal: signal ? AbortSignal.any([signal, late.signal]) : late.signal,
    async [Symbol.asyncDispose]() {
      stop.abort();
      await watched;
    },
  };
}

function limitsOf({ options, files }: Start) {
  const { agentOptional, bootTimeoutMs } = options;
  if (files) {
    const totalMs = Math.min(bootTimeoutMs ?? Infinity, RESTORE.totalMs);
    return { ...RESTORE, totalMs };
  }
  const totalMs = bootTimeoutMs ?? (agentOptional ? CONSOLE_MS : undefined);
  return totalMs === undefined ? BOOT : { idleMs: Infinity, totalMs };
}

/** How much of its disks the guest has read (QEMU's QMP reference, BlockStats). */
async function bytesRead({ qmp }: Machine): Promise<number> {
  const [answer] = await qmp.send(["query-blockstats"]);
  return (answer as { stats: { rd_bytes: number } }[])
    .reduce((sum, { stats }) => sum + stats.rd_bytes, 0);
}
