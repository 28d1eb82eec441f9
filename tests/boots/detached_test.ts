import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import {
  attachDetachedVm,
  findDetachedVm,
  stopDetachedVm,
} from "../../lib/vm/detached.ts";
import {
  type DetachedVmRecord,
  formatDetachedVmRecord,
} from "../../lib/vm/detached_record.ts";
import { writeVmDirToken } from "../../lib/qemu/vm_dir.ts";
import { runProcess, spawnProcess } from "../../lib/system/process.ts";
import { PROJECT_ROOT, withImportMap } from "../../scripts/deno.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { namesIn, temporaryDir } from "../support/directory.ts";
import {
  buildTestGuest,
  collectEvents,
  env,
  GUEST_PARTS,
  needsGuest,
} from "../support/guest.ts";
import { mountTmpfs } from "../support/tmpfs.ts";
import { asRoot } from "../support/users.ts";
import { record } from "../support/detached_vm.ts";

/** Runs a script in another Deno process and waits for its end. */
async function runInOtherDeno(dir: string, body: string): Promise<string> {
  const script = join(dir, `${crypto.randomUUID()}.ts`);
  await Deno.writeTextFile(
    script,
    `import { boot } from "${PROJECT_ROOT}/lib/vm/boot.ts";
     import { attachDetachedVm, detachVm, findDetachedVm } from "${PROJECT_ROOT}/lib/vm/detached.ts";
     ${body}`,
  );
  const { code, stdout, stderr } = await runProcess(Deno.execPath(), {
    args: await withImportMap(["run", "-A", script]),
    env: { TMPDIR: dir, ...Object.fromEntries(env) },
  });
  assertEquals(code, 0, stderr);
  return stdout;
}

Deno.test({
  name: "detached VM serves other processes until it is stopped",
  ...needsGuest,
  async fn(t) {
    await using dir = await temporaryDir();
    const path = join(dir.path, ".toolsmith", "machine.json");
    const work = join(dir.path, "work");
    await Deno.mkdir(work);
    await Deno.writeTextFile(join(work, "a.txt"), "workspace\n");
    assertEquals(await findDetachedVm(path), undefined);
    await expectFailure("machine_not_found", () => stopDetachedVm(path));

    await runInOtherDeno(
      dir.path,
      `const vm = await boot({
         image: ${JSON.stringify(await buildTestGuest())},
         workspace: ${JSON.stringify(work)},
       });
       await detachVm(vm, ${JSON.stringify(path)}, { digest: "abc" });`,
    );
    const state = await findDetachedVm(path) as DetachedVmRecord;

    await t.step(
      "detached VM survives the process that booted it",
      async () => {
        assertEquals([state.digest, state.network], ["abc", false]);
        assertEquals((await Deno.stat(path)).mode! & 0o777, 0o600);
        assertEquals((await Deno.stat(state.dir)).mode! & 0o777, 0o700);
        await using vm = attachDetachedVm(path, state);
        const { stdout } = await vm.exec("cat", { args: ["a.txt"] });
        assertEquals(stdout, "workspace\n");
      },
    );

    await t.step("detached VM survives a client's dispose", async () => {
      await using vm = attachDetachedVm(path, state);
      assertEquals((await vm.exec("sh", { args: ["-c", "exit 4"] })).code, 4);
    });

    await t.step("detached VM serves several processes at once", async () => {
      const use = (n: number) =>
        runInOtherDeno(
          dir.path,
          `const path = ${JSON.stringify(path)};
           await using vm = attachDetachedVm(path, await findDetachedVm(path));
           const results = await Promise.all([1, 2, 3].map((m) =>
             vm.exec("sh", { args: ["-c", "cat; echo " + m], stdin: "${n}." })));
           console.log(results.map(({ stdout }) => stdout).join(""));`,
        );
      const said = await Promise.all([1, 2, 3].map(use));
      assertEquals(
        said.map((it) => it.trim()),
        [1, 2, 3].map((n) => `${n}.1\n${n}.2\n${n}.3`),
      );
    });

    await t.step("detachVm() refuses a second detached VM", async () => {
      const said = await runInOtherDeno(
        dir.path,
        `const vm = { facts: {}, leaveRunning() { throw "released"; } };
         try {
           await detachVm(vm as any, ${JSON.stringify(path)});
         } catch (error) {
           console.log(error.code, error.hint);
         }`,
      );
      assert(said.startsWith("usage"), said);
      assert(said.includes("toolsmith stop"), said);
    });

    await t.step(
      "detached VM ends commands of exited clients",
      async () => {
        await using vm = attachDetachedVm(path, state);
        await runInOtherDeno(
          dir.path,
          `const path = ${JSON.stringify(path)};
         const vm = attachDetachedVm(path, await findDetachedVm(path));
         await vm.exec("sh", {
           args: ["-c", "echo up; exec sleep 4242"],
           stdout: () => Deno.exit(0),
         });`,
        );
        // The watcher in the guest may need a moment.
        const look =
          "while ps -o args | grep -v grep | grep -q 'sleep 4242'; do sleep 0.1; done";
        const { code } = await vm.exec("sh", {
          args: ["-c", look],
        });
        assertEquals(code, 0);
      },
    );

    await t.step(
      "detached VM frees ports of exited clients",
      async () => {
        await runInOtherDeno(
          dir.path,
          `const path = ${JSON.stringify(path)};
         const vm = attachDetachedVm(path, await findDetachedVm(path));
         let up = 0;
         for (let n = 0; n < 20; n++) {
           vm.exec("sh", {
             args: ["-c", "echo up; exec sleep 4343"],
             stdout: () => { if (++up === 10) Deno.exit(0); },
           });
         }`,
        );
        const vm = attachDetachedVm(path, state);
        // Each shell around a command has its port name as an argument.
        const look = `
          while true; do
            cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' >/tmp/words
            names=$(grep '^toolsmith[.]' /tmp/words | sort -u | wc -l)
            [ "$names" = 1 ] && exit
            sleep 0.1
          done`;
        assertEquals((await vm.exec("sh", { args: ["-c", look] })).code, 0);
        await vm[Symbol.asyncDispose]();
        const ports = Array.from(Deno.readDirSync(state.dir), (it) => it.name)
          .filter((name) => name.startsWith("toolsmith."));
        assertEquals(ports, []);
      },
    );

    await t.step("stopDetachedVm() stops the VM, removes files", async () => {
      const shutdown = collectEvents("shutdown");
      // Longer than by default, for a slow guest.
      const graceMs = 600_000;
      const { onEvent } = shutdown;
      const stopped = await stopDetachedVm(path, { graceMs, onEvent });
      assertEquals(stopped.pid, state.pid);
      assertEquals(shutdown.events.map(({ how }) => how), ["powered_down"]);
      assertEquals(await findDetachedVm(path), undefined);
      const left = Array.from(Deno.readDirSync(dir.path), (it) => it.name)
        .filter((name) =>
          /^toolsmith-.{6,}/.test(name) && !name.includes("-verdict-")
        );
      assertEquals(left, []);
    });

    await t.step(
      "findDetachedVm() removes an ended VM's record",
      async () => {
        // Another process may have the process id now: here, this test.
        await Deno.mkdir(state.dir);
        const token = await writeVmDirToken(state.dir);
        const stale = { ...state, pid: Deno.pid, token };
        await Deno.writeTextFile(path, formatDetachedVmRecord(stale));
        assertEquals(await findDetachedVm(path), undefined);
        assertEquals(await Deno.stat(path).catch(() => "gone"), "gone");
        assertEquals(await Deno.stat(state.dir).catch(() => "gone"), "gone");
      },
    );

    await t.step("findDetachedVm() ignores a malformed record", async () => {
      for (const text of ["", "{", "[]", '{"layout":1}', '{"layout":2}']) {
        await Deno.writeTextFile(path, text);
        assertEquals(await findDetachedVm(path), undefined);
      }
    });
  },
});

Deno.test("findDetachedVm() removes no directory that a forged record names", async () => {
  await using dir = await temporaryDir();
  const victim = join(dir.path, "toolsmith-notes");
  await Deno.mkdir(victim);
  // The file names of a VM directory.
  const files = ["console", "lock", "qmp", "seed"];
  for (const name of files) await Deno.writeTextFile(join(victim, name), "");
  const path = join(dir.path, "machine.json");
  for (const token of [undefined, "0".repeat(64)]) {
    const forged = formatDetachedVmRecord({ ...record, dir: victim, token });
    await Deno.writeTextFile(path, forged);
    assertEquals(await findDetachedVm(path), undefined);
    assertEquals(await namesIn(victim), files);
  }
});

/** A forged VM directory and its record. */
async function pretender(pid: number) {
  const dir = await temporaryDir();
  const machine = join(dir.path, "toolsmith-pretender");
  await Deno.mkdir(machine, { mode: 0o700 });
  const socket = join(machine, "console");
  const listener = Deno.listen({ transport: "unix", path: socket });
  const path = join(dir.path, "machine.json");
  const text = formatDetachedVmRecord({ ...record, pid, dir: machine });
  await Deno.writeTextFile(path, text, { mode: 0o600 });
  return {
    machine,
    path,
    async [Symbol.asyncDispose]() {
      listener.close();
      await dir[Symbol.asyncDispose]();
    },
  };
}

asRoot(
  "findDetachedVm() ignores a record or VM directory of another user",
  async () => {
    await using fake = await pretender(4242);
    const { path, machine } = fake;
    assert(await findDetachedVm(path));
    await Deno.chown(path, 4242, 4242);
    const { events, onEvent } = collectEvents("warning");
    assertEquals(await findDetachedVm(path, { onEvent }), undefined);
    assertMatch(events[0].message, /not used: .* belongs to user 4242/);
    await Deno.chown(path, 0, 0);
    await Deno.chmod(machine, 0o777);
    assertEquals(await findDetachedVm(path), undefined);
    await Deno.chmod(machine, 0o700);
    assert(await findDetachedVm(path));
    await Deno.chown(machine, 4242, 4242);
    assertEquals(await findDetachedVm(path), undefined);
  },
);

asRoot(
  "exec() on a detached VM does not connect when another user replaced the VM directory",
  async () => {
    await using fake = await pretender(4242);
    const { path, machine } = fake;
    const record = await findDetachedVm(path);
    await using vm = attachDetachedVm(path, record!);
    await Deno.chown(machine, 4242, 4242);
    const error = await expectFailure("guest_failed", () => vm.exec("true"));
    assert(error.message.includes("Lost the connection"), error.message);
    const names = Array.from(Deno.readDirSync(machine), ({ name }) => name);
    assertEquals(names, ["console"]);
  },
);

asRoot(
  "exec() on a detached VM throws disk_full when the overlay's file system is full",
  async () => {
    await using dir = await temporaryDir();
    await using _ = await mountTmpfs(dir.path, "8m");
    const path = join(dir.path, "machine.json");
    await runInOtherDeno(
      dir.path,
      `const vm = await boot({ image: ${
        JSON.stringify(await buildTestGuest())
      } });
       await detachVm(vm, ${JSON.stringify(path)});`,
    );
    const state = await findDetachedVm(path) as DetachedVmRecord;
    await using vm = attachDetachedVm(path, state);
    const fill = "dd if=/dev/urandom of=/dev/vda bs=1M count=16 conv=fsync";
    const error = await expectFailure(
      "disk_full",
      () => vm.exec("sh", { args: ["-c", fill] }),
    );
    assert(error.message.includes("no space left"), error.message);
    await vm.stop({ graceMs: 0 });
  },
  GUEST_PARTS,
);

Deno.test({
  name: "stopDetachedVm() kills no process other than the VM's QEMU",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using bystander = spawnProcess("sleep", { args: ["60"] });
    let ended = false;
    bystander.ended.then(() => ended = true);
    await using fake = await pretender(bystander.pid);
    const error = await expectFailure(
      "guest_failed",
      () => stopDetachedVm(fake.path, { graceMs: 0 }),
    );
    assert(
      error.message.includes(`process ${bystander.pid} in its record is not`),
    );
    assertEquals(ended, false);
    assertEquals((await Deno.stat(fake.path)).isFile, true);
  },
});
