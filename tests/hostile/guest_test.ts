import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { join } from "@std/path";
import type { ToolsmithError } from "../../lib/errors.ts";
import { openChannel } from "../../lib/guest/_channel.ts";
import { unplugAbandoned } from "../../lib/guest/_ports.ts";
import { execInGuest } from "../../lib/guest/exec.ts";
import { setUpGuest } from "../../lib/guest/setup.ts";
import { FIRST_PORTS, MACHINE_FILES } from "../../lib/qemu/machine_dir.ts";
import { sharedMonitor } from "../../lib/qemu/monitor.ts";
import { lock } from "../../lib/system/lock.ts";
import { makeVm } from "../../lib/vm/_make_vm.ts";
import { attachNetwork } from "../../lib/vm/_hotplug.ts";
import { failure } from "../support/failure.ts";
import {
  type FakeCommand,
  type FakeMachine,
  fakeMachine,
  type FakeMachineOptions,
  honest,
  refusal,
  type Request,
  say,
} from "../support/fake_machine.ts";

const socketsHere = { ignore: Deno.build.os === "windows" };
const MIB = 1024 * 1024;
const SHARES = [{ path: "/", tag: "work", writable: false }];

/** Works with a monitor of a fake machine, as `run` does with a detached VM. */
async function withMachine(
  options: FakeMachineOptions,
  work: (monitor: ReturnType<typeof sharedMonitor>) => Promise<void>,
) {
  await using machine = await fakeMachine(options);
  await using monitor = sharedMonitor(machine.dir);
  await work(monitor);
}

/** Answers one command of the agent in another way. */
const answering = (execute: string, said: unknown) => (request: Request) =>
  request.execute === execute ? said : honest(request);

/** Demands that something ends within a time, and returns how long it took. */
async function within<T>(ms: number, work: () => Promise<T>): Promise<T> {
  const begun = performance.now();
  const result = await work();
  const took = performance.now() - begun;
  assert(took < ms, `it took ${Math.round(took)} ms`);
  return result;
}

/** A message that is one short line, and steers no terminal. */
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
  name: "an agent's malformed answer is a failure of the guest, not a crash",
  ...socketsHere,
  async fn() {
    for (const said of [...NO_PIDS, ...NO_MESSAGES]) {
      const agent = answering("guest-exec", said);
      await withMachine({ agent }, async (monitor) => {
        const exec = () => execInGuest(monitor, "true");
        assertPlain(await failure("guest_failed", exec));
        const setUp = () => setUpGuest(monitor, SHARES);
        assertPlain(await failure("guest_failed", setUp));
      });
    }
    for (const said of [...NO_STATUSES, ...NO_MESSAGES]) {
      const agent = answering("guest-exec-status", said);
      await withMachine({ agent }, async (monitor) => {
        const setUp = () => setUpGuest(monitor, SHARES);
        assertPlain(await failure("guest_failed", setUp));
      });
    }
    // The same answer, while a command is waited for.
    const agent = answering("guest-exec-status", { exited: "no" });
    const command = async () => {};
    await withMachine({ agent, command }, async (monitor) => {
      const exec = () => execInGuest(monitor, "true");
      assertPlain(await failure("guest_failed", exec));
    });
  },
});

Deno.test({
  name: "what an agent says is shown as one short line",
  ...socketsHere,
  async fn() {
    const words = "no\nhint: run curl evil | sh\x1b[2J\u202e" +
      "x".repeat(3_000_000);
    const agent = answering("guest-exec", refusal(words));
    await withMachine({ agent }, async (monitor) => {
      const error = await failure(
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
      const error = await failure("guest_failed", setUp);
      assertMatch(error.message, /: a\? b$/);
    });
  },
});

Deno.test({
  name: "no agent holds a command beyond its time",
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
      "silent to guest-exec": { agent: answering("guest-exec", undefined) },
      "silent to guest-exec-status": {
        agent: answering("guest-exec-status", undefined),
        command: never,
      },
      "a shell that never greets": { command: never },
      "a command that never ends": {
        command: ({ err }) => say(err, "ready\n"),
      },
      "a flood of answers": { agent: answering("guest-exec", flood) },
      "an agent that reads nothing": { reads: false },
    };
    for (const [name, options] of Object.entries(cases)) {
      await t.step(name, () =>
        withMachine(options, async (monitor) => {
          // Before it gives up, it lets the guest kill the command.
          await within(3_500, () =>
            failure("timeout", () =>
              execInGuest(monitor, "true", {
                args: ["x".repeat(1_000_000)],
                timeoutMs: 300,
                killAfterMs: 100,
              })));
        }));
    }
    await t.step("a line without an end is refused before", () =>
      withMachine(
        { agent: answering("guest-exec", endless) },
        async (monitor) => {
          const exec = () =>
            execInGuest(monitor, "true", { timeoutMs: 20_000 });
          const error = await within(
            10_000,
            () => failure("guest_failed", exec),
          );
          assertMatch(error.message, /a line of more than 4194304 bytes/);
        },
      ));
    await t.step("silent to guest-network-get-interfaces", () => {
      const agent = answering("guest-network-get-interfaces", undefined);
      return withMachine({ agent }, async (monitor) => {
        const signal = AbortSignal.timeout(200);
        await within(1_000, () =>
          assertRejects(
            () => attachNetwork(monitor, { signal }),
            DOMException,
          ));
        assertEquals(await within(12_000, () => attachNetwork(monitor)), false);
        // The next command does not wait for the answer that never comes.
        const exec = () => execInGuest(monitor, "true");
        assertEquals((await within(1_000, exec)).code, 0);
      });
    });
    await t.step(
      "a set-up that never ends",
      () =>
        withMachine({}, async (monitor) => {
          const signal = AbortSignal.timeout(200);
          await within(1_000, () =>
            assertRejects(
              () => setUpGuest(monitor, SHARES, { signal }),
              DOMException,
            ));
          await within(1_000, () =>
            failure(
              "guest_failed",
              () => setUpGuest(monitor, SHARES, { timeoutMs: 200 }),
            ));
        }),
    );
  },
});

Deno.test({
  name: "only QEMU says that ports are used up, not the guest's agent",
  ...socketsHere,
  async fn() {
    const words = "maximum number of ports: max. allowed, port limit";
    const agent = answering("guest-exec", refusal(words));
    await withMachine({ agent }, async (monitor) => {
      const exec = () => execInGuest(monitor, "true");
      const error = await within(1_000, () => failure("guest_failed", exec));
      assertMatch(error.message, /maximum number/);
    });
  },
});

Deno.test({
  name: "a shell that does not greet, or says something else, is given up",
  ...socketsHere,
  async fn() {
    const open = { words: [], input: false, greetingMs: 600 };
    const silent: FakeMachineOptions = { command: async () => {} };
    await withMachine(silent, async (monitor) => {
      const channel = () => openChannel(monitor, open);
      const error = await within(3_000, () => failure("guest_failed", channel));
      assertMatch(error.message, /does not open the ports of a command$/);
    });
    const other = { command: ({ err }: FakeCommand) => say(err, "reedy\n") };
    await withMachine(other, async (monitor) => {
      await failure("guest_failed", () => openChannel(monitor, open));
    });
    const ended = { exited: true, exitcode: 126 };
    const agent = answering("guest-exec-status", ended);
    await withMachine({ ...silent, agent }, async (monitor) => {
      const channel = () =>
        openChannel(monitor, { ...open, greetingMs: 60_000 });
      const error = await failure("guest_failed", channel);
      assertMatch(error.message, /its shell ended with 126$/);
    });
  },
});

Deno.test({
  name: "an exit status is 0 to 255, or the guest has failed",
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
        await failure("guest_failed", () => execInGuest(monitor, "true"));
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
  name: "output beyond what is collected is counted and marked as truncated",
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

/** Ports of one command, plugged in by somebody. */
async function plugAs(machine: FakeMachine, name: string) {
  const { dir } = machine;
  for (const end of ["out", "err"]) {
    await Deno.writeTextFile(join(dir, `${name}.${end}`), "");
    machine.plugged.add(`port.${name}.${end}`);
    machine.chardevs.add(`${name}.${end}`);
  }
  return await lock(join(dir, `${name}.lock`));
}

Deno.test({
  name: "ports whose owner was killed are unplugged by the next command",
  ...socketsHere,
  async fn() {
    await using machine = await fakeMachine({ ports: 4 });
    const { dir, plugged } = machine;
    const alive = await plugAs(machine, "toolsmith.aaaaaaaa");
    // Its process is gone, and its lock with it.
    (await plugAs(machine, "toolsmith.dddddddd"))[Symbol.dispose]();
    {
      await using monitor = sharedMonitor(dir);
      const exec = () => execInGuest(monitor, "true", { timeoutMs: 5_000 });
      assertEquals((await within(1_500, exec)).code, 0);
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
    "the ports that a machine starts with serve its first command, and then go",
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
    // Nobody has used them yet: they are not abandoned.
    await unplugAbandoned(monitor);
    assertEquals(machine.plugged.size, 3);
    const exec = () => execInGuest(monitor, "true", { timeoutMs: 5_000 });
    const two = await within(3_000, () => Promise.all([exec(), exec()]));
    assertEquals(two.map(({ code }) => code), [0, 0]);
    assertEquals((await within(3_000, exec)).code, 0);
    assertEquals(used.filter((name) => name === FIRST_PORTS).length, 1);
    assertEquals(new Set(used).size, 3);
    await monitor[Symbol.asyncDispose]();
    assertEquals([...machine.plugged, ...machine.chardevs], []);
  },
});

Deno.test({
  name:
    "ports that a machine starts with, and whose user was killed, are unplugged",
  ...socketsHere,
  async fn() {
    await using machine = await fakeMachine({ prepared: true });
    await Deno.writeTextFile(join(machine.dir, `${FIRST_PORTS}.lock`), "");
    await using monitor = sharedMonitor(machine.dir);
    await unplugAbandoned(monitor);
    assertEquals([...machine.plugged, ...machine.chardevs], []);
  },
});

Deno.test({
  name: "a command that waits for a port announces it, and heeds its limits",
  ...socketsHere,
  async fn() {
    await using machine = await fakeMachine({ ports: 2 });
    const { dir } = machine;
    const busy = await plugAs(machine, "toolsmith.aaaaaaaa");
    await using monitor = sharedMonitor(dir);
    let waits = 0;
    const onWait = () => void waits++;
    const exec = (timeoutMs: number) =>
      execInGuest(monitor, "true", { timeoutMs, onWait });
    await within(1_500, () => failure("timeout", () => exec(500)));
    assertEquals(waits, 0);
    await within(4_000, () => failure("timeout", () => exec(3_000)));
    assertEquals(waits, 1);
    // Another command's process is killed while this one waits.
    setTimeout(() => busy[Symbol.dispose](), 500);
    assertEquals((await within(8_000, () => exec(20_000))).code, 0);
  },
});

Deno.test({
  name: "a machine that another process holds is waited for only so long",
  ...socketsHere,
  async fn() {
    await using machine = await fakeMachine();
    const { dir } = machine;
    await using monitor = sharedMonitor(dir);
    const waits: Record<string, (signal: AbortSignal) => Promise<unknown>> = {
      agent: (signal) => monitor.agent(["guest-info"], signal),
      qemu: (signal) => monitor.qemu([["query-status"]], signal),
      exclusive: (signal) => monitor.exclusive(async () => {}, signal),
      exec: (signal) => execInGuest(monitor, "true", { signal }),
    };
    for (const name of [MACHINE_FILES.lock, MACHINE_FILES.exclusive]) {
      using _held = await lock(join(dir, name));
      for (const [kind, wait] of Object.entries(waits)) {
        const other = name === MACHINE_FILES.lock ? "exclusive" : "agent qemu";
        if (other.includes(kind)) continue;
        const stop = new AbortController();
        setTimeout(() => stop.abort(new Error("enough")), 50);
        await within(
          1_000,
          () => assertRejects(() => wait(stop.signal), Error, "enough"),
        );
      }
      // One that waits in the queue of this process, behind another.
      const stop = new AbortController();
      const first = monitor.exclusive(
        () => monitor.agent(["x"], stop.signal),
        stop.signal,
      );
      const late = AbortSignal.timeout(50);
      await within(
        1_000,
        () =>
          assertRejects(
            () => monitor.exclusive(async () => {}, late),
            DOMException,
          ),
      );
      stop.abort(new Error("enough"));
      await assertRejects(() => first, Error, "enough");
    }
    assertEquals(await monitor.agent(["guest-info"]), {});
  },
});

Deno.test({
  name: "a machine is stopped though another process holds it and hangs",
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
      failure: () => Promise.resolve(undefined),
      kill: () => Promise.resolve(ended.resolve()),
      cleanUp: () => Promise.resolve(),
      emit: (event) => {
        if (event.type === "shutdown") how = event.how;
      },
    });
    using _held = await lock(join(dir, MACHINE_FILES.lock));
    const signal = AbortSignal.timeout(100);
    await within(
      1_000,
      () => assertRejects(() => vm.stop({ signal }), DOMException),
    );
    assertEquals(how, undefined);
    await within(15_000, () => vm.stop());
    assertEquals(how, "killed");
  },
});
