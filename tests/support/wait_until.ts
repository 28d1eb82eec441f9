/** Polls until a condition is true. */
import { sleep } from "../../lib/system/time.ts";

/** Fails after this time, even on a slow host. */
const NEVER_MS = 600_000;

/**
 * Polls until a condition is true.
 *
 * @param what Describes the condition in the error; a function describes the state.
 * @param ready The condition.
 * @param everyMs Pause between two polls, in milliseconds.
 * @throws {Error} After ten minutes.
 */
export async function waitUntil(
  what: string | (() => string),
  ready: () => boolean | Promise<boolean>,
  everyMs = 20,
): Promise<void> {
  const begun = performance.now();
  while (!await ready()) {
    if (performance.now() - begun > NEVER_MS) {
      throw new Error(typeof what === "string" ? `never: ${what}` : what());
    }
    await sleep(everyMs);
  }
}
