/**
 * Events and failures of commands, with a fake VM, as real ones rarely fail in these
 * ways.
 */
import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { createEmitter } from "../../lib/events.ts";
import type { GuestShare } from "../../lib/qemu/args.ts";
import { type Monitor, sharedMonitor } from "../../lib/qemu/monitor.ts";
import { ToolsmithError } from "../../lib/errors.ts";
import { acquireFileLock } from "../../lib/system/lock.ts";
import { makeVm, type VmParts } from "../../lib/vm/_make_vm.ts";
import type { Vm } from "../../lib/vm/vm.ts";
import { temporaryDir } from "../support/directory.ts";
import {
  type FakeCommand,
  fakeMachine,
  type FakeMachineOptions,
  type FakeRequest,
  honest,
  readLine,
  refusal,
  say,
} from "../support/fake_machine.ts";
import { makeTar } from "../support/tar.ts";
import { changeTimerDelays, installMovingClock } from "../support/timers.ts";

interface Bench {
  vm: Pick<Vm, "exec" | "terminal">;
  events: Record<string, unknown>[];
  dir: string;
}

const never = new Promise<never>(() => {});

/** Runs commands in a VM made of a fake machine and other parts. */
async function withVm(
  options: FakeMachineOptions & {
    parts?: Partial<VmParts>;
    shares?: GuestShare[];
  },
  work: (bench: Bench) => Promise<void>,
) {
  await using machine = await fakeMachine(options);
  await using monitor = sharedMonitor(machine.dir);
  const events: Record<string, unknown>[] = [];
  const vm = makeVm({
    facts: {
      ...{ image: "/a.qcow2", pid: 1, dir: machine.dir, version: "7.2.22" },
      ...{ accelerator: "tcg", memory: 512, cpus: 1, network: false },
      shares: options.shares ?? [],
    },
    monitor,
    ended: never,
    graceMs: 0,
    endReason: () => Promise.resolve(undefined),
    killQemu: () => never,
    cleanUp: () => never,
    emit: createEmitter((event) => events.push({ ...event })),
    ...options.parts,
  });
  await work({ vm, events, dir: machine.dir });
}

function test(name: string, fn: () => Promise<void>) {
  Deno.test({ name, ignore: Deno.build.os === "windows", fn });
}

/** Prints a text and ends a command with a status. */
async function end({ marker, out, err }: FakeCommand, code = 0, text = "") {
  await say(err, `ready\n${marker}\n`);
  await say(out, `${text}${marker}${code}\n`);
}

/** The command name, which follows directories and variables. */
function commandOf(words: string[]): string {
  return words[5 + Number(words[4])];
}

const WORK: GuestShare = { path: "/work", tag: "work", writable: false };

test("exec() emits command_dispatch and command_end with status and byte counts", async () => {
  using clock = installMovingClock();
  await withVm(
    {
      command(it) {
        clock.pass(3_600_000);
        return end(it, 3, "text");
      },
    },
    async ({ vm, events }) => {
      const { code } = await vm.exec("tool", { args: ["a"] });
      assertEquals(code, 3);
      const [start, over] = events;
      const { id } = start;
      assert(id !== undefined);
      const { timestamp: _start, ...dispatch } = start;
      assertEquals<unknown>(dispatch, {
        ...{ type: "command_dispatch", id, command: "tool", backend: "qemu" },
      });
      const { timestamp: _end, elapsedMs, ...result } = over;
      assertEquals(result, {
        ...{ type: "command_end", id, code: 3, signal: null },
        ...{ stdoutBytes: 4, stderrBytes: 0 },
      });
      assert(Number.isInteger(elapsedMs), `${elapsedMs}`);
      assertEquals(Math.floor(elapsedMs as number / 3_600_000), 1);
      assertEquals(events.length, 2);
      await vm.exec("tool");
      assert(events[2].id !== id);
    },
  );
});

test("exec() starts in the caller's directory if mounted, else in the workspace", async () => {
  await using dir = await temporaryDir();
  const at = (name: string) => join(dir.path, name);
  await Deno.mkdir(at("work/sub/out/deep"), { recursive: true });
  await Deno.mkdir(at("workshop"));
  await Deno.symlink(at("work/sub"), at("link"));
  const work = { ...WORK, path: at("work") };
  const out = { path: at("work/sub/out"), tag: "made", writable: true };
  type Chosen = { cwd?: string; hostCwd?: string };
  const cases: [GuestShare[], Chosen, string, string?][] = [
    [[work], {}, "/mnt/work"],
    [[work], { cwd: "sub" }, "/mnt/work/sub"],
    [[work], { cwd: "/tmp" }, "/tmp"],
    [[{ ...work, tag: "other" }], {}, "/"],
    [[], { cwd: "sub" }, "/sub"],
    [[work], { hostCwd: at("work") }, "/mnt/work"],
    [[work], { hostCwd: at("work/sub") }, "/mnt/work/sub", "/mnt/work"],
    [[work], { hostCwd: at("link") }, "/mnt/work/sub", "/mnt/work"],
    [[work], { hostCwd: at("work/gone") }, "/mnt/work/gone", "/mnt/work"],
    [[work], { hostCwd: at("work/sub"), cwd: "a" }, "/mnt/work/sub/a"],
    [[work], { hostCwd: at("work/sub"), cwd: ".." }, "/mnt/work"],
    [[work], { hostCwd: at("work/sub"), cwd: "/tmp" }, "/tmp"],
    // Outside, with a common name prefix.
    [[work], { hostCwd: dir.path }, "/mnt/work"],
    [[work], { hostCwd: at("workshop") }, "/mnt/work"],
    [[work], { hostCwd: dir.path, cwd: "sub" }, "/mnt/work/sub"],
    // The most specific directory wins, in any order.
    ...[[work, out], [out, work]].map((shares): typeof cases[number] => [
      ...[shares, { hostCwd: at("work/sub/out/deep") }] as const,
      ...["/mnt/made/deep", "/mnt/work"] as const,
    ]),
    [[out], { hostCwd: at("work/sub/out") }, "/mnt/made", "/"],
    // The workspace could not be mounted.
    [[], { hostCwd: at("work/sub") }, "/"],
  ];
  for (const [shares, chosen, cwd, otherwise = cwd] of cases) {
    let words: string[] = [];
    const command = (it: FakeCommand) => {
      words = it.words;
      return end(it);
    };
    await withVm({ command, shares }, async ({ vm }) => {
      await vm.exec("pwd", chosen);
      assertEquals(words.slice(2, 4), [cwd, otherwise], JSON.stringify(chosen));
    });
  }
});

test("exec() adds safe.directory to the git configuration in the environment", async () => {
  const cases: [Record<string, string>, string[]][] = [
    [{}, ["1", "0"]],
    [{ GIT_CONFIG_COUNT: "0" }, ["1", "0"]],
    [{
      GIT_CONFIG_COUNT: "2",
      ...{ GIT_CONFIG_KEY_0: "a.b", GIT_CONFIG_VALUE_0: "c" },
      ...{ GIT_CONFIG_KEY_1: "d.e", GIT_CONFIG_VALUE_1: "f" },
    }, ["3", "2"]],
  ];
  let given: Record<string, string> = {};
  const command = (it: FakeCommand) => {
    const [count, ...rest] = it.words.slice(4);
    given = Object.fromEntries(
      rest.slice(0, Number(count)).map((pair) => pair.split("=")),
    );
    return end(it);
  };
  await withVm({ command }, async ({ vm }) => {
    for (const [env, [count, index]] of cases) {
      await vm.exec("git", { env: { A: "b", ...env } });
      assertEquals(given, {
        ...{ A: "b", ...env, GIT_CONFIG_COUNT: count },
        [`GIT_CONFIG_KEY_${index}`]: "safe.directory",
        [`GIT_CONFIG_VALUE_${index}`]: "*",
      });
    }
    // Malformed values are left to git.
    const env = { GIT_CONFIG_COUNT: "many" };
    await vm.exec("git", { env });
    assertEquals(given, env);
  });
});

test("exec() rejects with a timeout error or the caller's abort reason", async () => {
  const command = ({ err }: FakeCommand) => say(err, "ready\n");
  await withVm({ command }, async ({ vm, events }) => {
    const limits = { timeoutMs: 100, killAfterMs: 10 };
    const error = await vm.exec("sleep", limits).catch((error) => error);
    assertEquals(error.message, "The command did not end within 0.1 s");
    assertEquals(events.length, 1);
    const signal = AbortSignal.abort(new Error("enough"));
    const stopped = await vm.exec("true", { signal }).catch((error) => error);
    assertEquals(stopped.message, "enough");
  });
});

test("exec() reports why the VM ended, if known", async () => {
  const command = async ({ err }: FakeCommand) => {
    await say(err, "ready\n");
    err.close();
  };
  const panic = new ToolsmithError("guest_panicked", "the kernel panicked");
  const cases: [Partial<VmParts>, string][] = [
    [
      { ended: Promise.resolve(), endReason: () => Promise.resolve(panic) },
      "the kernel panicked",
    ],
    [{ ended: Promise.resolve() }, "Lost the connection to the VM"],
    // The VM may end slightly later than its connections, but not much later.
    [
      { endReason: () => Promise.resolve(panic) },
      "Lost the connection to the VM",
    ],
  ];
  using _timers = changeTimerDelays((ms) => ms === 5000 ? 0 : ms);
  for (const [parts, message] of cases) {
    await withVm({ command, parts }, async ({ vm }) => {
      const error = await vm.exec("true").catch((error) => error);
      assertEquals(error.message, message);
    });
  }
});

const FULL = [{ status: "io-error" }, [{ "io-status": "nospace" }]];

test("exec() reports a guest stopped by QEMU as disk_full, not as a silent agent", async () => {
  const agent = (request: FakeRequest) =>
    request.execute === "guest-exec"
      ? refusal("not now", request.id)
      : honest(request);
  await withVm({ agent }, async ({ vm }) => {
    const error = await vm.exec("true").catch((error) => error);
    assertEquals(error.message, "The guest agent refused guest-exec: not now");
  });
  const asked: string[] = [];
  await using machine = await fakeMachine({ agent });
  await using shared = sharedMonitor(machine.dir);
  const stopped: Monitor["qemu"] = (commands, signal) => {
    const [[name]] = commands;
    asked.push(name);
    return name === "query-status"
      ? Promise.resolve(FULL)
      : shared.qemu(commands, signal);
  };
  const command = ({ err }: FakeCommand) => say(err, "ready\n");
  for (const options of [{}, { timeoutMs: 100, killAfterMs: 10 }]) {
    const monitor = { ...shared, qemu: stopped };
    await withVm({ command, parts: { monitor } }, async ({ vm }) => {
      const error = await vm.exec("true", options).catch((error) => error);
      assertEquals(error.code, "disk_full");
    });
  }
  assert(asked.includes("query-status"));
  // Without an answer of QEMU, the guest's error is kept.
  const silent: Monitor["qemu"] = (commands, signal) =>
    commands[0][0] === "query-status"
      ? Promise.reject(new Error("no answer"))
      : shared.qemu(commands, signal);
  const unknown = { monitor: { ...shared, qemu: silent } };
  await withVm({ parts: unknown }, async ({ vm }) => {
    const error = await vm.exec("true").catch((error) => error);
    assertEquals(error.message, "The guest agent refused guest-exec: not now");
  });
  // A usage error triggers no query.
  asked.length = 0;
  await withVm(
    { parts: { monitor: { ...shared, qemu: stopped } } },
    async ({ vm }) => {
      const error = await vm.exec("").catch((error) => error);
      assertEquals([error.code, asked.includes("query-status")], [
        "usage",
        false,
      ]);
    },
  );
});

test("exec() rejects when the guest is halted by a disk error", async () => {
  const halt = Promise.withResolvers<Error>();
  const command = async (it: FakeCommand) => {
    await say(it.err, "ready\n");
    halt.resolve(new ToolsmithError("disk_full", "no space left"));
    await readLine(it.err);
    await say(it.out, `${it.marker}143\n`);
    await say(it.err, `${it.marker}\n`);
  };
  const parts = { haltError: halt.promise };
  await withVm({ command, parts }, async ({ vm, events, dir }) => {
    const stop = new AbortController();
    const error = await vm.exec("dd", { signal: stop.signal })
      .catch((error) => error);
    assertEquals(error.message, "no space left");
    assertEquals(events.length, 1);
    // The command holds its ports until the caller aborts it.
    stop.abort();
    const files = () => Array.from(Deno.readDirSync(dir), ({ name }) => name);
    while (files().some((name) => name.startsWith("toolsmith."))) {
      await new Promise((done) => setTimeout(done, 5));
    }
  });
});

test("exec() warns when all command ports are in use", async () => {
  using clock = installMovingClock();
  using _timers = changeTimerDelays((ms) => {
    if (ms !== 100) return ms;
    clock.pass(1000);
    return 0;
  });
  const stop = new AbortController();
  await withVm({ ports: 0 }, async ({ vm, events }) => {
    const waiting = vm.exec("true", { signal: stop.signal })
      .catch((error) => error);
    while (events.length < 2) {
      await new Promise((done) => setTimeout(done, 5));
    }
    stop.abort(new Error("enough"));
    assertEquals((await waiting).message, "enough");
    assertEquals(
      events[1].message,
      "The VM runs as many commands as it can: waiting for one to end",
    );
  });
});

test("exec() syncs copied exports before it emits command_end", async () => {
  await using dir = await temporaryDir();
  const archive = makeTar([{ name: "result", content: "done" }, {
    name: "../evil",
    content: "x",
  }]);
  const shares = [
    { path: dir.path, tag: "out", writable: true, copied: true },
    { path: "/none", tag: "work", writable: false, copied: true },
    { path: "/none", tag: "mounted", writable: true },
  ];
  const ran: string[] = [];
  const ended = Promise.withResolvers<void>();
  const command = async (it: FakeCommand) => {
    const { words, marker, out, err } = it;
    ran.push(commandOf(words));
    if (commandOf(words) !== "tar") return await end(it, 5).then(ended.resolve);
    await say(err, "ready\n");
    await say(out, archive);
    await say(out, `${marker}1\n`);
    await say(err, `tar: a: changed${marker}\n`);
  };
  await withVm({ command, shares }, async ({ vm, events, dir: machine }) => {
    // Another process is syncing exports.
    const other = await acquireFileLock(join(machine, "back"));
    const running = vm.exec("tool");
    await ended.promise;
    for (let turn = 0; turn < 20; turn++) {
      await new Promise((done) => setTimeout(done));
    }
    ran.push("the other has ended");
    other[Symbol.dispose]();
    assertEquals((await running).code, 5);
    assertEquals(ran, ["tool", "the other has ended", "tar"]);
    assertEquals(await Deno.readTextFile(join(dir.path, "result")), "done");
    assertEquals(events.map(({ type, message }) => message ?? type), [
      "command_dispatch",
      "The export out changed while it was synced: tar: a: changed",
      "The export out contains entries that are unsafe on a host; skipped 1, such as ../evil",
      "command_end",
    ]);
  });
});

test("exec() rejects when a copied export cannot be synced", async () => {
  await using dir = await temporaryDir();
  const shares = [
    { path: dir.path, tag: "out", writable: true, copied: true },
  ];
  const command = (it: FakeCommand) =>
    commandOf(it.words) === "tar" ? end(it, 2) : end(it, 0, "x");
  await withVm({ command, shares }, async ({ vm, events }) => {
    const error = await vm.exec("tool").catch((error) => error);
    assertEquals(
      error.message,
      `Cannot sync ${dir.path} from the guest: status 2`,
    );
    assertEquals(events.map(({ type }) => type), [
      ...["command_dispatch", "command_end"],
    ]);
  });
});
