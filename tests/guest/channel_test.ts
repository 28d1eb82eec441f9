import { assertEquals, assertMatch } from "@std/assert";
import { openChannel } from "../../lib/guest/_channel.ts";
import { VmDisconnectedError } from "../../lib/qemu/errors.ts";
import { sharedMonitor } from "../../lib/qemu/monitor.ts";
import { failure } from "../support/failure.ts";
import {
  type FakeCommand,
  fakeMachine,
  type FakeMachineOptions,
  honest,
  type Request,
  say,
} from "../support/fake_machine.ts";
import { hurriedTimers } from "../support/timers.ts";

function test(name: string, fn: () => Promise<void>) {
  Deno.test({ name, ignore: Deno.build.os === "windows", fn });
}

const OPEN = { words: ["/", "0", "true"], input: false };

/** Opens a channel of a machine; returns what is wrong, if anything is. */
async function open(
  options: FakeMachineOptions,
  more: Partial<Parameters<typeof openChannel>[1]> = {},
): Promise<Error | undefined> {
  await using machine = await fakeMachine(options);
  await using monitor = sharedMonitor(machine.dir);
  try {
    using _channel = await openChannel(monitor, { ...OPEN, ...more });
    return undefined;
  } catch (error) {
    return error as Error;
  }
}

/** An agent whose shell is in such states, look by look; how often it is asked. */
function shell(...states: Record<string, unknown>[]) {
  const asked: Request[] = [];
  const agent = (request: Request) => {
    asked.push(request);
    return request.execute === "guest-exec-status"
      ? states.shift() ?? { exited: false }
      : honest(request);
  };
  return { agent, asked };
}

/** Lets the half second between two looks, and the three at the end, pass at once. */
async function quickly<T>(work: () => Promise<T>) {
  const pauses: number[] = [];
  using _timers = hurriedTimers((ms) => {
    if (![500, 3000].includes(ms)) return ms;
    pauses.push(ms);
    return 10;
  });
  return { result: await work(), pauses };
}

test("a command's shell is told its ports, its input, or its terminal", async () => {
  const seen: FakeCommand[] = [];
  const greet = async (command: FakeCommand) => {
    seen.push(command);
    await say(command.err, "ready\n");
  };
  const { agent, asked } = shell();
  assertEquals(await open({ command: greet, agent }), undefined);
  assertEquals(await open({ command: greet }, { input: true }), undefined);
  const terminal = { device: "/dev/ttyS1", rows: 24, columns: 80 };
  assertEquals(await open({ command: greet }, { terminal }), undefined);
  const [plain, reading, shown] = seen.map(({ words }) => words);
  assertEquals([plain[0], ...plain.slice(2)], ["no", ...OPEN.words]);
  assertEquals(reading[0], "yes");
  assertEquals(shown.slice(0, 3), ["/dev/ttyS1", "24", "80"]);
  assertEquals(shown.slice(5), OPEN.words);
  const markers = new Set(seen.map(({ marker }) => marker));
  assertEquals(markers.size, 3);
  for (const marker of markers) assertMatch(marker, /^[0-9a-f]{32}$/);
  const [{ path, arg }] = asked.map((it) => it.arguments);
  assertEquals([path, (arg as string[])[0]], ["/bin/sh", "-c"]);
});

test("a greeting is read byte for byte, and nothing after it", async () => {
  await using machine = await fakeMachine({
    async command({ err }) {
      for (const part of ["re", "ady", "\nmore"]) {
        await say(err, part);
        await new Promise((done) => setTimeout(done, 5));
      }
    },
  });
  await using monitor = sharedMonitor(machine.dir);
  using channel = await openChannel(monitor, OPEN);
  const bytes = new Uint8Array(9);
  const count = await channel.err.read(bytes);
  assertEquals(new TextDecoder().decode(bytes.subarray(0, count!)), "more");
  assertEquals(channel.pid, 7);
});

test("a shell that is quick has greeted though it has ended", async () => {
  const { agent, asked } = shell({ exited: true, exitcode: 0 });
  const greeted = await quickly(() =>
    open({
      agent,
      async command({ err }) {
        while (asked.length < 2) await new Promise((done) => setTimeout(done));
        await say(err, "ready\n");
      },
    })
  );
  assertEquals(greeted.result, undefined);
  // It is looked at twice a second, and what is on its way has three.
  assertEquals(greeted.pauses, [500, 3000]);
});

test("a shell that ends without a greeting is told by its status", async () => {
  const command = async () => {};
  for (
    const [state, how] of [
      [{ exited: true, exitcode: 2 }, ": its shell ended with 2"],
      [{ exited: true }, ""],
    ] as const
  ) {
    const { agent } = shell({ exited: false }, state);
    const { result } = await quickly(() => open({ agent, command }));
    assertEquals(
      result?.message,
      `The guest does not open the ports of a command${how}`,
    );
  }
});

test("a shell that neither greets nor ends has half a minute", async () => {
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
      "The guest does not open the ports of a command",
    );
    // At the half minute itself it is given another look.
    assertEquals(looks, 3);
  } finally {
    performance.now = now;
  }
});

test("a greeting that is another, or breaks off, is no command", async () => {
  const other = await open({ command: ({ err }) => say(err, "hello\n") });
  assertEquals(
    other?.message,
    "The guest does not open the ports of a command",
  );
  const broken = await open({
    async command({ err }) {
      await say(err, "rea");
      err.close();
    },
  });
  assertEquals(broken instanceof VmDisconnectedError, true);
});

test("a command that failed to start leaves no ports", async () => {
  await using machine = await fakeMachine({
    command: ({ err }) => say(err, "hello\n"),
  });
  const monitor = sharedMonitor(machine.dir);
  await failure("guest_failed", () => openChannel(monitor, OPEN));
  await monitor[Symbol.asyncDispose]();
  assertEquals([...machine.plugged, ...machine.chardevs], []);
});

test("who waits for ports looks for those of the dead every twenty tries, and says once that it waits", async () => {
  const now = performance.now;
  const waits: number[] = [];
  const stop = new AbortController();
  const reads: number[] = [];
  const { readDir } = Deno;
  let tries = 0;
  performance.now = () => tries * 100;
  Deno.readDir = (path) => {
    reads.push(tries);
    return readDir(path);
  };
  using _timers = hurriedTimers((ms) => {
    if (ms === 100 && ++tries === 25) stop.abort(new Error("enough"));
    return ms === 100 ? 0 : ms;
  });
  try {
    const { signal } = stop;
    const onWait = () => void waits.push(tries);
    const error = await open({ ports: 0 }, { signal, onWait });
    assertEquals(error?.message, "enough");
    // After two seconds.
    assertEquals(waits, [21]);
  } finally {
    performance.now = now;
    Deno.readDir = readDir;
  }
  const counts = reads.map((tries) =>
    reads.filter((it) => it === tries).length
  );
  const sweeps = new Set(reads.filter((_, at) => counts[at] === 2));
  assertEquals([...sweeps], [0, 20]);
});
