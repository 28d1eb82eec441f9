import { assert, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { ToolsmithError } from "../../lib/errors.ts";
import { createEmitter } from "../../lib/events.ts";
import type { GuestShare } from "../../lib/qemu/args.ts";
import { VmDisconnectedError } from "../../lib/qemu/errors.ts";
import type { Monitor } from "../../lib/qemu/monitor.ts";
import { sharedMonitor } from "../../lib/qemu/monitor.ts";
import type { QmpCommand } from "../../lib/qemu/qmp.ts";
import {
  attachDevices,
  type AttachDevicesOptions,
  openNetworkCard,
} from "../../lib/vm/_hotplug.ts";
import { temporaryDir } from "../support/directory.ts";
import { holdTimers } from "../support/timers.ts";
import {
  fakeMachine,
  type FakeMachineOptions,
  type FakeRequest,
  honest,
  say,
} from "../support/fake_machine.ts";
import { collectEvents } from "../support/guest.ts";

const socketsHere = { ignore: Deno.build.os === "windows" };

const ENDED = { exited: true, exitcode: 0 };

/** A fake agent with a given mount status, which records the arguments of scripts. */
function mounting(status: Record<string, unknown>, scripts: string[][] = []) {
  return (request: FakeRequest) => {
    const { execute, arguments: args } = request;
    if (execute === "guest-exec") scripts.push(args.arg as string[]);
    return execute === "guest-exec-status" ? status : honest(request);
  };
}

/** Attaches directories; returns the result, QMP commands and warnings. */
async function attached(
  machine: FakeMachineOptions,
  shares: GuestShare[],
  options: Partial<AttachDevicesOptions> = {},
) {
  await using fake = await fakeMachine(machine);
  await using monitor = sharedMonitor(fake.dir);
  const { events, onEvent } = collectEvents("warning");
  const emit = createEmitter(onEvent);
  const asked: QmpCommand[] = [];
  const noting: Monitor = {
    ...monitor,
    qemu(commands, signal) {
      asked.push(...commands);
      return monitor.qemu(commands, signal);
    },
  };
  const result = await attachDevices(noting, shares, { emit, ...options })
    .catch((error) => error);
  return { result, asked, said: events.map(({ message }) => message) };
}

function test(name: string, fn: (dir: string) => Promise<void>) {
  Deno.test({
    name,
    ...socketsHere,
    async fn() {
      await using dir = await temporaryDir();
      await fn(dir.path);
    },
  });
}

/** A workspace with files, and an export. */
async function directories(dir: string): Promise<GuestShare[]> {
  const work = join(dir, "work");
  await Deno.mkdir(join(work, ".toolsmith", "cache"), { recursive: true });
  await Deno.writeTextFile(join(work, ".toolsmith", "cache", "image"), "big");
  await Deno.writeTextFile(join(work, "a.txt"), "text");
  const out = join(dir, "out");
  await Deno.mkdir(out);
  return [
    { path: work, tag: "work", writable: false },
    { path: out, tag: "out", writable: true },
  ];
}

test("attachDevices() plugs exports in after the guest has mounted its workspace", async (dir) => {
  const shares = await directories(dir);
  const scripts: string[][] = [];
  const agent = mounting(ENDED, scripts);
  const { result, asked, said } = await attached({ agent }, shares);
  assertEquals([result, said], [shares, []]);
  assertEquals(asked, [["device_add", {
    driver: "virtio-9p-pci",
    id: "directory1",
    bus: "slot1",
    fsdev: "share1",
    mount_tag: "out",
  }]]);
  assertEquals(scripts.map((words) => words.slice(2)), [
    ["sh", "", "", "", "work", "/mnt/work", "ro"],
    ["sh", "", "", "", "out", "/mnt/out", "rw"],
  ]);
  const alone = await attached({ agent }, shares.slice(0, 1));
  assertEquals(alone.asked, []);
});

test("attachDevices() waits for a mount as long as the boot may take", async (dir) => {
  const [work] = await directories(dir);
  using timers = holdTimers(300_000);
  const agent = (request: FakeRequest) => {
    if (request.execute === "guest-exec-status") timers.expire();
    return mounting({ exited: false })(request);
  };
  const options = { bootTimeoutMs: 300_000 };
  const { result, said } = await attached({ agent }, [work], options);
  assertEquals(result, []);
  assertMatch(said.join(), /in the guest within 300 s/);
});

test("attachDevices() probes for 9p before plugging exports into a guest without a workspace", async (dir) => {
  const [, out] = await directories(dir);
  const scripts: string[][] = [];
  const agent = mounting(ENDED, scripts);
  const { asked } = await attached({ agent }, [out]);
  assertEquals(asked.length, 1);
  assertEquals(scripts.map((words) => words.slice(6)), [
    ["toolsmith.probe", "/mnt", "ro"],
    ["out", "/mnt/out", "rw"],
  ]);
});

test("attachDevices() plugs no export into a guest that gets copies", async (dir) => {
  const shares = await directories(dir);
  for (const some of [shares, shares.slice(1)]) {
    const { result, asked } = await attached(copying(), some);
    assertEquals(result, some.map((share) => ({ ...share, copied: true })));
    const plugged = asked.filter(([, args]) =>
      args?.driver === "virtio-9p-pci"
    );
    assertEquals(plugged, []);
  }
});

test("attachDevices() copies nothing when a plugged export fails to mount", async (dir) => {
  const shares = await directories(dir);
  for (const some of [shares, shares.slice(1)]) {
    let plugged = false;
    let commands = 0;
    const agent = ({ execute, ...request }: FakeRequest) =>
      execute === "guest-exec-status"
        ? {
          exited: true,
          exitcode: plugged ? 1 : 0,
          "out-data": btoa("No such device\n"),
        }
        : honest({ execute, ...request });
    const { result, said } = await attached({
      agent,
      qemu: ({ execute }) => void (plugged ||= execute === "device_add"),
      command: () => Promise.resolve(void commands++),
    }, some);
    assertEquals([result.code, commands, said], ["guest_failed", 0, []]);
  }
});

test("attachDevices() runs no script without directories, unless the clock must be set", async () => {
  const scripts: string[][] = [];
  const agent = mounting(ENDED, scripts);
  const none = await attached({ agent }, []);
  assertEquals([none.result, scripts], [[], []]);
  await attached({ agent }, [], { setClock: true });
  assertEquals(scripts.length, 1);
});

/** A guest that cannot mount; copies end with the given status. */
const copying = (copied = 0): FakeMachineOptions => {
  const status = { exited: true, exitcode: 1, "out-data": btoa("no 9p\n") };
  return {
    agent: (request) =>
      request.execute === "guest-exec-status" ? status : honest(request),
    async command({ marker, out, err }) {
      await say(err, `ready\n`);
      await say(out, `${marker}${copied}\n`);
      await say(err, `no room\n${marker}\n`);
    },
  };
};

const WHY = "Cannot mount a host directory in the guest: no 9p";

test("attachDevices() copies directories, except .toolsmith/cache, and warns when mounting fails", async (dir) => {
  const shares = await directories(dir);
  await Deno.symlink("a", join(shares[1].path, "link"));
  // 1.5 MiB with the headers of three entries and the end of the archive.
  const large = new Uint8Array(1.5 * 2 ** 20 - 6 * 512);
  await Deno.writeFile(join(shares[0].path, "large"), large);
  using _socket = Deno.listen({
    transport: "unix",
    path: join(shares[1].path, "socket"),
  });
  const { result, said } = await attached(copying(), shares);
  assertEquals(result, shares.map((share) => ({ ...share, copied: true })));
  assertEquals(said, [
    // The files, and `.toolsmith` without the cache.
    `The workspace was copied into the guest's memory instead of mounted (3 entries, 1.5 MiB): ${WHY}`,
    `The export out was copied into the guest's memory instead of mounted (1 entries, 0.0 MiB): ${WHY}; skipped 1, such as socket`,
  ]);
});

test("attachDevices() warns about a workspace it cannot copy and throws for an export", async (dir) => {
  const shares = await directories(dir);
  const [work, out] = shares;
  const why = `Cannot copy ${work.path} into the guest: no room`;
  const alone = await attached(copying(1), [work]);
  assertEquals([alone.result, alone.said], [[], [
    `The workspace is not available in the guest: ${why}`,
  ]]);
  const both = await attached(copying(1), shares);
  assertEquals([both.result.message, both.said], [why, []]);
  const exported = await attached(copying(1), [out]);
  assertEquals(exported.result.code, "guest_failed");
  // The hint names the option that raises the limit.
  await Deno.writeFile(join(work.path, "large"), new Uint8Array(2 ** 20));
  const large = await attached(copying(), [work], { copyLimit: 1 });
  assertEquals(large.result, []);
  assert(
    large.said[0].endsWith(
      "copy limit of 1 MiB; raise the limits: --copy-limit SIZE and --memory SIZE",
    ),
    large.said[0],
  );
});

test("attachDevices() rejects on disconnection or abort instead of warning", async (dir) => {
  const [work] = await directories(dir);
  const hangUp = (connection: Deno.Conn) => connection.close();
  const agent = (request: FakeRequest) =>
    request.execute === "guest-exec" ? hangUp : honest(request);
  const broken = await attached({ agent }, [work]);
  assert(broken.result instanceof VmDisconnectedError);
  const signal = AbortSignal.abort(new Error("enough"));
  const stopped = await attached({}, [work], { signal });
  assertEquals([stopped.result.message, stopped.said], ["enough", []]);
});

test("attachDevices() configures the card of QEMU's user networking, and throws when QEMU refuses it", async () => {
  const scripts: string[][] = [];
  const agent = mounting(ENDED, scripts);
  const vm = { dir: "/tmp", version: "7.2.22" };
  const card = openNetworkCard(vm, "host-loopback", () => {});
  const { result, asked, said } = await attached({ agent }, [], { card });
  assertEquals([result, said], [[], []]);
  const mac = "52:55:0a:00:02:0f";
  assertEquals(asked, [
    ["netdev_add", { type: "user", id: "network" }],
    ["device_add", {
      ...{ driver: "virtio-net-pci", id: "card", bus: "slot7" },
      ...{ netdev: "network", mac, romfile: "" },
    }],
  ]);
  assertEquals(scripts.map((it) => it.slice(3)), [[
    "",
    "",
    `${mac} 10.0.2.15 24 255.255.255.0 10.0.2.2 10.0.2.3`,
  ]]);
  const refused = await attached({ agent, ports: 0 }, [], { card });
  assertEquals(refused.result.code, "guest_failed");
});

test("attachDevices() plugs the card of a network in while the script that configures it waits", async (dir) => {
  const scripts: string[][] = [];
  const vm = { dir, version: "7.2.22" };
  const card = openNetworkCard(vm, { allow: [] }, () => {})!;
  await using _network = card.network!;
  const said = { "out-data": btoa("network: no card\n") };
  const machine = { agent: mounting({ ...ENDED, ...said }, scripts) };
  const { result, asked, said: warnings } = await attached(machine, [], {
    card,
  });
  assertEquals([result, warnings], [[], [
    "No network in the guest: no card",
  ]]);
  const [netdev, device, ...more] = asked;
  assertEquals(more, []);
  const { addr, ...backend } = netdev[1] as Record<string, { path: string }>;
  assertEquals<unknown>(backend, {
    ...{ type: "stream", server: false, id: "network" },
  });
  assertEquals(addr.path, join(dir, "network"));
  assertEquals<unknown>(device[1], {
    ...{ driver: "virtio-net-pci", id: "card", bus: "slot7" },
    ...{ netdev: "network", mac: card.mac, host_mtu: card.mtu, romfile: "" },
  });
  assertEquals(scripts.map((it) => it.slice(3)), [
    ["", "", "52:55:c6:12:00:02 198.18.0.2 15 255.254.0.0 198.18.0.1"],
  ]);
  const refused = await attached({ ...machine, ports: 0 }, [], { card });
  assertEquals([refused.result.code, refused.said], ["guest_failed", []]);
});

test("openNetworkCard() refuses a QEMU without stream networking", async (dir) => {
  for (const version of ["7.1.0", "6.2.0", "5.0"]) {
    const opening = () => openNetworkCard({ dir, version }, true, () => {});
    const error = assertThrows(opening, ToolsmithError, version);
    assertEquals(error.code, "boot_failed");
  }
  for (const version of ["7.2.22", "10.0.1"]) {
    const vm = { dir, version };
    const card = openNetworkCard(vm, { allow: [] }, () => {});
    await using _network = card!.network!;
  }
});
