/**
 * Which agent has answered in a guest that was booted, and whether the guest has
 * done all that its first boot has to do.
 *
 * @module
 */
import { RefusedError } from "../qemu/errors.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { oneLine } from "../system/text.ts";
import { runScript } from "./_script.ts";
import { SEED_AGENT } from "./_seed_agent.ts";

/** Written where systemd has found that cloud-init is to run. */
const ENABLED = "/run/cloud-init/enabled";
const DONE = "/run/cloud-init/result.json";
const PAUSE_MS = 200;

/**
 * Asks the agent who it is. An image's own may answer before cloud-init has made
 * the users and files that commands rely on: that is waited for.
 *
 * @param monitor The machine; its agent has answered.
 * @param signal Ends the wait when aborted.
 * @returns Such as `qemu-ga 7.2.22`, or `toolsmith`; `undefined` where it does not
 * say.
 * @throws The signal's reason when it is aborted.
 */
export async function meetAgent(
  monitor: Monitor,
  signal?: AbortSignal,
): Promise<string | undefined> {
  const info = await unlessRefused(monitor.agent(["guest-info"], signal));
  const { version } = (info ?? {}) as { version?: unknown };
  // It has waited by itself.
  if (version === SEED_AGENT) return SEED_AGENT;
  await unlessRefused(cloudInitDone(monitor, signal));
  return typeof version === "string"
    ? `qemu-ga ${oneLine(version, 40)}`
    : undefined;
}

/** What an agent is not allowed to say is not known. */
async function unlessRefused(answer: Promise<unknown>): Promise<unknown> {
  try {
    return await answer;
  } catch (error) {
    if (error instanceof RefusedError) return undefined;
    throw error;
  }
}

async function cloudInitDone(monitor: Monitor, signal?: AbortSignal) {
  const script =
    `[ -e ${ENABLED} ] || exit 0; until [ -e ${DONE} ]; do sleep 0.2; done`;
  await runScript(monitor, [script], { signal, pauseMs: PAUSE_MS });
}
