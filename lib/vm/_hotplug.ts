/**
 * Plugs into a running machine what differs from run to run: directories of the
 * host, and a network card.
 *
 * @module
 */
import { setUpGuest, type SetUpOptions } from "../guest/setup.ts";
import type { Monitor } from "../qemu/monitor.ts";
import type { GuestShare } from "../qemu/args.ts";
import { NETWORK_SLOT, shareId, slotId } from "../qemu/devices.ts";
import type { Command } from "../qemu/qmp.ts";
import { settlesWithin, sleep } from "../system/time.ts";

const NETWORK_WAIT_MS = 10_000;
const NETWORK_PAUSE_MS = 100;

/**
 * Plugs directories in, mounts them in the guest, and sets its clock.
 *
 * @param monitor The machine.
 * @param shares As the machine was started with.
 * @param options Whether to set the clock.
 * @throws {ToolsmithError} `guest_failed` when the guest cannot mount them.
 */
export async function attachShares(
  monitor: Monitor,
  shares: GuestShare[],
  options: SetUpOptions = {},
): Promise<void> {
  if (shares.length === 0 && !options.clock) return;
  const commands = shares.map(({ tag }, index): Command => ["device_add", {
    driver: "virtio-9p-pci",
    id: `directory${index}`,
    bus: slotId(index),
    fsdev: shareId(index),
    mount_tag: tag,
  }]);
  await monitor.qemu(commands, options.signal);
  await setUpGuest(monitor, shares, options);
}

/**
 * Plugs a network card in and waits until the guest has an address, but not
 * longer than ten seconds.
 *
 * @param monitor The machine.
 * @returns Whether the guest has an address.
 * @throws {ToolsmithError} When QEMU refuses the card.
 */
export async function attachNetwork(monitor: Monitor): Promise<boolean> {
  await monitor.qemu([
    ["netdev_add", { type: "user", id: "network" }],
    ["device_add", {
      driver: "virtio-net-pci",
      id: "card",
      bus: slotId(NETWORK_SLOT),
      netdev: "network",
    }],
  ]);
  let over = false;
  const addressed = (async () => {
    while (!over) {
      if (await hasAddress(monitor)) return true;
      await sleep(NETWORK_PAUSE_MS);
    }
    return false;
  })();
  over = !await settlesWithin(addressed, NETWORK_WAIT_MS);
  return !over && await addressed;
}

/** A guest that does not answer, or answers anything, has no address. */
async function hasAddress(monitor: Monitor): Promise<boolean> {
  const cards = await monitor.agent(["guest-network-get-interfaces"])
    .catch(() => undefined);
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
