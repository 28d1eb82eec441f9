/**
 * Detached machines without a guest: their records, and how they are found, used
 * and stopped; tests/boots/detached_test.ts does the same with a real one.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { spawn } from "../../lib/system/process.ts";
import {
  assertNoDetachedVm,
  attachDetachedVm,
  detach,
  findDetachedVm,
  stopDetachedVm,
} from "../../lib/vm/detached.ts";
import {
  type DetachedVmRecord,
  formatRecord,
  parseRecord,
} from "../../lib/vm/detached_record.ts";
import type { BootedVm, VmFacts } from "../../lib/vm/vm.ts";
import { namesIn, temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { fakeMachine } from "../support/fake_machine.ts";
import { collect } from "../support/guest.ts";
import { hurriedTimers } from "../support/timers.ts";

/** A fake machine that listens as QEMU does, and a place for its record. */
async function machine() {
  const fake = await fakeMachine({
    qemu({ execute }) {
      if (execute === "system_powerdown") end();
    },
  });
  const place = await temporaryDir();
  const listener = Deno.listen({
    transport: "unix",
    path: join(fake.dir, "console"),
  });
  (async () => {
    for await (const connection of listener) connection.close();
  })().catch(() => {});
  const facts: VmFacts = {
    ...{ image: "/a.qcow2", pid: 4242, dir: fake.dir, version: "7.2.22" },
    ...{ accelerator: "tcg", memory: 512, cpus: 2, network: false },
    shares: [{ path: "/work", tag: "work", writable: false }],
  };
  let listens = true;
  const end = () => {
    if (listens) listener.close();
    listens = false;
  };
  return {
    ...{ dir: fake.dir, facts, end },
    path: join(place.path, ".toolsmith", "machine.json"),
    async [Symbol.asyncDispose]() {
      end();
      // A stop has removed it.
      await Deno.mkdir(fake.dir, { recursive: true });
      await fake[Symbol.asyncDispose]();
      await place[Symbol.asyncDispose]();
    },
  };
}

function test(
  name: string,
  fn: (on: Awaited<ReturnType<typeof machine>>) => Promise<void>,
) {
  Deno.test({
    name,
    ignore: Deno.build.os === "windows",
    async fn() {
      await using on = await machine();
      await fn(on);
    },
  });
}

/** A machine that notes, when it is released, whether its record is there. */
function booted(facts: VmFacts, path: string) {
  const released: boolean[] = [];
  const vm = {
    facts,
    async release() {
      released.push(await Deno.stat(path).then(() => true, () => false));
    },
  } as BootedVm;
  return { vm, released };
}

test("a machine is written down before it is let go, for this user alone", async ({ facts, path }) => {
  const { vm, released } = booted(facts, path);
  const record = await detach(vm, path, { digest: "abc", graceMs: 5 });
  const text = await Deno.readTextFile(path);
  assertEquals([released, parseRecord(text)], [[true], record]);
  const { since, token, ...rest } = record;
  assertMatch(token!, /^[0-9a-f]{64}$/);
  assert((await namesIn(facts.dir)).includes("token"));
  assertEquals<unknown>(rest, {
    layout: 1,
    ...facts,
    digest: "abc",
    graceMs: 5,
  });
  assertEquals(new Date(since).toISOString(), since);
  assertEquals((await Deno.stat(path)).mode! & 0o777, 0o600);
  // People read it, too.
  assertEquals(text, formatRecord(record));
  assertMatch(text, /^{\n {2}"layout": 1,\n[^]*\n}\n$/);
  assertEquals(JSON.parse(text).folder, facts.dir);
});

test("a second machine cannot take the place of one that runs", async ({ facts, path, end }) => {
  const first = booted(facts, path);
  const { graceMs } = await detach(first.vm, path);
  assertEquals(graceMs, 10_000);
  const second = booted({ ...facts, pid: 4343 }, path);
  for (
    const work of [
      () => detach(second.vm, path),
      () => assertNoDetachedVm(path),
    ]
  ) {
    const error = await failure("usage", work);
    assertEquals(error.message, `A machine is running: ${path}`);
    assertEquals(error.hint, "stop it first: toolsmith stop");
  }
  assertEquals(second.released, []);
  end();
  await assertNoDetachedVm(path);
  await Deno.mkdir(facts.dir, { recursive: true });
});

test("a record that others could write is neither written nor used", async ({ facts, path }) => {
  const { vm, released } = booted(facts, path);
  await detach(vm, path);
  const dir = join(path, "..");
  await Deno.chmod(dir, 0o777);
  const error = await failure("file_unreadable", () => detach(vm, path));
  assertMatch(
    error.message,
    /^Cannot write down the machine in .*machine.json: /,
  );
  assertMatch(error.hint!, /chmod go-w/);
  assertEquals(released, [true]);
  const { events, onEvent } = collect("warning");
  assertEquals(await findDetachedVm(path, { onEvent }), undefined);
  assertMatch(events[0].message, /^The detached VM is not used: /);
  await Deno.chmod(dir, 0o755);
  assertEquals((await findDetachedVm(path, { onEvent }))?.pid, facts.pid);
  assertEquals(events.length, 1);
});

test("the record of a machine that has ended goes, with what it left", async ({ facts, path, dir, end }) => {
  assertEquals(await findDetachedVm(path), undefined);
  await detach(booted(facts, path).vm, path);
  assertEquals((await findDetachedVm(path))?.dir, dir);
  end();
  assertEquals(await findDetachedVm(path), undefined);
  const gone = (it: string) => Deno.stat(it).then(() => false, () => true);
  assertEquals([await gone(path), await gone(join(dir, "qmp"))], [true, true]);
});

test("findDetachedVm() clears set-ID bits in the exports of a VM that has ended, but not of a forged record", async ({ facts, path, end }) => {
  await using dir = await temporaryDir();
  const tool = join(dir.path, "tool");
  await Deno.writeTextFile(tool, "");
  await Deno.chmod(tool, 0o4755);
  const shares = [{ path: dir.path, tag: "out", writable: true }];
  const record = await detach(booted({ ...facts, shares }, path).vm, path);
  end();
  const setId = () => Deno.statSync(tool).mode! & 0o6000;
  await Deno.writeTextFile(path, formatRecord({ ...record, token: "0" }));
  await findDetachedVm(path);
  assertEquals(setId(), 0o4000);
  await Deno.writeTextFile(path, formatRecord(record));
  await findDetachedVm(path);
  assertEquals(setId(), 0);
});

test("a record with another token or none removes nothing of the directory that it names", async ({ facts, path, dir, end }) => {
  const { token: _, ...record } = await detach(booted(facts, path).vm, path);
  end();
  // Its listener removes this one.
  const left = async () =>
    (await namesIn(dir)).filter((name) => name !== "console");
  const before = await left();
  for (const token of ["0".repeat(64), undefined]) {
    await Deno.writeTextFile(path, formatRecord({ ...record, token }));
    assertEquals(await findDetachedVm(path), undefined);
    assertEquals(await Deno.stat(path).catch(() => "gone"), "gone");
    assertEquals(await left(), before);
  }
});

test("a record in a linked .toolsmith/, or that is a link, is neither read nor written", async ({ facts, path, dir }) => {
  const root = join(path, "..", "..");
  const at = (name: string) => join(root, name, ".toolsmith", "machine.json");
  await detach(booted(facts, path).vm, path);
  await Deno.mkdir(join(root, "linked"));
  await Deno.symlink(join(path, ".."), join(root, "linked", ".toolsmith"));
  await Deno.mkdir(join(root, "file", ".toolsmith"), { recursive: true });
  await Deno.symlink(path, at("file"));
  const before = [await namesIn(join(path, "..")), await namesIn(dir)];
  const text = await Deno.readTextFile(path);
  for (const name of ["linked", "file"]) {
    const { events, onEvent } = collect("warning");
    assertEquals(await findDetachedVm(at(name), { onEvent }), undefined);
    assertMatch(events[0].message, /not used: .* is a symbolic link$/);
    const { vm, released } = booted(facts, path);
    const error = await failure("file_unreadable", () => detach(vm, at(name)));
    assertMatch(error.message, /^Cannot write down .* is a symbolic link$/);
    assertEquals([released, error.hint], [[], "remove the link"]);
  }
  assertEquals([await namesIn(join(path, "..")), await namesIn(dir)], before);
  assertEquals(await Deno.readTextFile(path), text);
  assert(await findDetachedVm(path));
});

test("a link to a socket in the place of a machine's is not connected to", async ({ facts, path, dir }) => {
  await detach(booted(facts, path).vm, path);
  await Deno.rename(join(dir, "console"), join(dir, "other"));
  await Deno.symlink("other", join(dir, "console"));
  assertEquals(await findDetachedVm(path), undefined);
});

test("a machine that is used goes on for others, and its end is noticed", async ({ facts, path, dir, end }) => {
  const record = await detach(booted(facts, path).vm, path);
  const { events, onEvent } = collect("command_end");
  {
    await using vm = attachDetachedVm(path, record, { onEvent });
    assertEquals(vm.facts.dir, facts.dir);
    assertEquals((await vm.exec("true")).code, 0);
    assertEquals(events.length, 1);
  }
  assert(await findDetachedVm(path));
  await using vm = attachDetachedVm(path, record);
  let ended = false;
  vm.ended.then(() => ended = true);
  await new Promise((done) => setTimeout(done, 250));
  assertEquals(ended, false);
  end();
  await vm.ended;
  await Deno.remove(join(dir, "qmp"));
  const error = await failure("guest_failed", () => vm.exec("true"));
  assertEquals(error.message, "The machine has ended");
});

test("a machine is stopped with the time that was written down, and nothing is left", async ({ facts, path, dir }) => {
  await detach(booted(facts, path).vm, path, { graceMs: 60_000 });
  const { events, onEvent } = collect("shutdown");
  const stopped = await stopDetachedVm(path, { onEvent });
  assertEquals(stopped.pid, facts.pid);
  assertEquals(events.map(({ how }) => how), ["powered_down"]);
  const gone = (it: string) => Deno.stat(it).then(() => false, () => true);
  assertEquals([await gone(path), await gone(join(dir, "qmp"))], [true, true]);
  const none = await failure("machine_not_found", () => stopDetachedVm(path));
  assertEquals(none.message, "No machine is running");
  assertEquals(none.hint, "toolsmith boot --detach starts one");
});

test("a QEMU that does not end by itself is killed, if it is the machine's", async ({ facts, path, dir }) => {
  if (Deno.build.os !== "linux") return;
  const named = async (argument: string) => {
    const script = ["-c", "sleep 60; :", "qemu", argument];
    await using child = spawn("sh", { args: script });
    const record: DetachedVmRecord = {
      ...{ layout: 1, ...facts, pid: child.pid, graceMs: 0 },
      since: new Date().toISOString(),
    };
    await using vm = attachDetachedVm(path, record);
    // QEMU has five seconds to quit.
    using _timers = hurriedTimers((ms) => ms === 5000 ? 20 : ms);
    try {
      await vm.stop();
      return (await child.ended).signal;
    } catch (error) {
      return (error as Error).message;
    }
  };
  assertMatch(`${await named("/elsewhere/qmp")}`, /^Cannot end the machine: /);
  // QEMU's own arguments have each comma twice.
  assertEquals(await named(`path=${dir}/qmp,,server`), "SIGKILL");
});

Deno.test("a record is one of this layout, with counts that can be", () => {
  const record: DetachedVmRecord = {
    ...{ layout: 1, pid: 2, dir: "/d", image: "/a", version: "7" },
    ...{ accelerator: "kvm", memory: 0, cpus: 0, graceMs: 0 },
    ...{ network: true, since: "s", digest: "d" },
    shares: [{ path: "/", tag: "t", writable: true }],
  };
  const good = JSON.parse(formatRecord(record));
  assertEquals(parseRecord(JSON.stringify(good)), record);
  const share = { path: "/", tag: "t", writable: true };
  const wrong: Record<string, unknown>[] = [
    ...[{ pid: 0 }, { memory: -1 }, { cpus: 1.5 }, { graceMs: "0" }],
    ...[{ image: 1 }, { version: null }, { since: 0 }, { network: "yes" }],
    ...[{ shares: [null] }, { shares: [[]] }, { shares: [share, 1] }],
    ...[{ shares: [{ ...share, path: 1 }] }, {
      shares: [{ ...share, tag: 1 }],
    }],
    ...[{ shares: [{ ...share, writable: 1 }] }, { digest: null }],
  ];
  for (const fields of wrong) {
    const text = JSON.stringify({ ...good, ...fields });
    assertEquals(parseRecord(text), undefined, JSON.stringify(fields));
  }
  for (const text of ["null", "[]", "1", "{"]) {
    assertEquals(parseRecord(text), undefined);
  }
});
