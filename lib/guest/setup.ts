/** Prepares a guest for commands: agent, clock, and host directories. */
import { ToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
import type { GuestShare } from "../qemu/args.ts";
import { CommandRefusedError, VmDisconnectedError } from "../qemu/errors.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { orIfError } from "../system/files.ts";
import { isJsonObject } from "../system/json.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import { startDeadline } from "../system/time.ts";
import { runScriptViaAgent } from "./_agent_process.ts";
import { SEED_AGENT_NAME } from "./_seed_agent.ts";
import {
  PREPARE_SNAPSHOT_SCRIPT,
  PROBE_9P_TAG,
  SET_UP_GUEST_SCRIPT,
  WAIT_FOR_CLOUD_INIT_SCRIPT,
} from "./_setup_scripts.ts";
import type { WarmShell } from "./warm_shell.ts";

export interface SetUpGuestOptions {
  /** Set the guest's clock to the host's, after a restore. @default {false} */
  setClock?: boolean;
  /** Check whether the guest's kernel has 9p. @default {false} */
  probe9p?: boolean;
  card?: CardSettings;
  /** Receives a warning with the reason why the card could not be configured. */
  emit?: Emit;
  /** Runs the setup script. @default {undefined} the guest agent does */
  warmShell?: WarmShell;
  /** How long the boot may take; the setup has as long, and two minutes at least. */
  bootTimeoutMs?: number;
  signal?: AbortSignal;
}

export interface CardSettings {
  mac: string;
  address: string;
  /** Length of the network's prefix, and its mask. */
  bits: number;
  mask: string;
  gateway: string;
  /** The only server of DNS. @default {undefined} the gateway, for any server's address */
  dns?: string;
}

/** The guest cannot mount a host directory, usually because it lacks 9p. */
export class GuestCannotMountError extends ToolsmithError {
  constructor(reason: string) {
    super(
      "guest_failed",
      `Cannot mount a host directory in the guest: ${reason}`,
      { hint: NEEDS_9P_HINT },
    );
  }
}

const NEEDS_9P_HINT = "use an image whose kernel has 9p and 9pnet_virtio";
const MIN_SETUP_TIMEOUT_MS = 120_000;
/** Some guests wait for minutes for a missing network; in milliseconds. */
const MIN_SERVICES_TIMEOUT_MS = 30_000;
/** Printed by the script when the guest's `date` cannot set the clock. */
const CLOCK_NOT_SET_PATTERN = /^clock\n/m;
const CARD_KEYS = ["mac", "address", "bits", "mask", "gateway", "dns"] as const;
/** Printed when the guest cannot configure its card. */
const NO_NETWORK_PATTERN = /^network: (.*)\n/m;

/**
 * Identifies the guest agent after a boot, such as `qemu-ga 7.2.22` or `toolsmith`;
 * `undefined` if it does not report a version. The image's own agent may answer before
 * cloud-init has created users and files, so this waits for cloud-init.
 */
export async function identifyAgent(monitor: Monitor, signal?: AbortSignal) {
  const asked = monitor.agent(["guest-info"], signal);
  const info = await orIfError(asked, CommandRefusedError);
  const version = isJsonObject(info) ? info.version : undefined;
  // The seed agent itself waits for cloud-init.
  if (version === SEED_AGENT_NAME) return SEED_AGENT_NAME;
  const script = [WAIT_FOR_CLOUD_INIT_SCRIPT];
  const finished = runScriptViaAgent(monitor, script, { signal });
  await orIfError(finished, CommandRefusedError);
  return typeof version === "string"
    ? `qemu-ga ${sanitizeLine(version, 40)}`
    : undefined;
}

/**
 * Mounts hot-plugged directories in the guest, each at `/mnt/<tag>`, sets the guest's
 * clock and configures its network card. One agent command does all, as each costs time.
 * Throws {@linkcode GuestCannotMountError} with the error of `mount`.
 */
export async function setUpGuest(
  monitor: Monitor,
  shares: GuestShare[],
  options: SetUpGuestOptions = {},
): Promise<void> {
  const { setClock, card, warmShell, bootTimeoutMs = 0, signal } = options;
  const now = Date.now() / 1000;
  const args = [
    ...setClock ? [now.toFixed(3), `${Math.round(now)}`] : ["", ""],
    CARD_KEYS.flatMap((key) => card?.[key] ?? []).join(" "),
    ...options.probe9p ? [PROBE_9P_TAG, "/mnt", "ro"] : [],
    ...shares.flatMap(({ tag, writable }) => [
      tag,
      `/mnt/${tag}`,
      writable ? "rw" : "ro",
    ]),
  ];
  const timeoutMs = Math.max(bootTimeoutMs, MIN_SETUP_TIMEOUT_MS);
  const seconds = timeoutMs / 1000;
  const message =
    `Cannot mount host directories in the guest within ${seconds} s`;
  const timeoutError = () =>
    warmShell
      ? new VmDisconnectedError()
      : new ToolsmithError("guest_failed", message, { hint: NEEDS_9P_HINT });
  using limit = startDeadline(timeoutMs, timeoutError, signal);
  const script = [SET_UP_GUEST_SCRIPT, "sh", ...args];
  const { exitCode, stdout } = warmShell
    ? await warmShell.setUpGuest(args, limit.signal)
    : await runScriptViaAgent(monitor, script, limit);
  if (CLOCK_NOT_SET_PATTERN.test(stdout)) {
    // Slower, as this also sets the hardware clock; some guests support only this.
    const time = Date.now() * 1_000_000;
    await monitor.agent(["guest-set-time", { time }], signal)
      .catch(() => signal?.throwIfAborted());
  }
  const [, reason] = NO_NETWORK_PATTERN.exec(stdout) ?? [];
  if (reason) {
    const message = `No network in the guest: ${sanitizeLine(reason)}`;
    options.emit?.({ type: "warning", message });
  }
  if (exitCode === 0) return;
  const said = stdout.replace(CLOCK_NOT_SET_PATTERN, "")
    .replace(NO_NETWORK_PATTERN, "");
  throw new GuestCannotMountError(sanitizeLine(said) || "mount gave no reason");
}

/**
 * Waits until a guest has started its services, before it is saved: each restored VM
 * would start the rest again. The devices of the shares are plugged in; the duration of
 * the boot limits the wait.
 */
export async function prepareGuestForSnapshot(
  monitor: Monitor,
  shares: GuestShare[],
  { bootMs, signal }: { bootMs: number; signal?: AbortSignal },
): Promise<void> {
  const dirs = shares.flatMap(({ tag }) => [tag, `/mnt/${tag}`]);
  const waitMs = Math.max(bootMs, MIN_SERVICES_TIMEOUT_MS);
  const wait = `${Math.ceil(waitMs / 1000)}`;
  const script = [PREPARE_SNAPSHOT_SCRIPT, "sh", wait, ...dirs];
  using limit = startDeadline(2 * waitMs, "Starting services", signal);
  await runScriptViaAgent(monitor, script, limit).catch((error) => {
    signal?.throwIfAborted();
    // Save the guest even if its services have not settled.
    if (!(error instanceof ToolsmithError)) throw error;
  });
}
