/** The network card of a guest: it leads to a network of this process, or of QEMU. */
import { ToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
import type { CardSettings } from "../guest/setup.ts";
import { GuestNetwork } from "../net/network.ts";
import type { EgressRule } from "../net/rules.ts";
import { join } from "../path.ts";
import { hotplugSlotId, NETWORK_SLOT } from "../qemu/device_ids.ts";
import type { Monitor } from "../qemu/monitor.ts";
import {
  hasStreamNetworking,
  STREAM_NETWORKING_HINT,
} from "../qemu/program.ts";
import { VM_FILES } from "../qemu/vm_dir.ts";

/** The guest in QEMU's user networking (QEMU's manual, "Using the user mode network stack"). */
const USER_CARD = {
  mac: "52:55:0a:00:02:0f",
  address: "10.0.2.15",
  bits: 24,
  mask: "255.255.255.0",
  gateway: "10.0.2.2",
  dns: "10.0.2.3",
};

/** Opens the network of a VM in the VM's directory, unless QEMU is too old. */
export function openGuestNetwork(
  vm: { dir: string; version: string },
  rules: EgressRule[] | "all",
  emit: Emit,
): GuestNetwork {
  if (!hasStreamNetworking(vm.version)) {
    const message =
      `QEMU ${vm.version} is too old for --network and --allow-net`;
    const hint = STREAM_NETWORKING_HINT;
    throw new ToolsmithError("boot_failed", message, { hint });
  }
  const path = join(vm.dir, VM_FILES.network);
  return new GuestNetwork({ path, rules, emit });
}

export function cardSettings(
  network: GuestNetwork | "host-loopback",
): CardSettings {
  return network === "host-loopback" ? USER_CARD : network.card;
}

/** Plugs in the card of a network, or of QEMU's user networking. */
export async function plugInNetworkCard(
  monitor: Monitor,
  network: GuestNetwork | "host-loopback",
  signal?: AbortSignal,
): Promise<void> {
  const isOwn = network !== "host-loopback";
  const backend = isOwn
    ? {
      type: "stream",
      server: false,
      addr: { type: "unix", path: join(monitor.dir, VM_FILES.network) },
    }
    : { type: "user" };
  const driver = {
    driver: "virtio-net-pci",
    ...{ id: "card", bus: hotplugSlotId(NETWORK_SLOT), netdev: "network" },
    ...{ mac: cardSettings(network).mac, romfile: "" },
  };
  const mtu = isOwn && { host_mtu: network.card.mtu };
  await monitor.qemu([
    ["netdev_add", { ...backend, id: "network" }],
    ["device_add", { ...driver, ...mtu }],
  ], signal);
}
