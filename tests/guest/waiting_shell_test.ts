import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { execInGuest, type ExecInGuestOptions } from "../../lib/guest/exec.ts";
import {
  claimFirstPorts,
  restoredShell,
  startWaitingShell,
} from "../../lib/guest/waiting_shell.ts";
import { VmDisconnectedError } from "../../lib/qemu/errors.ts";
import { sharedMonitor } from "../../lib/qemu/monitor.ts";
import { tryLock } from "../../lib/system/lock.ts";
import { failure } from "../support/failure.ts";
import {
  type FakeMachine,
  fakeMachine,
  honest,
  readFrames,
  refusal,
  type Request,
  say,
} from "../support/fake_machine.ts";
import {
  type WaitingGuestOptions,
  waitInGuest,
} from "../support/waiting_guest.ts";

function test(name: string, fn: () => Promise<void>) {
  Deno.test({ name, ignore: Deno.build.os === "windows", fn });
}

/** A machine that was restored, and what the shell in it is told. */
async function restored(options: WaitingGuestOptions = {}) {
  await using undo = new AsyncDisposableStack();
  const asked: Request[] = [];
  const own: { agent?: (request: Request) => unknown } = {};
  const agent = (request: Request) => {
    if (request.execute === "guest-exec") asked.push(request);
    return own.agent?.(request) ?? honest(request);
  };
  const machine = undo.use(await fakeMachine({ prepared: true, agent }));
  const monitor = undo.use(sharedMonitor(machine.dir));
  const told: string[][] = [];
  const guest = waitInGuest(machine, {
    ...options,
    setUp(marker, words) {
      told.push(words);
      return options.setUp?.(marker, words) ?? `${marker}0 7\n`;
    },
  });
  guest.catch(() => {});
  const claim = await claimFirstPorts(machine.dir);
  const waiting = restoredShell(monitor, claim);
  undo.defer(() => waiting.close());
  const all = undo.move();
  const run = (command: string, more: ExecInGuestOptions = {}) =>
    execInGuest(monitor, command, { waiting, ...more });
  return Object.assign(own, {
    ...{ machine, monitor, waiting, told, asked, run },
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  });
}

const LIMITS = { timeoutMs: 5000 };

test("the shell sets the guest up, and becomes the first command that is run", async () => {
  await using on = await restored({
    setUp: (marker) => `clock\n${marker}1 4194304\n`,
  });
  const status = await on.waiting.setUp(["1.5", "", "wörk"], LIMITS);
  const output = "clock\n";
  assertEquals(status, { exited: true, exitCode: 1, output });
  assertEquals(on.told, [["1.5", "", "w\\0303\\0266rk"]]);
  const env = { A: "a\\b\n" };
  const { code, stdout } = await on.run("echo", { args: ["~ x"], env });
  assertEquals(code, 3);
  assertEquals(stdout, "no / / 1 A=a\\0134b\\0012 echo ~ x");
  assertEquals(on.asked, []);
});

test("what has no input is told so, and what has gets it", async () => {
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
    await on.run("cat", { stdin });
    // Nothing is to be set up, and its process id is needed.
    assertEquals(on.told, [[]]);
  }
  assertEquals(inputs, ["no", "", "yes", "some text"]);
});

test("what comes later, or takes long to tell, is run by a shell of its own", async () => {
  const long: [args: string[], code: number][] = [
    // "command 6", "no", "/", "/", "0" and "echo", each with the end of its line.
    [["x".repeat(2048 - 10 - 3 - 2 - 2 - 2 - 5 - 1)], 3],
    [["x".repeat(2048 - 10 - 3 - 2 - 2 - 2 - 5)], 0],
    [Array(59).fill("x"), 3],
    [Array(60).fill("x"), 0],
    [Array(8).fill("\n"), 3],
    [Array(9).fill("\n"), 0],
  ];
  for (const [args, code] of long) {
    await using on = await restored();
    assertEquals((await on.run("echo", { args })).code, code);
    assertEquals(on.asked.length, code === 0 ? 1 : 0);
  }
  await using on = await restored();
  const both = await Promise.all([on.run("first"), on.run("second")]);
  assertEquals(both.map(({ code }) => code), [3, 0]);
  assertEquals(on.asked.length, 1);
});

test("a command is ended by the shell that has become it", async () => {
  await using on = await restored({
    async command({ marker, out, err }) {
      const bytes = new Uint8Array(5);
      await err.read(bytes);
      await say(out, `${marker}143\n`);
      await say(err, `${new TextDecoder().decode(bytes)}${marker}\n`);
    },
  });
  const stop = new AbortController();
  const running = on.run("sleep", { signal: stop.signal });
  setTimeout(() => stop.abort(new Error("enough")), 20);
  assertEquals((await running.catch((error) => error)).message, "enough");
});

test("a shell that answers otherwise, or not at all, is given up with its ports", async () => {
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
    const limits = { timeoutMs: 50 };
    const error = await on.waiting.setUp(["x"], limits)
      .catch((error) => error);
    assert(error instanceof VmDisconnectedError, said);
    await on.monitor[Symbol.asyncDispose]();
    assertEquals([...on.machine.plugged, ...on.machine.chardevs], []);
    // The next has a shell of its own.
    assertEquals((await on.run("true")).code, 0);
  }
  await using on = await restored({ setUp: () => "" });
  const stop = new AbortController();
  const running = on.run("true", { signal: stop.signal });
  setTimeout(() => stop.abort(new Error("enough")), 20);
  assertEquals((await running.catch((error) => error)).message, "enough");
  await on.monitor[Symbol.asyncDispose]();
  assertEquals(on.machine.plugged.size, 0);
});

test("a command whose shell was killed by one before it has a shell of its own", async () => {
  const ends: WaitingGuestOptions["start"][] = [
    // The shell around it reads its next line as the marker.
    ({ err }) => say(err, "5\n5\n"),
    // None is left; the agent is asked.
    () => Promise.resolve(),
  ];
  for (const start of ends) {
    await using on = await restored({ start });
    on.agent = ({ execute, arguments: { pid } }) =>
      execute === "guest-exec-status" && pid === 7
        ? refusal("Invalid parameter 'pid'")
        : undefined;
    assertEquals((await on.run("true")).code, 0);
    await on.monitor[Symbol.asyncDispose]();
    assertEquals(on.machine.plugged.size, 0);
  }
  // One that nothing was to be set up by, and that answers to nothing.
  await using on = await restored({ setUp: (marker) => `${marker}\n` });
  assertEquals((await on.run("true")).code, 0);
});

test("a shell that is not needed lets go of its ports, or unplugs them", async () => {
  const lockOf = ({ dir }: FakeMachine) =>
    tryLock(join(dir, "toolsmith.prepared.lock"));
  {
    await using on = await restored();
    on.waiting.close();
    on.waiting[Symbol.dispose]();
    using free = await lockOf(on.machine);
    assertEquals(free === undefined, false);
    await on.monitor[Symbol.asyncDispose]();
    assertEquals(on.machine.plugged.size, 3);
  }
  await using on = await restored();
  assertEquals(await lockOf(on.machine), undefined);
  on.waiting[Symbol.dispose]();
  await on.monitor[Symbol.asyncDispose]();
  assertEquals(on.machine.plugged.size, 0);
});

test("a shell is started where it greets, on the ports of the machine's start", async () => {
  const words: string[][] = [];
  await using machine = await fakeMachine({
    prepared: true,
    agent(request) {
      words.push(request.arguments.arg as string[]);
      return honest(request);
    },
  });
  await using monitor = sharedMonitor(machine.dir);
  const waiting = await startWaitingShell(monitor);
  assertEquals(words[0].slice(2, 5), ["sh", "toolsmith.prepared", "yes"]);
  waiting[Symbol.dispose]();
});

test("a guest that does not start such a shell has no ports less", async () => {
  await using machine = await fakeMachine({
    prepared: true,
    agent: () => {
      throw new VmDisconnectedError();
    },
  });
  await using monitor = sharedMonitor(machine.dir);
  await failure("guest_failed", () => startWaitingShell(monitor));
  await monitor[Symbol.asyncDispose]();
  assertEquals([...machine.plugged, ...machine.chardevs], []);
});
