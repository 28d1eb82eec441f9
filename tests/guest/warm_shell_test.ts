import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { execInGuest, type ExecInGuestOptions } from "../../lib/guest/exec.ts";
import {
  connectFirstCommandPorts,
  startWarmShell,
  warmShellOnPorts,
} from "../../lib/guest/warm_shell.ts";
import { VmDisconnectedError } from "../../lib/qemu/errors.ts";
import { sharedMonitor } from "../../lib/qemu/monitor.ts";
import { tryFileLock } from "../../lib/system/lock.ts";
import { startDeadline } from "../../lib/system/time.ts";
import { expectFailure } from "../support/expect_failure.ts";
import {
  type FakeMachine,
  fakeMachine,
  type FakeRequest,
  honest,
  readFrames,
  refusal,
  say,
} from "../support/fake_machine.ts";
import { holdTimers } from "../support/timers.ts";
import {
  runWarmShellGuest,
  type WaitingGuestOptions,
} from "../support/waiting_guest.ts";

function test(name: string, fn: () => Promise<void>) {
  Deno.test({ name, ignore: Deno.build.os === "windows", fn });
}

/** A restored VM, and the requests to its warm shell. */
async function restored(options: WaitingGuestOptions = {}) {
  await using undo = new AsyncDisposableStack();
  const asked: FakeRequest[] = [];
  const own: { agent?: (request: FakeRequest) => unknown } = {};
  const agent = (request: FakeRequest) => {
    if (request.execute === "guest-exec") asked.push(request);
    return own.agent?.(request) ?? honest(request);
  };
  const machine = undo.use(await fakeMachine({ prepared: true, agent }));
  const monitor = undo.use(sharedMonitor(machine.dir));
  const told: string[][] = [];
  const guest = runWarmShellGuest(machine, {
    ...options,
    setUp(marker, words) {
      told.push(words);
      return options.setUp?.(marker, words) ?? `${marker}0 7\n`;
    },
  });
  guest.catch(() => {});
  const claim = await connectFirstCommandPorts(machine.dir);
  const shell = warmShellOnPorts(monitor, claim);
  undo.defer(() => shell.disconnect());
  const all = undo.move();
  const run = (command: string, more: ExecInGuestOptions = {}) =>
    execInGuest(monitor, command, { warmShell: shell, ...more });
  return Object.assign(own, {
    ...{ machine, monitor, shell, told, asked, run },
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  });
}

test("Warm shell: sets up the guest, then runs the first command", async () => {
  await using on = await restored({
    setUp: (marker) => `clock\n${marker}1 4194304\n`,
  });
  const status = await on.shell.setUpGuest(["1.5", "", "wörk"]);
  assertEquals(status, { exitCode: 1, stdout: "clock\n" });
  assertEquals(on.told, [["1.5", "", "w\\0303\\0266rk"]]);
  const env = { A: "a\\b\n" };
  const { code, stdout } = await on.run("echo", { args: ["~ x"], env });
  assertEquals(code, 3);
  assertEquals(stdout, "no / / 1 A=a\\0134b\\0012 echo ~ x");
  assertEquals(on.asked, []);
});

test("Warm shell: passes stdin to its command, or reports that there is none", async () => {
  const inputs: string[] = [];
  for (const stdin of [undefined, "some text"]) {
    await using on = await restored({
      async command({ words, marker, out, err, in: port }) {
        const bytes = await readFrames(port);
        inputs.push(words[0], new TextDecoder().decode(bytes));
        await say(out, `${marker}0\n`);
        await say(err, `${marker}\n`);
      },
    });
    await on.shell.setUpGuest([]);
    await on.run("cat", { stdin });
  }
  assertEquals(inputs, ["no", "", "yes", "some text"]);
});

test("Warm shell: a second or too long command starts a new shell", async () => {
  const long: [args: string[], code: number][] = [
    // "command 6 MARKER", "no", "/", "/", "0" and "echo", each with the end of its line.
    [["x".repeat(2048 - 43 - 3 - 2 - 2 - 2 - 5 - 1)], 3],
    [["x".repeat(2048 - 43 - 3 - 2 - 2 - 2 - 5)], 0],
    [Array(59).fill("x"), 3],
    [Array(60).fill("x"), 0],
    [Array(8).fill("\n"), 3],
    [Array(9).fill("\n"), 0],
  ];
  for (const [args, code] of long) {
    await using on = await restored();
    await on.shell.setUpGuest([]);
    assertEquals((await on.run("echo", { args })).code, code);
    assertEquals(on.asked.length, code === 0 ? 1 : 0);
  }
  await using on = await restored();
  await on.shell.setUpGuest([]);
  const both = await Promise.all([on.run("first"), on.run("second")]);
  assertEquals(both.map(({ code }) => code), [3, 0]);
  assertEquals(on.asked.length, 1);
});

test("Warm shell: an aborted command throws the abort's reason", async () => {
  const stop = new AbortController();
  await using on = await restored({
    async command({ marker, out, err }) {
      stop.abort(new Error("enough"));
      const bytes = new Uint8Array(5);
      await err.read(bytes);
      await say(out, `${marker}143\n`);
      await say(err, `${new TextDecoder().decode(bytes)}${marker}\n`);
    },
  });
  await on.shell.setUpGuest([]);
  const running = on.run("sleep", { signal: stop.signal });
  assertEquals((await running.catch((error) => error)).message, "enough");
});

test("Warm shell: a command that is aborted before it has started is not waited for", async () => {
  // The interval of the polls.
  using polling = holdTimers(500);
  const stop = new AbortController();
  await using on = await restored({
    start: () =>
      new Promise(() => {
        stop.abort(new Error("enough"));
        polling.expire();
      }),
  });
  await on.shell.setUpGuest([]);
  const polls: string[] = [];
  on.agent = ({ execute }) => {
    polls.push(execute);
    return { exited: true };
  };
  const running = on.run("sleep", { signal: stop.signal });
  assertEquals((await running.catch((error) => error)).message, "enough");
  await on.monitor[Symbol.asyncDispose]();
  assertEquals([polls, on.machine.plugged.size], [[], 0]);
});

test("Warm shell: unplugs its ports when setUpGuest() gets a malformed answer or none", async () => {
  const answers = [
    "MARKER0\n",
    "MARKERx 7\n",
    "MARKER0 12345678901\n",
    "clock\n",
  ];
  for (const said of answers) {
    await using on = await restored({
      setUp: (marker) => said.replace("MARKER", marker),
    });
    const lost = () => new VmDisconnectedError();
    using limit = startDeadline(50, lost);
    const error = await on.shell.setUpGuest(["x"], limit.signal)
      .catch((error) => error);
    assert(error instanceof VmDisconnectedError, said);
    await on.monitor[Symbol.asyncDispose]();
    assertEquals([...on.machine.plugged, ...on.machine.chardevs], []);
    // The next command starts a new shell.
    assertEquals((await on.run("true")).code, 0);
  }
  const stop = new AbortController();
  await using on = await restored({
    setUp() {
      stop.abort(new Error("enough"));
      return "";
    },
  });
  const running = on.shell.setUpGuest([], stop.signal);
  assertEquals((await running.catch((error) => error)).message, "enough");
  await on.monitor[Symbol.asyncDispose]();
  assertEquals(on.machine.plugged.size, 0);
});

test("Warm shell: a command starts a new shell when the warm shell was killed", async () => {
  const ends: WaitingGuestOptions["start"][] = [
    // The surrounding shell reads the next line as the end marker.
    ({ err }) => say(err, "5\n5\n"),
    // No shell is left, as the agent reports.
    () => Promise.resolve(),
  ];
  for (const start of ends) {
    await using on = await restored({ start });
    await on.shell.setUpGuest([]);
    on.agent = ({ execute, arguments: { pid } }) => {
      if (execute === "guest-exec") return { pid: 8 };
      return execute === "guest-exec-status" && pid === 7
        ? refusal("Invalid parameter 'pid'")
        : undefined;
    };
    assertEquals((await on.run("true")).code, 0);
    await on.monitor[Symbol.asyncDispose]();
    assertEquals(on.machine.plugged.size, 0);
  }
  // The guest was never set up.
  await using on = await restored();
  assertEquals((await on.run("true")).code, 0);
});

test("Warm shell: disconnect() leaves its ports plugged in, dispose unplugs them", async () => {
  const lockOf = ({ dir }: FakeMachine) =>
    tryFileLock(join(dir, "toolsmith.prepared.lock"));
  {
    await using on = await restored();
    on.shell.disconnect();
    on.shell[Symbol.dispose]();
    using free = await lockOf(on.machine);
    assertEquals(free === undefined, false);
    await on.monitor[Symbol.asyncDispose]();
    assertEquals(on.machine.plugged.size, 3);
  }
  await using on = await restored();
  assertEquals(await lockOf(on.machine), undefined);
  on.shell[Symbol.dispose]();
  await on.monitor[Symbol.asyncDispose]();
  assertEquals(on.machine.plugged.size, 0);
});

test("startWarmShell() starts a shell on the ports of the first command", async () => {
  const words: string[][] = [];
  await using machine = await fakeMachine({
    prepared: true,
    agent(request) {
      words.push(request.arguments.arg as string[]);
      return honest(request);
    },
  });
  await using monitor = sharedMonitor(machine.dir);
  const shell = await startWarmShell(monitor);
  assertEquals(words[0].slice(2, 5), ["sh", "toolsmith.prepared", "yes"]);
  shell[Symbol.dispose]();
});

test("startWarmShell() unplugs the first command's ports when the guest cannot start a shell", async () => {
  await using machine = await fakeMachine({
    prepared: true,
    agent: () => {
      throw new VmDisconnectedError();
    },
  });
  await using monitor = sharedMonitor(machine.dir);
  await expectFailure("guest_failed", () => startWarmShell(monitor));
  await monitor[Symbol.asyncDispose]();
  assertEquals([...machine.plugged, ...machine.chardevs], []);
});
