import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { emitter } from "../../lib/events.ts";
import type { GuestShare } from "../../lib/qemu/args.ts";
import { VmDisconnectedError } from "../../lib/qemu/errors.ts";
import type { Monitor } from "../../lib/qemu/monitor.ts";
import { sharedMonitor } from "../../lib/qemu/monitor.ts";
import type { Command } from "../../lib/qemu/qmp.ts";
import {
  attach,
  attachNetwork,
  type AttachOptions,
} from "../../lib/vm/_hotplug.ts";
import { leftOut } from "../../lib/vm/_left_out.ts";
import { temporaryDir } from "../support/directory.ts";
import {
  fakeMachine,
  type FakeMachineOptions,
  honest,
  refusal,
  type Request,
  say,
} from "../support/fake_machine.ts";
import { collect } from "../support/guest.ts";
import { hurriedTimers } from "../support/timers.ts";

const socketsHere = { ignore: Deno.build.os === "windows" };

const ENDED = { exited: true, exitcode: 0 };

/** An agent whose mounts end so, and which notes the words of its scripts. */
function mounting(status: Record<string, unknown>, scripts: string[][] = []) {
  return (request: Request) => {
    const { execute, arguments: args } = request;
    if (execute === "guest-exec") scripts.push(args.arg as string[]);
    return execute === "guest-exec-status" ? status : honest(request);
  };
}

/** Attaches directories to a machine; returns what came of it and was said. */
async function attached(
  machine: FakeMachineOptions,
  shares: GuestShare[],
  options: Partial<AttachOptions> = {},
) {
  await using fake = await fakeMachine(machine);
  await using monitor = sharedMonitor(fake.dir);
  const { events, onEvent } = collect("warning");
  const emit = emitter(onEvent);
  const asked: Command[] = [];
  const noting: Monitor = {
    ...monitor,
    qemu(commands, signal) {
      asked.push(...commands);
      return monitor.qemu(commands, signal);
    },
  };
  const result = await attach(noting, shares, { emit, ...options })
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

/** The workspace and an export, which hold something. */
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

test("attach() plugs exports in once the guest has mounted its workspace", async (dir) => {
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
    ["sh", "", "", "work", "/mnt/work", "ro"],
    ["sh", "", "", "out", "/mnt/out", "rw"],
  ]);
  const alone = await attached({ agent }, shares.slice(0, 1));
  assertEquals(alone.asked, []);
});

test("attach() asks a guest without a workspace whether it has 9p before it plugs exports in", async (dir) => {
  const [, out] = await directories(dir);
  const scripts: string[][] = [];
  const agent = mounting(ENDED, scripts);
  const { asked } = await attached({ agent }, [out]);
  assertEquals(asked.length, 1);
  assertEquals(scripts.map((words) => words.slice(5)), [
    ["toolsmith.probe", "/mnt", "ro"],
    ["out", "/mnt/out", "rw"],
  ]);
});

test("attach() plugs no export into a guest that gets copies", async (dir) => {
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

test("attach() copies nothing for a guest that does not mount an export that was plugged in", async (dir) => {
  const shares = await directories(dir);
  for (const some of [shares, shares.slice(1)]) {
    let plugged = false;
    let commands = 0;
    const agent = ({ execute, ...request }: Request) =>
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

test("a guest is asked for nothing where there is nothing to mount, but for its clock", async () => {
  const scripts: string[][] = [];
  const agent = mounting(ENDED, scripts);
  const none = await attached({ agent }, []);
  assertEquals([none.result, scripts], [[], []]);
  await attached({ agent }, [], { clock: true });
  assertEquals(scripts.length, 1);
});

/** Mounts fail; a copy is taken, whatever it is. */
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

const WHY = "The guest cannot mount a directory of the host: no 9p";

test("what a guest cannot mount comes as a copy, without the cache, and that is said", async (dir) => {
  const shares = await directories(dir);
  await Deno.symlink("a", join(shares[1].path, "link"));
  // With the headers of three entries, and the archive's end, 1.5 MiB.
  const large = new Uint8Array(1.5 * 2 ** 20 - 6 * 512);
  await Deno.writeFile(join(shares[0].path, "large"), large);
  using _socket = Deno.listen({
    transport: "unix",
    path: join(shares[1].path, "socket"),
  });
  const { result, said } = await attached(copying(), shares);
  assertEquals(result, shares.map((share) => ({ ...share, copied: true })));
  assertEquals(said, [
    // The files and `.toolsmith`, which is empty.
    `The workspace is a copy in the guest's memory (3 entries, 1.5 MiB): ${WHY}`,
    `The export out is a copy in the guest's memory (1 entries, 0.0 MiB): ${WHY}; left out: 1, such as socket`,
  ]);
});

test("a workspace that no guest can take is a warning, an export is an error", async (dir) => {
  const shares = await directories(dir);
  const [work, out] = shares;
  const why = `The guest cannot take a copy of ${work.path}: no room`;
  const alone = await attached(copying(1), [work]);
  assertEquals([alone.result, alone.said], [[], [`No workspace: ${why}`]]);
  const both = await attached(copying(1), shares);
  assertEquals([both.result.message, both.said], [why, []]);
  const exported = await attached(copying(1), [out]);
  assertEquals(exported.result.code, "guest_failed");
  // Of what the user can allow, the hint says how.
  await Deno.writeFile(join(work.path, "large"), new Uint8Array(2 ** 20));
  const large = await attached(copying(), [work], { copyLimit: 1 });
  assertEquals(large.result, []);
  assert(
    large.said[0].endsWith(
      "without 9p; allow more: --copy-limit SIZE, and --memory for the room",
    ),
    large.said[0],
  );
});

test("a machine that breaks off, or a cancel, is no missing workspace", async (dir) => {
  const [work] = await directories(dir);
  const hangUp = (connection: Deno.Conn) => connection.close();
  const agent = (request: Request) =>
    request.execute === "guest-exec" ? hangUp : honest(request);
  const broken = await attached({ agent }, [work]);
  assert(broken.result instanceof VmDisconnectedError);
  const signal = AbortSignal.abort(new Error("enough"));
  const stopped = await attached({}, [work], { signal });
  assertEquals([stopped.result.message, stopped.said], ["enough", []]);
});

test("a network card is waited for until it has an address", async () => {
  let looks = 0;
  const ipv4 = { "ip-addresses": [{ "ip-address-type": "ipv4" }] };
  const ipv6 = { "ip-addresses": [{ "ip-address-type": "ipv6" }, null] };
  const answers: unknown[] = [
    42,
    [null, "eth0", { name: "eth0" }],
    [{ name: "lo", ...ipv4 }, { name: "eth0", ...ipv6 }],
    [{ name: "lo", ...ipv4 }, { name: "eth0", ...ipv4 }],
  ];
  const agent = (request: Request) => {
    if (request.execute !== "guest-network-get-interfaces") return {};
    return looks === 0
      ? (looks++, refusal("not now", request.id))
      : answers[looks++ - 1];
  };
  const { result, asked, said } = await attached({ agent }, [], {
    network: true,
  });
  assertEquals([result, said, looks], [[], [], 5]);
  assertEquals(asked, [
    ["netdev_add", { type: "user", id: "network" }],
    ["device_add", {
      driver: "virtio-net-pci",
      id: "card",
      bus: "slot7",
      netdev: "network",
    }],
  ]);
});

test("a network card without an address is a warning, one that QEMU refuses an error", async () => {
  const agent = (request: Request) =>
    request.execute === "guest-network-get-interfaces" ? [] : {};
  {
    using _timers = hurriedTimers((ms) => ms === 10_000 ? 50 : ms);
    const { said } = await attached({ agent }, [], { network: true });
    assertEquals(said, [
      "The guest has a network card and no address on it yet",
    ]);
  }
  const refused = await attached({ agent, ports: 0 }, [], { network: true });
  assertEquals(refused.result.code, "guest_failed");
  await using fake = await fakeMachine({ agent });
  await using monitor = sharedMonitor(fake.dir);
  const stop = new AbortController();
  const waiting = attachNetwork(monitor, { signal: stop.signal });
  stop.abort(new Error("enough"));
  await assertRejects(() => waiting, Error, "enough");
});

Deno.test("what is left out is counted, and one of it named in a short line", () => {
  assertEquals(leftOut({ count: 0, names: [] }), "");
  assertEquals(
    leftOut({ count: 2, names: ["a\nb", "c"] }),
    "; left out: 2, such as a b",
  );
  const { length } = leftOut({ count: 1, names: ["x".repeat(500)] });
  assert(length < 120, `${length}`);
});
