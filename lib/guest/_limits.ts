/**
 * What ends a command besides itself: time, the caller, a guest that fails.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { VmDisconnectedError } from "../qemu/errors.ts";

/** When a command has to end. */
export interface ExecLimits {
  /** Time the command may take, in milliseconds. @default {Infinity} */
  timeoutMs?: number;
  /** Time between TERM and KILL at its end, in milliseconds. @default {2000} */
  killAfterMs?: number;
  /** Stops the command when aborted. */
  signal?: AbortSignal;
}

/** Watches over the end of a command. */
export interface LimitWatch {
  /** Settles when a command that had to end has not done so. */
  expired: Promise<void>;
  /** Throws what ended the command, if something did. */
  check(): void;
  /** Stops watching. */
  clear(): void;
}

/** Notices that a command cannot tell its end any more. */
export interface ShellWatch {
  /** Rejects when the shell around the command is gone. */
  lost: Promise<never>;
  /** Stops watching. */
  clear(): Promise<void>;
}

/** The agent is asked this often whether the command's shell still lives. */
const ALIVE_MS = 3_000;
/** After KILL, a guest that does not even kill is not waited for. */
const PATIENCE_MS = 2_000;

/**
 * Ends a command when its time is over or the caller wants it.
 *
 * @param kill Sends a signal's name to the command's process group.
 * @param limits When it has to end.
 * @returns The watch.
 */
export function watchLimits(
  kill: (signal: string) => void,
  limits: ExecLimits,
): LimitWatch {
  const { timeoutMs = Infinity, killAfterMs = 2000, signal } = limits;
  const expired = Promise.withResolvers<void>();
  const timers: ReturnType<typeof setTimeout>[] = [];
  let late = false;
  const end = () => {
    kill("TERM");
    timers.push(setTimeout(() => kill("KILL"), killAfterMs));
    timers.push(setTimeout(expired.resolve, killAfterMs + PATIENCE_MS));
  };
  if (Number.isFinite(timeoutMs)) {
    timers.push(setTimeout(() => {
      late = true;
      end();
    }, timeoutMs));
  }
  signal?.addEventListener("abort", end, { once: true });
  // It may have come while the command was started.
  if (signal?.aborted) end();
  return {
    expired: expired.promise,
    check() {
      signal?.throwIfAborted();
      if (!late) return;
      throw new ToolsmithError(
        "timeout",
        `The command did not end within ${timeoutMs / 1000} s`,
        { hint: "allow more: --timeout SECONDS" },
      );
    },
    clear() {
      timers.forEach((timer) => clearTimeout(timer));
      signal?.removeEventListener("abort", end);
    },
  };
}

/**
 * Notices when the shell around a command is gone without a word.
 *
 * @param monitor The machine.
 * @param pid The shell, as the guest agent knows it.
 * @returns The watch.
 */
export function watchShell(monitor: Monitor, pid: number): ShellWatch {
  const lost = Promise.withResolvers<never>();
  lost.promise.catch(() => {});
  let timer: ReturnType<typeof setTimeout>;
  let over = false;
  let asking: Promise<void> = Promise.resolve();
  const ask = async () => {
    const status = await monitor.agent(["guest-exec-status", { pid }]);
    if (over) return;
    // The last bytes may still be on their way.
    if ((status as { exited: boolean }).exited) {
      timer = setTimeout(
        () => lost.reject(new VmDisconnectedError()),
        ALIVE_MS,
      );
    } else later();
  };
  const later = () => {
    timer = setTimeout(() => asking = ask().catch(lost.reject), ALIVE_MS);
  };
  later();
  return {
    lost: lost.promise,
    clear() {
      over = true;
      clearTimeout(timer);
      return asking;
    },
  };
}
