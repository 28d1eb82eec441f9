import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { plugPorts } from "../../lib/guest/_ports.ts";
import { execInGuest, type ExecInGuestOptions } from "../../lib/guest/exec.ts";
import {
  claimFirstPorts,
  findWaitingShell,
  type SetUpShell,
  startWaitingShell,
} from "../../lib/guest/waiting_shell.ts";
import { ToolsmithError } from "../../lib/errors.ts";
import { VmDisconnectedError } from "../../lib/qemu/errors.ts";
import { type Monitor, sharedMonitor } from "../../lib/qemu/monitor.ts";
import { tryLock } from "../../lib/system/lock.ts";
import { failure } from "../support/failure.ts";
import {
  type FakeMachine,
  fakeMachine,
  honest,
  readFrames,
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
  const agent = (request: Request) => {
    asked.push(request);
    return honest(request);
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
  const waiting = await findWaitingShell(monitor, claim) as SetUpShell;
  undo.defer(() => waiting.close());
  const all = undo.move();
  const run = (command: string, more: ExecInGuestOptions = {}) =>
    execInGuest(monitor, command, { waiting, ...more });
  return {
    ...{ machine, monitor, waiting, told, asked, run },
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

const late = () => new ToolsmithError("guest_failed", "late");
const HOW = { timeoutMs: 5000, late };

test("the shell sets the guest up, and becomes the first command that is run", async () => {
  await using on = await restored({
    setUp: (marker) => `clock\n${marker}1 4194304\n`,
  });
  const status = await on.waiting.setUp(["1.5", "", "wörk"], HOW);
  const output = "clock\n";
  assertEquals(status, { exited: true, exitCode: 1, output });
  assertEquals(on.told, [["1.5", "", "w\\0303\\0266rk"]]);
  const env = { A: "a\\b\n" };
  const { code, stdout } = await on.run("echo", { args: ["~ x"], env });
  assertEquals(code, 3);
  assertEquals(stdout, "no / 1 A=a\\0134b\\0012 echo ~ x");
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

test("what comes later, or is long, is run by a shell of its own", async () => {
  await using on = await restored();
  const long = { args: ["x".repeat(4096)] };
  assertEquals((await on.run("echo", long)).code, 0);
  assertEquals(on.asked.length, 1);
  const both = await Promise.all([on.run("first"), on.run("second")]);
  assertEquals(both.map(({ code }) => code), [3, 0]);
  assertEquals(on.asked.length, 2);
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

test("a shell that answers otherwise, late or not at all is given up with its ports", async () => {
  const answers: [string, number, string][] = [
    ["MARKER0\n", 5000, "VmDisconnectedError"],
    ["MARKERx 7\n", 5000, "VmDisconnectedError"],
    ["MARKER0 12345678901\n", 5000, "VmDisconnectedError"],
    ["clock\n", 50, "ToolsmithError"],
  ];
  for (const [said, timeoutMs, name] of answers) {
    await using on = await restored({
      setUp: (marker) => said.replace("MARKER", marker),
    });
    const how = { timeoutMs, late };
    const error = await on.waiting.setUp(["x"], how).catch((error) => error);
    assertEquals(error.constructor.name, name, said);
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

test("a guest that was saved without such a shell has its ports for any command", async () => {
  await using machine = await fakeMachine({ prepared: true });
  await using shared = sharedMonitor(machine.dir);
  const closed = { label: "toolsmith.prepared.err", "frontend-open": false };
  const open = { label: "toolsmith.prepared.out", "frontend-open": true };
  const monitor: Monitor = {
    ...shared,
    qemu: () => Promise.resolve([[closed, open]]),
  };
  const claim = await claimFirstPorts(machine.dir);
  assertEquals(await findWaitingShell(monitor, claim), undefined);
  using ports = await plugPorts(shared, { input: true });
  assertEquals(ports?.name, "toolsmith.prepared");
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
  using waiting = await startWaitingShell(monitor);
  assertEquals(waiting === undefined, false);
  assertEquals(words[0].slice(2, 5), ["sh", "toolsmith.prepared", "yes"]);
  await using full = await fakeMachine({ ports: 0 });
  await using other = sharedMonitor(full.dir);
  assertEquals(await startWaitingShell(other), undefined);
});

test("a guest that does not start such a shell has no ports less", async () => {
  await using machine = await fakeMachine({
    agent: () => {
      throw new VmDisconnectedError();
    },
  });
  await using monitor = sharedMonitor(machine.dir);
  await failure("guest_failed", () => startWaitingShell(monitor));
  await monitor[Symbol.asyncDispose]();
  assertEquals([...machine.plugged, ...machine.chardevs], []);
});
