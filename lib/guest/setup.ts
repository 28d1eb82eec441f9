/**
 * Makes a guest ready for commands: its clock, and the directories of the host.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import type { GuestShare } from "../qemu/args.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { oneLine } from "../system/text.ts";
import { runScript } from "./_script.ts";
import { PREPARE_SCRIPT, PROBE_TAG, SETUP_SCRIPT } from "./_setup_scripts.ts";
import type { SetUpShell } from "./waiting_shell.ts";

/** What {@linkcode setUpGuest} does besides mounting. */
export interface SetUpOptions {
  /** Set the guest's clock to the host's: it stood still. @default {false} */
  clock?: boolean;
  /** Find out whether the guest could mount a directory. @default {false} */
  probe?: boolean;
  /** A shell that waits in the guest. @default {undefined} there is none */
  waiting?: SetUpShell;
  /** Time that the guest may take, in milliseconds. @default {120_000} */
  timeoutMs?: number;
  /** Gives up when aborted. */
  signal?: AbortSignal;
}

/** The guest cannot mount a directory of the host: mostly for want of 9p. */
export class NoMountsError extends ToolsmithError {
  constructor(reason: string) {
    super(
      "guest_failed",
      `The guest cannot mount a directory of the host: ${reason}`,
      { hint: "its kernel needs 9p and 9pnet_virtio" },
    );
  }
}

const TIMEOUT_MS = 120_000;
/** Some guests wait for minutes for a network that is not there; in milliseconds. */
const SETTLE_MS = 30_000;
const PREPARE_PAUSE_MS = 100;
/** Written by the script when the guest's own `date` cannot set the clock. */
const NO_CLOCK = /^clock\n/m;

/**
 * Mounts plugged-in directories in the guest, each at `/mnt/<tag>`, and sets its
 * clock. One command of the agent does all of it: each costs time.
 *
 * @param monitor The machine.
 * @param shares The directories.
 * @param options Whether to set the clock, and when to give up.
 * @throws {NoMountsError} With what `mount` said.
 * @throws {ToolsmithError} `guest_failed` when that takes too long.
 * @throws The signal's reason when it is aborted.
 */
export async function setUpGuest(
  monitor: Monitor,
  shares: GuestShare[],
  options: SetUpOptions = {},
): Promise<void> {
  const { signal, waiting, timeoutMs = TIMEOUT_MS } = options;
  const now = Date.now() / 1000;
  const clock = options.clock
    ? [now.toFixed(3), `${Math.round(now)}`]
    : ["", ""];
  const probe = options.probe ? [PROBE_TAG, "/mnt", "ro"] : [];
  const dirs = shares.flatMap(({ tag, writable }) => [
    tag,
    `/mnt/${tag}`,
    writable ? "rw" : "ro",
  ]);
  const words = [...clock, ...probe, ...dirs];
  const late = () =>
    new ToolsmithError(
      "guest_failed",
      `The guest did not mount its directories within ${timeoutMs / 1000} s`,
      { hint: "its kernel needs 9p and 9pnet_virtio" },
    );
  const limit = { ms: timeoutMs, late };
  const { exitCode, output } = waiting
    ? await waiting.setUp(words, { signal, timeoutMs })
    : await runScript(monitor, [SETUP_SCRIPT, "sh", ...words], {
      signal,
      limit,
    });
  if (NO_CLOCK.test(output)) {
    // Slower, as it sets the machine's own clock too; some guests know only it.
    const time = Date.now() * 1_000_000;
    await monitor.agent(["guest-set-time", { time }], signal)
      .catch(() => signal?.throwIfAborted());
  }
  if (exitCode === 0) return;
  throw new NoMountsError(oneLine(output.replace(NO_CLOCK, "")) || "no reason");
}

/**
 * Lets a guest that is to be saved come to rest: what it has still to start, each
 * machine that is restored from it would start again.
 *
 * @param monitor The machine.
 * @param shares Directories whose devices are plugged in.
 * @param options How long its boot took: it may take as long again.
 * @throws The signal's reason when it is aborted.
 */
export async function prepareGuest(
  monitor: Monitor,
  shares: GuestShare[],
  { bootMs, signal }: { bootMs: number; signal?: AbortSignal },
): Promise<void> {
  const dirs = shares.flatMap(({ tag }) => [tag, `/mnt/${tag}`]);
  const waitMs = Math.max(bootMs, SETTLE_MS);
  const wait = `${Math.ceil(waitMs / 1000)}`;
  try {
    await runScript(monitor, [PREPARE_SCRIPT, "sh", wait, ...dirs], {
      signal,
      pauseMs: PREPARE_PAUSE_MS,
      limit: {
        ms: 2 * waitMs,
        late: () =>
          new ToolsmithError("guest_failed", "The guest does not come to rest"),
      },
    });
  } catch (error) {
    signal?.throwIfAborted();
    // A guest that cannot do this is saved as it is.
    if (!(error instanceof ToolsmithError)) throw error;
  }
}
