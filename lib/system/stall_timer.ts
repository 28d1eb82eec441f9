/** Aborts a transfer that makes no progress. */
import { ToolsmithError } from "../errors.ts";
import { type Deadline, startDeadline } from "./time.ts";

const STALL_TIMEOUT_MS = 60_000;
const OPTIONAL_REQUEST_TIMEOUT_MS = 10_000;

export interface StallTimerOptions {
  /** Time without progress before the abort, in milliseconds. @default {60_000} */
  stallTimeoutMs?: number;
  /** Aborts the transfer too, with its own reason. */
  signal?: AbortSignal;
}

/**
 * Starts the stall timer of a transfer. Its signal aborts with `transfer_stalled` on a
 * stall, or with the reason of the caller's signal; `restart()` reports progress.
 * `action` completes the message "Cannot …", such as "download ghcr.io".
 */
export function startStallTimer(
  action: string,
  { stallTimeoutMs: ms = STALL_TIMEOUT_MS, signal }: StallTimerOptions,
): Deadline {
  const message = `Cannot ${action}: no progress for ${ms / 1000} s`;
  const hint = "try again, or allow more time: --stall-timeout SECONDS";
  const stalled = () =>
    new ToolsmithError("transfer_stalled", message, { hint });
  return startDeadline(ms, stalled, signal);
}

/** Shortens the stall timeout to 10 s, for a request that may fail. */
export function withOptionalRequestTimeout<T extends StallTimerOptions>(
  options: T,
): T {
  const { stallTimeoutMs: ms = STALL_TIMEOUT_MS } = options;
  const stallTimeoutMs = Math.min(ms, OPTIONAL_REQUEST_TIMEOUT_MS);
  return { ...options, stallTimeoutMs };
}
