/**
 * Runs a short script in the guest by its agent alone.
 *
 * @module
 */
import type { ToolsmithError } from "../errors.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { sleep } from "../system/time.ts";
import { type ProcessStatus, readPid, readStatus } from "./_answers.ts";

/** What {@linkcode runScript} takes. */
export interface RunScriptOptions {
  /** Time that it may take, in milliseconds, and what is thrown then. @default {undefined} no limit */
  limit?: { ms: number; late: () => ToolsmithError };
  /** Longest pause between two looks, in milliseconds. @default {20} */
  pauseMs?: number;
  /** Gives up when aborted. */
  signal?: AbortSignal;
}

const FIRST_PAUSE_MS = 5;
const LONGEST_PAUSE_MS = 20;

/**
 * Runs a script to its end.
 *
 * @param monitor The machine.
 * @param words The script, `$0`, and its arguments.
 * @param options How long it may take: a hostile agent never says that it is over.
 * @returns How it ended, and what it printed.
 */
export async function runScript(
  monitor: Monitor,
  words: string[],
  options: RunScriptOptions,
): Promise<ProcessStatus> {
  const { limit, pauseMs = LONGEST_PAUSE_MS, signal } = options;
  const pid = readPid(
    await monitor.agent(["guest-exec", {
      path: "/bin/sh",
      arg: ["-c", ...words],
      "capture-output": true,
    }], signal),
  );
  const begun = performance.now();
  let pause = FIRST_PAUSE_MS;
  while (true) {
    if (limit && performance.now() - begun >= limit.ms) throw limit.late();
    await sleep(pause, signal);
    const answer = await monitor.agent(["guest-exec-status", { pid }], signal);
    const status = readStatus(answer);
    if (status.exited) return status;
    pause = Math.min(pause * 2, pauseMs);
  }
}
