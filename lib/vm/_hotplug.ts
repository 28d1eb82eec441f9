/**
 * Hot-plugs the devices that differ between runs: exports and a network card.
 */
import { ToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
import {
  type CopyIntoGuestOptions,
  copySharesIntoGuest,
} from "../guest/share_copy.ts";
import { VmDisconnectedError } from "../qemu/errors.ts";
import {
  GuestCannotMountError,
  setUpGuest,
  type SetUpGuestOptions,
} from "../guest/setup.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { type GuestShare, isPresentAtBoot } from "../qemu/args.ts";
import {
  hotplugSlotId,
  shareDeviceId,
  shareFsdevId,
} from "../qemu/device_ids.ts";
import type { QmpCommand } from "../qemu/qmp.ts";
import { anySignal } from "../system/time.ts";
import type { GuestNetwork } from "../net/network.ts";
import { cardSettings, plugInNetworkCard } from "./_guest_network.ts";

export interface AttachDevicesOptions
  extends SetUpGuestOptions, CopyIntoGuestOptions {
  network?: GuestNetwork | "host-loopback";
  emit: Emit;
}

/**
 * Mounts or copies directories, plugs in a network card, and returns the available
 * directories. If only a workspace was requested and it cannot be mounted, that is a
 * warning: the guest is useful without it.
 */
export async function attachDevices(
  monitor: Monitor,
  shares: GuestShare[],
  options: AttachDevicesOptions,
): Promise<GuestShare[]> {
  const { network } = options;
  if (!network) return await mountOrWarn(monitor, shares, options);
  const card = cardSettings(network);
  const refused = new AbortController();
  const signal = anySignal(options.signal, refused.signal);
  const how = { ...options, card, signal };
  // The guest's kernel finds the card while its shell reads what to set up.
  const plugging = plugInNetworkCard(monitor, network, options.signal);
  const mounting = mountOrWarn(monitor, shares, how);
  plugging.catch((error) => refused.abort(error));
  await Promise.allSettled([plugging, mounting]);
  await plugging;
  return await mounting;
}

async function mountOrWarn(
  monitor: Monitor,
  shares: GuestShare[],
  options: AttachDevicesOptions,
): Promise<GuestShare[]> {
  const { emit, signal } = options;
  try {
    return await mountOrCopyShares(monitor, shares, options);
  } catch (error) {
    signal?.throwIfAborted();
    const workspaceOnly = shares.length === 1 && !shares[0].writable;
    if (!workspaceOnly || !(error instanceof ToolsmithError)) throw error;
    if (error instanceof VmDisconnectedError) throw error;
    const hint = error.code === "usage" ? `; ${error.hint}` : "";
    const why = `${error.message}${hint}`;
    const message = `The workspace is not available in the guest: ${why}`;
    emit({ type: "warning", message });
    return [];
  }
}

/**
 * Mounts directories, or copies them if the guest cannot mount. The decision is made
 * once, with a read-only directory or a probe: a guest with a writable device could
 * change the directory during a copy, so it must never get both.
 */
async function mountOrCopyShares(
  monitor: Monitor,
  shares: GuestShare[],
  options: AttachDevicesOptions,
): Promise<GuestShare[]> {
  const { setClock, warmShell, card, emit, bootTimeoutMs, signal } = options;
  if (shares.length === 0 && !setClock && !card) return shares;
  const atBoot = shares.filter(isPresentAtBoot);
  const exports = shares.filter((share) => !isPresentAtBoot(share));
  try {
    const probe9p = atBoot.length === 0 && exports.length > 0;
    const limits = { bootTimeoutMs, signal };
    const warn = (message: string) => emit({ type: "warning", message });
    const how = { setClock, probe9p, warmShell, card, warn, ...limits };
    await setUpGuest(monitor, atBoot, how);
  } catch (error) {
    if (!(error instanceof GuestCannotMountError)) throw error;
    const why = error.message;
    return await copySharesIntoGuest(monitor, shares, { ...options, why });
  }
  if (exports.length > 0) {
    const commands = exports.map((it) => deviceAddCommand(shares, it));
    await monitor.qemu(commands, signal);
    await setUpGuest(monitor, exports, { warmShell, bootTimeoutMs, signal });
  }
  return shares;
}

function deviceAddCommand(shares: GuestShare[], share: GuestShare): QmpCommand {
  const index = shares.indexOf(share);
  return ["device_add", {
    driver: "virtio-9p-pci",
    id: shareDeviceId(index),
    bus: hotplugSlotId(index),
    fsdev: shareFsdevId(index),
    mount_tag: share.tag,
  }];
}
