/**
 * What is said of a command, and how its failures are told: by fakes, as real
 * machines break off in few of these ways when asked to.
 */
import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { emitter } from "../../lib/events.ts";
import type { GuestShare } from "../../lib/qemu/args.ts";
import { type Monitor, sharedMonitor } from "../../lib/qemu/monitor.ts";
import { ToolsmithError } from "../../lib/errors.ts";
import { lock } from "../../lib/system/lock.ts";
import { commandsOf } from "../../lib/vm/_commands.ts";
import type { Vm, VmParts } from "../../lib/vm/vm.ts";
import { temporaryDir } from "../support/directory.ts";
import {
  type FakeCommand,
  fakeMachine,
  type FakeMachineOptions,
  honest,
  readLine,
  refusal,
  type Request,
  say,
} from "../support/fake_machine.ts";
import { tar } from "../support/tar.ts";
import { hurriedTimers } from "../support/timers.ts";

interface Bench {
  vm: Pick<Vm, "exec" | "terminal">;
  events: Record<string, unknown>[];
  dir: string;
}

const never = new Promise<never>(() => {});

/** Runs commands in a fake machine with such parts. */
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
  const vm = commandsOf({
    facts: {
      ...{ image: "/a.qcow2", pid: 1, dir: machine.dir, version: "7.2.22" },
      ...{ accelerator: "tcg", memory: 512, cpus: 1, network: false },
      shares: options.shares ?? [],
    },
    monitor,
    ended: never,
    graceMs: 0,
    failure: () => Promise.resolve(undefined),
    kill: () => never,
    cleanUp: () => never,
    emit: emitter((event) => events.push({ ...event })),
    ...options.parts,
  });
  await work({ vm, events, dir: machine.dir });
}

function test(name: string, fn: () => Promise<void>) {
  Deno.test({ name, ignore: Deno.build.os === "windows", fn });
}

/** Ends a command with a status, once it has written so. */
async function end({ marker, out, err }: FakeCommand, code = 0, text = "") {
  await say(err, `ready\n${marker}\n`);
  await say(out, `${text}${marker}${code}\n`);
}

/** The command, behind directories and variables. */
function commandOf(words: string[]): string {
  return words[5 + Number(words[4])];
}

const WORK: GuestShare = { path: "/work", tag: "work", writable: false };

test("a command's start and end are told, with its status and what it wrote", async () => {
  await withVm(
    { command: (it) => end(it, 3, "text") },
    async ({ vm, events }) => {
      const begun = performance.now();
      const limits = { timeoutMs: 60_000 };
      const { code } = await vm.exec("tool", { args: ["a"], ...limits });
      const took = performance.now() - begun;
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
      assert(Number.isInteger(elapsedMs) && elapsedMs as number >= 0);
      assert(elapsedMs as number <= Math.ceil(took), `${elapsedMs}`);
      assertEquals(events.length, 2);
      await vm.exec("tool");
      assert(events[2].id !== id);
    },
  );
});

test("a command starts where the guest has the caller's directory, else in the workspace, which takes its place if it is missing", async () => {
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
    // Outside, beside a directory whose name begins alike.
    [[work], { hostCwd: dir.path }, "/mnt/work"],
    [[work], { hostCwd: at("workshop") }, "/mnt/work"],
    [[work], { hostCwd: dir.path, cwd: "sub" }, "/mnt/work/sub"],
    // The more specific directory wins, whichever comes first.
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

test("a command has git trust the host's repositories, besides what its caller has git know", async () => {
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
    // What git refuses stays as it is.
    const env = { GIT_CONFIG_COUNT: "many" };
    await vm.exec("git", { env });
    assertEquals(given, env);
  });
});

test("a limit of the caller holds for the whole command, and is the caller's", async () => {
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

test("a machine that has ended says why, where that is known", async () => {
  const command = async ({ err }: FakeCommand) => {
    await say(err, "ready\n");
    err.close();
  };
  const panic = new ToolsmithError("guest_panicked", "the kernel panicked");
  const cases: [Partial<VmParts>, string][] = [
    [
      { ended: Promise.resolve(), failure: () => Promise.resolve(panic) },
      "the kernel panicked",
    ],
    [{ ended: Promise.resolve() }, "The machine broke off"],
    // It may have ended somewhat later than its connections, not much.
    [{ failure: () => Promise.resolve(panic) }, "The machine broke off"],
  ];
  for (const [parts, message] of cases) {
    await withVm({ command, parts }, async ({ vm }) => {
      const error = await vm.exec("true").catch((error) => error);
      assertEquals(error.message, message);
    });
  }
});

const FULL = [{ status: "io-error" }, [{ "io-status": "nospace" }]];

test("a guest that QEMU has stopped is told as that, not as a silent agent", async () => {
  const agent = (request: Request) =>
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
  // A QEMU that does not say so leaves the guest's error as it is.
  const silent: Monitor["qemu"] = (commands, signal) =>
    commands[0][0] === "query-status"
      ? Promise.reject(new Error("no answer"))
      : shared.qemu(commands, signal);
  const unknown = { monitor: { ...shared, qemu: silent } };
  await withVm({ parts: unknown }, async ({ vm }) => {
    const error = await vm.exec("true").catch((error) => error);
    assertEquals(error.message, "The guest agent refused guest-exec: not now");
  });
  // What is the caller's mistake is not asked about.
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

test("a guest that stands still does not end its commands, and holds none", async () => {
  const halt = Promise.withResolvers<Error>();
  const command = async (it: FakeCommand) => {
    await say(it.err, "ready\n");
    halt.resolve(new ToolsmithError("disk_full", "no space left"));
    await readLine(it.err);
    await say(it.out, `${it.marker}143\n`);
    await say(it.err, `${it.marker}\n`);
  };
  const parts = { halted: halt.promise };
  await withVm({ command, parts }, async ({ vm, events, dir }) => {
    const stop = new AbortController();
    const error = await vm.exec("dd", { signal: stop.signal })
      .catch((error) => error);
    assertEquals(error.message, "no space left");
    assertEquals(events.length, 1);
    // It goes on until the machine has ended, or the caller ends it.
    stop.abort();
    const files = () => Array.from(Deno.readDirSync(dir), ({ name }) => name);
    while (files().some((name) => name.startsWith("toolsmith."))) {
      await new Promise((done) => setTimeout(done, 5));
    }
  });
});

test("who waits for ports is told that the machine is busy", async () => {
  const now = performance.now.bind(performance);
  let tries = 0;
  performance.now = () => now() + tries * 1000;
  using _timers = hurriedTimers((ms) => {
    if (ms !== 100) return ms;
    tries++;
    return 0;
  });
  try {
    const stop = new AbortController();
    await withVm({ ports: 0 }, async ({ vm, events }) => {
      const waiting = vm.exec("true", { signal: stop.signal })
        .catch((error) => error);
      for (let looks = 0; looks < 1000 && events.length < 2; looks++) {
        await new Promise((done) => setTimeout(done, 5));
      }
      stop.abort(new Error("enough"));
      assertEquals((await waiting).message, "enough");
      assertEquals(
        events[1].message,
        "The machine runs as many commands as it can: waiting until one has ended",
      );
    });
  } finally {
    performance.now = now;
  }
});

test("what was copied into the guest to be written comes back before the end is told", async () => {
  await using dir = await temporaryDir();
  const archive = tar([{ name: "result", content: "done" }, {
    name: "../evil",
    content: "x",
  }]);
  const shares = [
    { path: dir.path, tag: "out", writable: true, copied: true },
    { path: "/none", tag: "work", writable: false, copied: true },
    { path: "/none", tag: "mounted", writable: true },
  ];
  const ran: string[] = [];
  const command = async (it: FakeCommand) => {
    const { words, marker, out, err } = it;
    ran.push(commandOf(words));
    if (commandOf(words) !== "tar") return await end(it, 5);
    await say(err, "ready\n");
    await say(out, archive);
    await say(out, `${marker}1\n`);
    await say(err, `tar: a: changed${marker}\n`);
  };
  await withVm({ command, shares }, async ({ vm, events, dir: machine }) => {
    // Another process's command, which has ended at the same time.
    const other = await lock(join(machine, "back"));
    const running = vm.exec("tool");
    while (ran.length < 1) await new Promise((done) => setTimeout(done, 5));
    await new Promise((done) => setTimeout(done, 50));
    assertEquals(ran, ["tool"]);
    other[Symbol.dispose]();
    assertEquals((await running).code, 5);
    assertEquals(ran, ["tool", "tar"]);
    assertEquals(await Deno.readTextFile(join(dir.path, "result")), "done");
    assertEquals(events.map(({ type, message }) => message ?? type), [
      "command_dispatch",
      "The export out changed while it was brought back: tar: a: changed",
      "The export out has what a host must not take; left out: 1, such as ../evil",
      "command_end",
    ]);
  });
});

test("an export that does not come back is a failure, though the command has ended", async () => {
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
      `The guest cannot send its copy of ${dir.path}: status 2`,
    );
    assertEquals(events.map(({ type }) => type), [
      ...["command_dispatch", "command_end"],
    ]);
  });
});
