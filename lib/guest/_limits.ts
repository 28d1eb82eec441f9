/**
 * What ends a command besides itself: time, the caller, a guest that fails.
 *
 * @module
 */
import type { Monitor } from "../qemu/monitor.ts";
import { VmDisconnectedError } from "../qemu/errors.ts";
import { sleep } from "../system/time.ts";
import { readStatus } from "./_answers.ts";

/** When a command has to end. */
export interface ExecLimits {
  /** Time the command may take, in milliseconds. @default {Infinity} */
  timeoutMs?: number;
  /** Time between TERM and KILL at its end, in milliseconds. @default {2000} */
  killAfterMs?: number;
  /** Stops the command when aborted. */
  signal?: AbortSignal;
}

/** What {@linkcode endOnAbort} takes. */
export interface EndOnAbortOptions {
  /** Ends the command when aborted. */
  signal: AbortSignal;
  /** Time between TERM and KILL, in milliseconds. @default {2000} */
  killAfterMs?: number;
}

/** Watches over the end of a command. */
export interface AbortWatch extends Disposable {
  /** Settles when a command that had to end has not done so. */
  givenUp: Promise<void>;
}

/** Notices that a command cannot report its end any more. */
export interface ShellWatch extends Disposable {
  /** Rejects when the shell around the command is gone. */
  lost: Promise<never>;
}

/** The agent is asked this often whether the command's shell still lives. */
const ALIVE_MS = 3_000;
const KILL_AFTER_MS = 2_000;
/** After KILL, a guest that does not even kill is not waited for. */
const GIVE_UP_MS = 2_000;

/**
 * Ends a command when a signal is aborted, in two steps.
 *
 * @param kill Sends a signal's name to the command's process group.
 * @param options When it has to end.
 * @returns The watch; disposing it stops watching.
 */
export function endOnAbort(
  kill: (signal: "TERM" | "KILL") => void,
  { signal, killAfterMs = KILL_AFTER_MS }: EndOnAbortOptions,
): AbortWatch {
  const givenUp = Promise.withResolvers<void>();
  const timers: ReturnType<typeof setTimeout>[] = [];
  const end = () => {
    kill("TERM");
    timers.push(setTimeout(() => kill("KILL"), killAfterMs));
    timers.push(setTimeout(givenUp.resolve, killAfterMs + GIVE_UP_MS));
  };
  // It may have been aborted while the command was started.
  if (signal.aborted) end();
  else signal.addEventListener("abort", end, { once: true });
  return {
    givenUp: givenUp.promise,
    [Symbol.dispose]() {
      timers.forEach((timer) => clearTimeout(timer));
      signal.removeEventListener("abort", end);
    },
  };
}

/**
 * Notices when the shell around a command is gone without a word.
 *
 * @param monitor The machine.
 * @param pid The shell, as the guest agent knows it.
 * @returns The watch; disposing it stops watching.
 */
export function watchShell(monitor: Monitor, pid: number): ShellWatch {
  const stop = new AbortController();
  const { signal } = stop;
  const lost = (async (): Promise<never> => {
    while (true) {
      await sleep(ALIVE_MS, signal);
      const answer = await monitor.agent(
        ["guest-exec-status", { pid }],
        signal,
      );
      if (readStatus(answer).exited) break;
    }
    // The last bytes may still be on their way.
    await sleep(ALIVE_MS, signal);
    throw new VmDisconnectedError();
  })();
  // It may fail after the command has reported its end.
  lost.catch(() => {});
  return { lost, [Symbol.dispose]: () => stop.abort() };
}
