import { assertEquals, assertMatch } from "@std/assert";
import { openCommandChannel } from "../../lib/guest/_command_channel.ts";
import { VmDisconnectedError } from "../../lib/qemu/errors.ts";
import { type Monitor, sharedMonitor } from "../../lib/qemu/monitor.ts";
import { expectFailure } from "../support/expect_failure.ts";
import {
  type FakeCommand,
  fakeMachine,
  type FakeMachineOptions,
  type FakeRequest,
  honest,
  say,
} from "../support/fake_machine.ts";
import { changeTimerDelays } from "../support/timers.ts";

function test(name: string, fn: () => Promise<void>) {
  Deno.test({ name, ignore: Deno.build.os === "windows", fn });
}

const OPEN = { input: "no", start: ["script", "/", "0", "true"] };

/** Opens a command channel and returns the error, if any. */
async function open(
  options: FakeMachineOptions,
  more: Partial<Parameters<typeof openCommandChannel>[1]> = {},
  onWait?: () => void,
): Promise<Error | undefined> {
  await using machine = await fakeMachine(options);
  await using monitor = sharedMonitor(machine.dir);
  try {
    const shell = { ...OPEN, ...more };
    using _channel = await openCommandChannel(monitor, shell, onWait);
    return undefined;
  } catch (error) {
    return error as Error;
  }
}

/** A guest agent that reports these shell states in turn, and its requests. */
function shell(...states: Record<string, unknown>[]) {
  const asked: FakeRequest[] = [];
  const agent = (request: FakeRequest) => {
    asked.push(request);
    return request.execute === "guest-exec-status"
      ? states.shift() ?? { exited: false }
      : honest(request);
  };
  return { agent, asked };
}

/** Shortens the poll interval of 500 ms and sets the final wait of 3 s. */
async function quickly<T>(work: () => Promise<T>, finalWaitMs = 10) {
  const pauses: number[] = [];
  using _timers = changeTimerDelays((ms) => {
    if (![500, 3000].includes(ms)) return ms;
    pauses.push(ms);
    return ms === 3000 ? finalWaitMs : 10;
  });
  return { result: await work(), pauses };
}

test("openCommandChannel() passes port name, stdin flag and arguments to the guest shell", async () => {
  const seen: FakeCommand[] = [];
  const greet = async (command: FakeCommand) => {
    seen.push(command);
    await say(command.err, "ready\n");
  };
  const { agent, asked } = shell();
  assertEquals(await open({ command: greet, agent }), undefined);
  assertEquals(await open({ command: greet }, { input: "yes" }), undefined);
  const [plain, reading] = seen.map(({ words }) => words);
  assertEquals(plain, ["no", ...OPEN.start]);
  assertEquals(reading[0], "yes");
  const markers = new Set(seen.map(({ marker }) => marker));
  assertEquals(markers.size, 2);
  for (const marker of markers) assertMatch(marker, /^[0-9a-f]{32}$/);
  const [{ path, arg }] = asked.map((it) => it.arguments);
  assertEquals([path, (arg as string[])[0]], ["/bin/sh", "-c"]);
});

test("openCommandChannel() reads the ready line in pieces and consumes no byte after it", async () => {
  await using machine = await fakeMachine({
    async command({ err }) {
      for (const part of ["re", "ady", "\nmore"]) {
        await say(err, part);
        await new Promise((done) => setTimeout(done, 5));
      }
    },
  });
  await using monitor = sharedMonitor(machine.dir);
  using channel = await openCommandChannel(monitor, OPEN);
  const bytes = new Uint8Array(9);
  const count = await channel.stderr.read(bytes);
  assertEquals(new TextDecoder().decode(bytes.subarray(0, count!)), "more");
  assertEquals(channel.shellPid, 7);
});

test("openCommandChannel() accepts a ready line that arrives after the shell has exited", async () => {
  const { agent, asked } = shell({ exited: true, exitcode: 0 });
  const greeted = await quickly(() =>
    open({
      agent,
      async command({ err }) {
        while (asked.length < 2) await new Promise((done) => setTimeout(done));
        await say(err, "ready\n");
      },
    }), 600_000);
  assertEquals(greeted.result, undefined);
  // One status poll, then 3 s for a ready line in transit.
  assertEquals(greeted.pauses, [500, 3000]);
});

test("openCommandChannel() reports the shell's exit status when it exits before the ready line", async () => {
  const command = async () => {};
  for (
    const [state, how] of [
      [{ exited: true, exitcode: 2 }, ": its shell exited with status 2"],
      [{ exited: true }, ""],
    ] as const
  ) {
    const { agent } = shell({ exited: false }, state);
    const { result } = await quickly(() => open({ agent, command }));
    assertEquals(
      result?.message,
      `Cannot open the command's virtio-serial ports in the guest${how}`,
    );
  }
});

test("openCommandChannel() fails when the shell sends no ready line for 30 s", async () => {
  const now = performance.now;
  const { agent, asked } = shell();
  let looks = 0;
  performance.now = () => asked.length > 1 ? ++looks * 15_000 : 0;
  try {
    const { result } = await quickly(() =>
      open({ agent, command: async () => {} })
    );
    assertEquals(
      result?.message,
      "Cannot open the command's virtio-serial ports in the guest",
    );
    // The shell is polled once more at exactly 30 s.
    assertEquals(looks, 3);
  } finally {
    performance.now = now;
  }
});

test("openCommandChannel() rejects a wrong or truncated ready line", async () => {
  const other = await open({ command: ({ err }) => say(err, "hello\n") });
  assertEquals(
    other?.message,
    "Cannot open the command's virtio-serial ports in the guest",
  );
  const broken = await open({
    async command({ err }) {
      await say(err, "rea");
      err.close();
    },
  });
  assertEquals(broken instanceof VmDisconnectedError, true);
});

test("openCommandChannel() reports a lost VM when QEMU ends while its ports are plugged", async () => {
  await using machine = await fakeMachine({});
  await using shared = sharedMonitor(machine.dir);
  const monitor: Monitor = {
    ...shared,
    runExclusively: (work) => work(),
    // As if QEMU had created the sockets, and removed them when it ended.
    qemu: () => Promise.resolve([]),
  };
  const error = await openCommandChannel(monitor, OPEN).catch((it) => it);
  assertEquals(error.constructor, VmDisconnectedError, `${error}`);
});

test("openCommandChannel() unplugs its ports when the command fails to start", async () => {
  await using machine = await fakeMachine({
    command: ({ err }) => say(err, "hello\n"),
  });
  const monitor = sharedMonitor(machine.dir);
  await expectFailure("guest_failed", () => openCommandChannel(monitor, OPEN));
  await monitor[Symbol.asyncDispose]();
  assertEquals([...machine.plugged, ...machine.chardevs], []);
});

test("openCommandChannel() without free ports calls onWait once and unplugs orphaned ports every 20 attempts", async () => {
  const waits: number[] = [];
  const stop = new AbortController();
  const reads: number[] = [];
  const { readDir } = Deno;
  let tries = 0;
  Deno.readDir = (path) => {
    reads.push(tries);
    return readDir(path);
  };
  using _timers = changeTimerDelays((ms) => {
    if (ms === 100 && ++tries === 25) stop.abort(new Error("enough"));
    return ms === 100 ? 0 : ms;
  });
  try {
    const { signal } = stop;
    const onWait = () => void waits.push(tries);
    const error = await open({ ports: 0 }, { signal }, onWait);
    assertEquals(error?.message, "enough");
    // After two seconds.
    assertEquals(waits, [20]);
  } finally {
    Deno.readDir = readDir;
  }
  const counts = reads.map((tries) =>
    reads.filter((it) => it === tries).length
  );
  const sweeps = new Set(reads.filter((_, at) => counts[at] === 2));
  assertEquals([...sweeps], [0, 20]);
});
