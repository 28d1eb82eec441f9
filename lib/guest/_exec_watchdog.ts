/** Ends a command on abort, and detects a guest shell that has died. */
import type { Monitor } from "../qemu/monitor.ts";
import { VmDisconnectedError } from "../qemu/errors.ts";
import { abortable, sleep } from "../system/time.ts";
import { queryProcessStatus } from "./_agent_process.ts";

/** When a command is stopped. */
export interface ExecStopOptions {
  /** Timeout of the command, in milliseconds. @default {Infinity} */
  timeoutMs?: number;
  /** Time between TERM and KILL, in milliseconds. @default {2000} */
  killAfterMs?: number;
  /** Stops the command when aborted. */
  signal?: AbortSignal;
}

const SHELL_EXIT_POLL_MS = 3_000;
const TERM_TO_KILL_MS = 2_000;
/** The guest may not deliver even KILL. */
const WAIT_AFTER_KILL_MS = 2_000;

export interface WatchCommandOptions extends ExecStopOptions {
  signal: AbortSignal;
  /** Sends a signal to the command's process group. */
  kill: (signal: "TERM" | "KILL") => void;
}

/**
 * Sends TERM, then KILL, when the signal is aborted, and polls the shell around the
 * command, whose process id in the agent is `pid`. `failed` rejects with the signal's
 * reason when the command has not ended after KILL, and when the shell has exited
 * without sending its end marker. Disposing stops the watch.
 */
export function watchCommand(
  monitor: Monitor,
  pid: number,
  { signal, killAfterMs = TERM_TO_KILL_MS, kill }: WatchCommandOptions,
) {
  const stop = new AbortController();
  const either = AbortSignal.any([signal, stop.signal]);
  const endOnAbort = async (): Promise<never> => {
    await abortable(new Promise<never>(noop), either).catch(noop);
    stop.signal.throwIfAborted();
    kill("TERM");
    await sleep(killAfterMs, stop.signal);
    kill("KILL");
    await sleep(WAIT_AFTER_KILL_MS, stop.signal);
    throw signal.reason;
  };
  const detectShellExit = async (): Promise<never> => {
    do await sleep(SHELL_EXIT_POLL_MS, stop.signal); while (
      !(await queryProcessStatus(monitor, pid, stop.signal)).exited
    );
    // The last bytes may still be in transit.
    await sleep(SHELL_EXIT_POLL_MS, stop.signal);
    throw new VmDisconnectedError();
  };
  const failed = Promise.race([endOnAbort(), detectShellExit()]);
  // May reject after the command has ended.
  failed.catch(noop);
  return { failed, [Symbol.dispose]: () => stop.abort() };
}

function noop() {}
