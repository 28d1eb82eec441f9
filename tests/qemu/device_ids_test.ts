/**
 * Device ids and numbers that guests and snapshots depend on: changing one invalidates
 * earlier snapshots.
 */
import { assertEquals } from "@std/assert";
import { qemuArgs, type QemuOptions } from "../../lib/qemu/args.ts";
import {
  hotplugSlotId,
  MAX_COMMAND_PORTS,
  NETWORK_SLOT,
  portDeviceId,
  shareDeviceId,
  shareFsdevId,
  TERMINAL_IRQS,
  terminalDevicePath,
  terminalSerialPortId,
} from "../../lib/qemu/device_ids.ts";

const machine: QemuOptions = {
  ...{ disk: "/a.qcow2", ephemeral: true, dir: "/d", accelerator: "tcg" },
  ...{ memory: 512, cpus: 2, shares: [], extra: [], hostOs: "linux" },
};

const devices = (start: string) => {
  const args = qemuArgs(machine);
  return args.filter((arg, at) =>
    args[at - 1] === "-device" && arg.startsWith(start)
  );
};

Deno.test("qemuArgs() adds eight hot-plug slots, the last one for the network card", () => {
  assertEquals(
    devices("pcie-root-port,"),
    [0, 1, 2, 3, 4, 5, 6, 7].map((slot) =>
      `pcie-root-port,id=slot${slot},chassis=${slot + 1},slot=${slot + 1}`
    ),
  );
  assertEquals(NETWORK_SLOT, 7);
  assertEquals([hotplugSlotId(3), shareFsdevId(3), shareDeviceId(3)], [
    ...["slot3", "share3", "directory3"],
  ]);
});

Deno.test("terminalDevicePath() and terminalPortId() name the serial ports after the console's", () => {
  assertEquals(TERMINAL_IRQS, [3, 5, 7]);
  assertEquals([0, 2].map(terminalDevicePath), ["/dev/ttyS1", "/dev/ttyS3"]);
  assertEquals(terminalSerialPortId(1), "terminal1");
});

Deno.test("MAX_COMMAND_PORTS is 30: ten commands with standard input at once", () => {
  assertEquals(MAX_COMMAND_PORTS, 30);
  assertEquals(portDeviceId("toolsmith.a.out"), "port.toolsmith.a.out");
});
