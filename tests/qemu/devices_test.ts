/**
 * What guests and snapshots know a machine's devices by: another number is
 * another machine, which no earlier snapshot can become.
 */
import { assertEquals } from "@std/assert";
import { type MachineOptions, qemuArgs } from "../../lib/qemu/args.ts";
import {
  directoryId,
  NETWORK_SLOT,
  portId,
  shareId,
  slotId,
  STREAM_PORTS,
  TERMINAL_IRQS,
  terminalDevice,
  terminalId,
} from "../../lib/qemu/devices.ts";

const machine: MachineOptions = {
  ...{ disk: "/a.qcow2", ephemeral: true, dir: "/d", accelerator: "tcg" },
  ...{ memory: 512, cpus: 2, shares: [], extra: [], os: "linux" },
};

const devices = (start: string) => {
  const args = qemuArgs(machine);
  return args.filter((arg, at) =>
    args[at - 1] === "-device" && arg.startsWith(start)
  );
};

Deno.test("a machine has eight slots, each with a place of its own, the last for a network", () => {
  assertEquals(
    devices("pcie-root-port,"),
    [0, 1, 2, 3, 4, 5, 6, 7].map((slot) =>
      `pcie-root-port,id=slot${slot},chassis=${slot + 1},slot=${slot + 1}`
    ),
  );
  assertEquals(NETWORK_SLOT, 7);
  assertEquals([slotId(3), shareId(3), directoryId(3)], [
    ...["slot3", "share3", "directory3"],
  ]);
});

Deno.test("terminals are the ports after the console's, with interrupts that nothing else has", () => {
  assertEquals(TERMINAL_IRQS, [3, 5, 7]);
  assertEquals([0, 2].map(terminalDevice), ["/dev/ttyS1", "/dev/ttyS3"]);
  assertEquals(terminalId(1), "terminal1");
});

Deno.test("a machine has ports for ten commands with input, besides a console's", () => {
  assertEquals(STREAM_PORTS, 30);
  assertEquals(portId("toolsmith.a.out"), "port.toolsmith.a.out");
});
