/**
 * Detached VMs without a guest: their records, and how they are found, used and stopped.
 * tests/boots/detached_test.ts uses a real VM.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { dirname, join } from "@std/path";
import { spawnProcess } from "../../lib/system/process.ts";
import { sleep } from "../../lib/system/time.ts";
import {
  attachDetachedVm,
  detachVm,
  findDetachedVm,
  stopDetachedVm,
} from "../../lib/vm/detached.ts";
import {
  type DetachedVmRecord,
  formatDetachedVmRecord,
  parseDetachedVmRecord,
} from "../../lib/vm/detached_record.ts";
import type { BootedVm, VmFacts } from "../../lib/vm/vm.ts";
import { namesIn, temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { fakeMachine } from "../support/fake_machine.ts";
import { collectEvents } from "../support/guest.ts";
import { runScript } from "../support/script.ts";
import { changeTimerDelays } from "../support/timers.ts";

/** A fake VM that listens like QEMU, and a path for its record. */
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
  let looks = 0;
  (async () => {
    for await (const connection of listener) {
      connection.close();
      looks++;
    }
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
    /** Waits for checks whether the VM runs. */
    async looks(count: number) {
      const before = looks;
      while (looks < before + count) await sleep(5);
    },
    path: join(place.path, ".toolsmith", "machine.json"),
    async [Symbol.asyncDispose]() {
      end();
      // stop() may have removed the directory.
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

/** A VM that notes, on leaveRunning(), whether its record exists. */
function booted(facts: VmFacts, path: string) {
  const released: boolean[] = [];
  const vm = {
    facts,
    async leaveRunning() {
      released.push(await Deno.stat(path).then(() => true, () => false));
    },
  } as BootedVm;
  return { vm, released };
}

test("detachVm() writes a private record before it lets the VM run on", async ({ facts, path }) => {
  const { vm, released } = booted(facts, path);
  const record = await detachVm(vm, path, { digest: "abc", graceMs: 5 });
  const text = await Deno.readTextFile(path);
  assertEquals([released, parseDetachedVmRecord(JSON.parse(text))], [
    [true],
    record,
  ]);
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
  // Formatted for people.
  assertEquals(text, formatDetachedVmRecord(record));
  assertMatch(text, /^{\n {2}"layout": 1,\n[^]*\n}\n$/);
  assertEquals(JSON.parse(text).folder, facts.dir);
});

test("detachVm() refuses to replace the record of a running VM", async ({ facts, path, end }) => {
  const first = booted(facts, path);
  const { graceMs } = await detachVm(first.vm, path);
  assertEquals(graceMs, 10_000);
  const second = booted({ ...facts, pid: 4343 }, path);
  const error = await expectFailure("usage", () => detachVm(second.vm, path));
  assertEquals(error.message, `A detached VM is already running: ${path}`);
  assertEquals(error.hint, "stop the running VM first: toolsmith stop");
  assertEquals(second.released, []);
  end();
  assertEquals(await findDetachedVm(path), undefined);
  await Deno.mkdir(facts.dir, { recursive: true });
});

test("detachVm() and findDetachedVm() reject a record that other users can write", async ({ facts, path }) => {
  const { vm, released } = booted(facts, path);
  await detachVm(vm, path);
  const dir = join(path, "..");
  await Deno.chmod(dir, 0o777);
  const error = await expectFailure(
    "file_unreadable",
    () => detachVm(vm, path),
  );
  assertMatch(
    error.message,
    /^Cannot detach the VM: its record .*machine.json is unsafe: /,
  );
  assertMatch(error.hint!, /chmod go-w/);
  assertEquals(released, [true]);
  const { events, onEvent } = collectEvents("warning");
  assertEquals(await findDetachedVm(path, { onEvent }), undefined);
  assertMatch(events[0].message, /^The detached VM is not used: /);
  await Deno.chmod(dir, 0o755);
  assertEquals((await findDetachedVm(path, { onEvent }))?.pid, facts.pid);
  assertEquals(events.length, 1);
});

test("findDetachedVm() removes the record and directory of a VM that has ended", async ({ facts, path, dir, end }) => {
  assertEquals(await findDetachedVm(path), undefined);
  await detachVm(booted(facts, path).vm, path);
  assertEquals((await findDetachedVm(path))?.dir, dir);
  end();
  assertEquals(await findDetachedVm(path), undefined);
  const gone = (it: string) => Deno.stat(it).then(() => false, () => true);
  assertEquals([await gone(path), await gone(join(dir, "qmp"))], [true, true]);
});

test("findDetachedVm() ignores a record that is no JSON object, and detachVm() replaces it", async ({ facts, path }) => {
  await Deno.mkdir(dirname(path));
  for (const text of ["null", "[]", "1", "{", ""]) {
    await Deno.writeTextFile(path, text);
    assertEquals(await findDetachedVm(path), undefined);
  }
  const record = await detachVm(booted(facts, path).vm, path);
  assertEquals(await findDetachedVm(path), record);
});

test("findDetachedVm() clears set-ID bits in the exports of a VM that has ended, but not of a forged record", async ({ facts, path, end }) => {
  await using dir = await temporaryDir();
  const tool = join(dir.path, "tool");
  await Deno.writeTextFile(tool, "");
  await Deno.chmod(tool, 0o4755);
  const shares = [{ path: dir.path, tag: "out", writable: true }];
  const record = await detachVm(booted({ ...facts, shares }, path).vm, path);
  end();
  const setId = () => Deno.statSync(tool).mode! & 0o6000;
  await Deno.writeTextFile(
    path,
    formatDetachedVmRecord({ ...record, token: "0" }),
  );
  await findDetachedVm(path);
  assertEquals(setId(), 0o4000);
  await Deno.writeTextFile(path, formatDetachedVmRecord(record));
  await findDetachedVm(path);
  assertEquals(setId(), 0);
});

test("findDetachedVm() keeps the directory named by a record with a wrong or missing token", async ({ facts, path, dir, end }) => {
  const { token: _, ...record } = await detachVm(booted(facts, path).vm, path);
  end();
  // The listener removes this socket.
  const left = async () =>
    (await namesIn(dir)).filter((name) => name !== "console");
  const before = await left();
  for (const token of ["0".repeat(64), undefined]) {
    await Deno.writeTextFile(
      path,
      formatDetachedVmRecord({ ...record, token }),
    );
    assertEquals(await findDetachedVm(path), undefined);
    assertEquals(await Deno.stat(path).catch(() => "gone"), "gone");
    assertEquals(await left(), before);
  }
});

test("detachVm() and findDetachedVm() reject a record behind a symlink", async ({ facts, path, dir }) => {
  const root = join(path, "..", "..");
  const at = (name: string) => join(root, name, ".toolsmith", "machine.json");
  await detachVm(booted(facts, path).vm, path);
  await Deno.mkdir(join(root, "linked"));
  await Deno.symlink(join(path, ".."), join(root, "linked", ".toolsmith"));
  await Deno.mkdir(join(root, "file", ".toolsmith"), { recursive: true });
  await Deno.symlink(path, at("file"));
  const before = [await namesIn(join(path, "..")), await namesIn(dir)];
  const text = await Deno.readTextFile(path);
  for (const name of ["linked", "file"]) {
    const { events, onEvent } = collectEvents("warning");
    assertEquals(await findDetachedVm(at(name), { onEvent }), undefined);
    assertMatch(events[0].message, /not used: .* is a symbolic link$/);
    const { vm, released } = booted(facts, path);
    const error = await expectFailure(
      "file_unreadable",
      () => detachVm(vm, at(name)),
    );
    assertMatch(
      error.message,
      /^Cannot detach the VM: its record .* is a symbolic link$/,
    );
    assertEquals([released, error.hint], [[], "remove the symbolic link"]);
  }
  assertEquals([await namesIn(join(path, "..")), await namesIn(dir)], before);
  assertEquals(await Deno.readTextFile(path), text);
  assert(await findDetachedVm(path));
});

test("findDetachedVm() does not connect to a symlinked socket", async ({ facts, path, dir }) => {
  await detachVm(booted(facts, path).vm, path);
  await Deno.rename(join(dir, "console"), join(dir, "other"));
  await Deno.symlink("other", join(dir, "console"));
  assertEquals(await findDetachedVm(path), undefined);
});

test("attachDetachedVm(): disposing leaves the VM running, and `ended` settles when the VM ends", async ({ facts, path, dir, end, looks }) => {
  const record = await detachVm(booted(facts, path).vm, path);
  const { events, onEvent } = collectEvents("command_end");
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
  await looks(2);
  assertEquals(ended, false);
  end();
  await vm.ended;
  await Deno.remove(join(dir, "qmp"));
  const error = await expectFailure("guest_failed", () => vm.exec("true"));
  assertEquals(error.message, "The VM has ended");
});

test("attachDetachedVm() without permission for the VM's sockets does not end the program", async ({ facts, path, dir }) => {
  const record = await detachVm(booted(facts, path).vm, path);
  const code = `
    import { attachDetachedVm } from "/lib/vm/detached.ts";
    const [path, record] = Deno.args;
    await using vm = attachDetachedVm(path, JSON.parse(record));
    // Several checks whether the VM runs.
    await new Promise((done) => setTimeout(done, 500));
    console.log(await vm.ended.catch(({ name }) => name));
  `;
  const args = [path, JSON.stringify(record)];
  const script = join(dir, "attach.ts");
  const permissions = ["--allow-read"];
  const printed = await runScript(script, code, { args, permissions });
  assertEquals(printed, "NotCapable\n");
});

test("stopDetachedVm() uses the recorded graceMs and removes record and directory", async ({ facts, path, dir }) => {
  await detachVm(booted(facts, path).vm, path, { graceMs: 60_000 });
  const { events, onEvent } = collectEvents("shutdown");
  const stopped = await stopDetachedVm(path, { onEvent });
  assertEquals(stopped.pid, facts.pid);
  assertEquals(events.map(({ how }) => how), ["powered_down"]);
  const gone = (it: string) => Deno.stat(it).then(() => false, () => true);
  assertEquals([await gone(path), await gone(join(dir, "qmp"))], [true, true]);
  const none = await expectFailure(
    "machine_not_found",
    () => stopDetachedVm(path),
  );
  assertEquals(none.message, "No detached VM is running");
  assertEquals(none.hint, "start a VM: toolsmith boot --detach");
});

test("attachDetachedVm(): stop() kills only a process that is the VM's QEMU", async ({ facts, path, dir }) => {
  const named = async (argument: string) => {
    const script = ["-c", "sleep 60; :", "qemu", argument];
    await using child = spawnProcess("sh", { args: script });
    const record: DetachedVmRecord = {
      ...{ layout: 1, ...facts, pid: child.pid, graceMs: 0 },
      since: new Date().toISOString(),
    };
    await using vm = attachDetachedVm(path, record);
    // Shortens the time that QEMU has to quit.
    using _timers = changeTimerDelays((ms) => ms === 5000 ? 20 : ms);
    try {
      await vm.stop();
      return (await child.ended).signal;
    } catch (error) {
      return (error as Error).message;
    }
  };
  assertMatch(`${await named("/elsewhere/qmp")}`, /^Cannot kill the VM: /);
  // QEMU's arguments double each comma.
  assertEquals(await named(`path=${dir}/qmp,,server`), "SIGKILL");
});

Deno.test("parseDetachedVmRecord() rejects other layouts and invalid field values", () => {
  const record: DetachedVmRecord = {
    ...{ layout: 1, pid: 2, dir: "/d", image: "/a", version: "7" },
    ...{ accelerator: "kvm", memory: 0, cpus: 0, graceMs: 0 },
    ...{ network: true, since: "s", digest: "d" },
    shares: [{ path: "/", tag: "t", writable: true }],
  };
  const good = JSON.parse(formatDetachedVmRecord(record));
  assertEquals(parseDetachedVmRecord(good), record);
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
    assertEquals(
      parseDetachedVmRecord({ ...good, ...fields }),
      undefined,
      JSON.stringify(fields),
    );
  }
});
