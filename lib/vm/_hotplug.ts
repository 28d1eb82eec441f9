/**
 * Plugs into a running machine what differs from run to run: directories of the
 * host, and a network card.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
import { VmDisconnectedError } from "../qemu/errors.ts";
import { copyIntoGuest, type CopyOptions } from "../guest/copy.ts";
import {
  NoMountsError,
  setUpGuest,
  type SetUpOptions,
} from "../guest/setup.ts";
import { join } from "../path.ts";
import { leftOut } from "./_left_out.ts";
import { WORKSPACE_TAG } from "./shares.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { type GuestShare, isPlugged } from "../qemu/args.ts";
import { directoryId, NETWORK_SLOT, shareId, slotId } from "../qemu/devices.ts";
import type { Command } from "../qemu/qmp.ts";
import { sleep, timeLimit } from "../system/time.ts";

const NETWORK_WAIT_MS = 10_000;
const NETWORK_PAUSE_MS = 100;

/** What {@linkcode attach} takes besides the directories. */
export interface AttachOptions extends SetUpOptions, CopyOptions {
  /** Give the guest a network. @default {false} */
  network?: boolean;
  /** Takes events. */
  emit: Emit;
}

/**
 * Plugs in what a machine is to have besides its disk.
 *
 * @param monitor The machine.
 * @param shares As the machine was started with.
 * @param options Clock and network.
 * @returns The directories that are mounted. A workspace that cannot be is a
 * warning where nothing else was asked for: a guest without it is of use, too.
 * @throws {ToolsmithError} `guest_failed` when the guest cannot mount them.
 * @throws The signal's reason when it is aborted.
 */
export async function attach(
  monitor: Monitor,
  shares: GuestShare[],
  options: AttachOptions,
): Promise<GuestShare[]> {
  const { network, emit, signal } = options;
  let attached = shares;
  try {
    attached = await attachShares(monitor, shares, options);
  } catch (error) {
    signal?.throwIfAborted();
    const workspaceOnly = shares.length === 1 && !shares[0].writable;
    if (!workspaceOnly || !(error instanceof ToolsmithError)) throw error;
    if (error instanceof VmDisconnectedError) throw error;
    const hint = error.code === "usage" ? `; ${error.hint}` : "";
    const message = `No workspace: ${error.message}${hint}`;
    emit({ type: "warning", message });
    attached = [];
  }
  if (network && !await attachNetwork(monitor, { signal })) {
    const message = "The guest has a network card and no address on it yet";
    emit({ type: "warning", message });
  }
  return attached;
}

/**
 * Mounts directories, or copies them. A guest decides once which it is, by what it
 * makes of a directory that it can only read, or of none: one that has a device can
 * change what lies behind it while a copy is made, so it never gets a copy of what it
 * may write to; and one that has a copy never gets the device.
 */
async function attachShares(
  monitor: Monitor,
  shares: GuestShare[],
  options: AttachOptions,
): Promise<GuestShare[]> {
  const { clock, waiting, signal } = options;
  if (shares.length === 0 && !clock) return shares;
  const there = shares.filter(isPlugged);
  const exports = shares.filter((share) => !isPlugged(share));
  try {
    const probe = there.length === 0 && exports.length > 0;
    await setUpGuest(monitor, there, { clock, probe, waiting, signal });
  } catch (error) {
    if (!(error instanceof NoMountsError)) throw error;
    return await copyInstead(monitor, shares, {
      ...options,
      why: error.message,
    });
  }
  if (exports.length > 0) {
    await monitor.qemu(exports.map((it) => device(shares, it)), signal);
    await setUpGuest(monitor, exports, { waiting, signal });
  }
  return shares;
}

function device(shares: GuestShare[], share: GuestShare): Command {
  const index = shares.indexOf(share);
  return ["device_add", {
    driver: "virtio-9p-pci",
    id: directoryId(index),
    bus: slotId(index),
    fsdev: shareId(index),
    mount_tag: share.tag,
  }];
}

/** What the guest cannot mount comes as a copy. */
async function copyInstead(
  monitor: Monitor,
  shares: GuestShare[],
  { emit, why, ...options }: AttachOptions & { why: string },
): Promise<GuestShare[]> {
  for (const share of shares) {
    // The image need not go into its own guest.
    const exclude = [join(share.path, ".toolsmith", "cache")];
    const how = { ...options, exclude };
    const copy = await copyIntoGuest(monitor, share, how);
    const what = share.tag === WORKSPACE_TAG
      ? "The workspace"
      : `The export ${share.tag}`;
    const mebibytes = (copy.bytes / 2 ** 20).toFixed(1);
    const message =
      `${what} is a copy in the guest's memory (${copy.entries} entries, ${mebibytes} MiB): ${why}` +
      leftOut({ count: copy.skipped.length, names: copy.skipped });
    emit({ type: "warning", message });
  }
  return shares.map((share) => ({ ...share, copied: true }));
}

/**
 * Plugs a network card in and waits until the guest has an address, but not
 * longer than ten seconds.
 *
 * @param monitor The machine.
 * @param options A signal that ends the wait when aborted.
 * @returns Whether the guest has an address.
 * @throws {ToolsmithError} When QEMU refuses the card.
 * @throws The signal's reason when it is aborted.
 */
export async function attachNetwork(
  monitor: Monitor,
  { signal }: { signal?: AbortSignal } = {},
): Promise<boolean> {
  await monitor.qemu([
    ["netdev_add", { type: "user", id: "network" }],
    ["device_add", {
      driver: "virtio-net-pci",
      id: "card",
      bus: slotId(NETWORK_SLOT),
      netdev: "network",
    }],
  ], signal);
  using limit = timeLimit(NETWORK_WAIT_MS, "The network", signal);
  try {
    while (!await hasAddress(monitor, limit.signal)) {
      await sleep(NETWORK_PAUSE_MS, limit.signal);
    }
    return true;
  } catch (error) {
    signal?.throwIfAborted();
    if (limit.signal.aborted) return false;
    throw error;
  }
}

/** A guest that refuses to answer, or answers anything, has no address. */
async function hasAddress(
  monitor: Monitor,
  signal: AbortSignal,
): Promise<boolean> {
  const cards = await monitor.agent(["guest-network-get-interfaces"], signal)
    .catch(() => signal.throwIfAborted());
  return listOf(cards).some((card) =>
    card.name !== "lo" && listOf(card["ip-addresses"])
      .some((address) => address["ip-address-type"] === "ipv4")
  );
}

function listOf(value: unknown): Record<string, unknown>[] {
  const list: unknown[] = Array.isArray(value) ? value : [];
  return list.filter((item) =>
    typeof item === "object" && item !== null
  ) as Record<string, unknown>[];
}
