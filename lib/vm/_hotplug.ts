/**
 * Hot-plugs the devices that differ between runs: exports, and a network card that
 * leads to a network of this process, or of QEMU.
 */
import { ToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
import {
  type CopyIntoGuestOptions,
  copySharesIntoGuest,
} from "../guest/share_copy.ts";
import { VmDisconnectedError } from "../qemu/errors.ts";
import {
  type CardSettings,
  GuestCannotMountError,
  setUpGuest,
  type SetUpGuestOptions,
} from "../guest/setup.ts";
import { GuestNetwork } from "../net/network.ts";
import { join } from "../path.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { type GuestShare, isPresentAtBoot } from "../qemu/args.ts";
import {
  hotplugSlotId,
  NETWORK_SLOT,
  shareDeviceId,
  shareFsdevId,
} from "../qemu/device_ids.ts";
import {
  hasStreamNetworking,
  STREAM_NETWORKING_HINT,
} from "../qemu/program.ts";
import { VM_FILES } from "../qemu/vm_dir.ts";
import type { QmpCommand } from "../qemu/qmp.ts";
import { anySignal } from "../system/time.ts";
import { type BootOptions, parseNetworkRules } from "./boot_options.ts";

export interface NetworkCard extends CardSettings {
  mtu?: number;
  /** Arguments of `netdev_add`. */
  backend: Record<string, unknown>;
  /** The network of this process that the card leads to. */
  network?: GuestNetwork;
}

export interface AttachDevicesOptions
  extends Omit<SetUpGuestOptions, "probe9p">, CopyIntoGuestOptions {
  card?: NetworkCard;
  emit: Emit;
}

/** The guest in QEMU's user networking (QEMU's manual, "Using the user mode network stack"). */
const USER_CARD: NetworkCard = {
  mac: "52:55:0a:00:02:0f",
  address: "10.0.2.15",
  bits: 24,
  mask: "255.255.255.0",
  gateway: "10.0.2.2",
  dns: "10.0.2.3",
  backend: { type: "user" },
};

/**
 * Returns the network card for the wanted network, and opens a network of this process
 * in the VM's directory; `undefined` without one. Throws `boot_failed` if QEMU is too old.
 */
export function openNetworkCard(
  { dir, version }: { dir: string; version: string },
  wanted: BootOptions["network"],
  emit: Emit,
): NetworkCard | undefined {
  if (wanted === "host-loopback") return USER_CARD;
  const rules = parseNetworkRules(wanted);
  if (!rules) return undefined;
  if (!hasStreamNetworking(version)) {
    const message = `QEMU ${version} is too old for --network and --allow-net`;
    const hint = STREAM_NETWORKING_HINT;
    throw new ToolsmithError("boot_failed", message, { hint });
  }
  const path = join(dir, VM_FILES.network);
  const network = new GuestNetwork({ path, rules, emit });
  const addr = { type: "unix", path };
  const backend = { type: "stream", server: false, addr };
  return { ...network.card, backend, network };
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
  const { card, emit } = options;
  const refused = new AbortController();
  const signal = anySignal(options.signal, refused.signal);
  // The guest's kernel finds the card while its shell reads what to set up.
  const plugging = card && plugInNetworkCard(monitor, card, options.signal);
  const mounting = mountOrCopyShares(monitor, shares, { ...options, signal });
  plugging?.catch((error) => refused.abort(error));
  await Promise.allSettled([plugging, mounting]);
  await plugging;
  try {
    return await mounting;
  } catch (error) {
    options.signal?.throwIfAborted();
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

async function plugInNetworkCard(
  monitor: Monitor,
  { backend, mac, mtu }: NetworkCard,
  signal?: AbortSignal,
): Promise<void> {
  const device = {
    driver: "virtio-net-pci",
    id: "card",
    bus: hotplugSlotId(NETWORK_SLOT),
    netdev: "network",
    mac,
    romfile: "",
  };
  await monitor.qemu([
    ["netdev_add", { ...backend, id: "network" }],
    ["device_add", mtu === undefined ? device : { ...device, host_mtu: mtu }],
  ], signal);
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
  const { setClock, warmShell, card, bootTimeoutMs, signal } = options;
  if (shares.length === 0 && !setClock && !card) return shares;
  const atBoot = shares.filter(isPresentAtBoot);
  const exports = shares.filter((share) => !isPresentAtBoot(share));
  try {
    const probe9p = atBoot.length === 0 && exports.length > 0;
    await setUpGuest(monitor, atBoot, { ...options, probe9p });
  } catch (error) {
    if (!(error instanceof GuestCannotMountError)) throw error;
    const why = error.message;
    return await copySharesIntoGuest(monitor, shares, { ...options, why });
  }
  if (exports.length > 0) {
    const commands = exports.map((share): QmpCommand => {
      const index = shares.indexOf(share);
      return ["device_add", {
        driver: "virtio-9p-pci",
        id: shareDeviceId(index),
        bus: hotplugSlotId(index),
        fsdev: shareFsdevId(index),
        mount_tag: share.tag,
      }];
    });
    await monitor.qemu(commands, signal);
    await setUpGuest(monitor, exports, { warmShell, bootTimeoutMs, signal });
  }
  return shares;
}
