/** The network card of a guest: it leads to a network of this process. */
import { ToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
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
  };
  const own = isOwn &&
    { mac: network.card.mac, host_mtu: network.card.mtu, romfile: "" };
  await monitor.qemu([
    ["netdev_add", { ...backend, id: "network" }],
    ["device_add", { ...driver, ...own }],
  ], signal);
}
