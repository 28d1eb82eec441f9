/**
 * Makes a guest ready for commands: its clock, and the directories of the host.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { SETUP_SCRIPT } from "./_scripts.ts";
import type { Monitor } from "../qemu/monitor.ts";
import type { GuestShare } from "../qemu/args.ts";

/** What {@linkcode setUpGuest} does besides mounting. */
export interface SetUpOptions {
  /** Set the guest's clock to the host's: it stood still. @default {false} */
  clock?: boolean;
}

const LONGEST_PAUSE_MS = 20;
/** Said by the script when the guest's own `date` cannot set the clock. */
const NO_CLOCK = "clock";

/**
 * Mounts plugged-in directories in the guest, each at `/mnt/<tag>`, and sets its
 * clock. One command of the agent does all of it: each costs time.
 *
 * @param monitor The machine.
 * @param shares The directories.
 * @param options Whether to set the clock.
 * @throws {ToolsmithError} `guest_failed` with what `mount` said.
 */
export async function setUpGuest(
  monitor: Monitor,
  shares: GuestShare[],
  options: SetUpOptions = {},
): Promise<void> {
  const now = Date.now() / 1000;
  const clock = options.clock
    ? [now.toFixed(3), `${Math.round(now)}`]
    : ["", ""];
  const dirs = shares.flatMap(({ tag, writable }) => [
    tag,
    `/mnt/${tag}`,
    writable ? "rw" : "ro",
  ]);
  const { pid } = await monitor.agent(["guest-exec", {
    path: "/bin/sh",
    arg: ["-c", SETUP_SCRIPT, "sh", ...clock, ...dirs],
    "capture-output": true,
  }]) as { pid: number };
  const said = await ended(monitor, pid);
  if (said !== NO_CLOCK) return;
  // Slower, as it sets the machine's own clock too; some guests know only it.
  const time = Date.now() * 1_000_000;
  await monitor.agent(["guest-set-time", { time }]).catch(() => {});
}

/** Waits for the script, and returns what it said. */
async function ended(monitor: Monitor, pid: number): Promise<string> {
  for (let pause = 5;; pause = Math.min(pause * 2, LONGEST_PAUSE_MS)) {
    await new Promise((done) => setTimeout(done, pause));
    const status = await monitor.agent(["guest-exec-status", { pid }]) as {
      exited: boolean;
      exitcode?: number;
      "out-data"?: string;
    };
    if (!status.exited) continue;
    const said = atob(status["out-data"] ?? "").trim().slice(0, 300);
    if (status.exitcode === 0) return said;
    throw new ToolsmithError(
      "guest_failed",
      `The guest cannot mount a directory of the host: ${said || "no reason"}`,
      { hint: "its kernel needs 9p and 9pnet_virtio" },
    );
  }
}
