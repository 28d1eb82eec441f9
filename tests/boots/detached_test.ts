import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import {
  attachDetachedVm,
  findDetachedVm,
  stopDetachedVm,
} from "../../lib/vm/detached.ts";
import {
  type DetachedVmRecord,
  formatRecord,
} from "../../lib/vm/detached_record.ts";
import { markMachineDir } from "../../lib/qemu/machine_dir.ts";
import { run, spawn } from "../../lib/system/process.ts";
import { denoArgs, ROOT } from "../../scripts/deno.ts";
import { failure } from "../support/failure.ts";
import { namesIn, temporaryDir } from "../support/directory.ts";
import { collect, env, guest, needsGuest } from "../support/guest.ts";
import { asRoot } from "../support/users.ts";
import { record } from "../support/detached_vm.ts";

/** Runs a script in a Deno of its own, which ends before this test goes on. */
async function elsewhere(dir: string, body: string): Promise<string> {
  const script = join(dir, `${crypto.randomUUID()}.ts`);
  await Deno.writeTextFile(
    script,
    `import { boot } from "${ROOT}/lib/vm/boot.ts";
     import { attachDetachedVm, detach, findDetachedVm } from "${ROOT}/lib/vm/detached.ts";
     ${body}`,
  );
  const { code, stdout, stderr } = await run(Deno.execPath(), {
    args: await denoArgs(["run", "-A", script]),
    env: { TMPDIR: dir, ...Object.fromEntries(env) },
  });
  assertEquals(code, 0, stderr);
  return stdout;
}

Deno.test({
  name: "a detached machine",
  ...needsGuest,
  async fn(t) {
    await using dir = await temporaryDir();
    const path = join(dir.path, ".toolsmith", "machine.json");
    const work = join(dir.path, "work");
    await Deno.mkdir(work);
    await Deno.writeTextFile(join(work, "a.txt"), "workspace\n");
    assertEquals(await findDetachedVm(path), undefined);
    await failure("machine_not_found", () => stopDetachedVm(path));

    await elsewhere(
      dir.path,
      `const vm = await boot({
         image: ${JSON.stringify(await guest())},
         workspace: ${JSON.stringify(work)},
       });
       await detach(vm, ${JSON.stringify(path)}, { digest: "abc" });`,
    );
    const state = await findDetachedVm(path) as DetachedVmRecord;

    await t.step(
      "it lives on when the process that booted it has ended",
      async () => {
        assertEquals([state.digest, state.network], ["abc", false]);
        assertEquals((await Deno.stat(path)).mode! & 0o777, 0o600);
        assertEquals((await Deno.stat(state.dir)).mode! & 0o777, 0o700);
        await using vm = attachDetachedVm(path, state);
        const { stdout } = await vm.exec("cat", { args: ["a.txt"] });
        assertEquals(stdout, "workspace\n");
      },
    );

    await t.step("it stays when somebody is done with it", async () => {
      await using vm = attachDetachedVm(path, state);
      assertEquals((await vm.exec("sh", { args: ["-c", "exit 4"] })).code, 4);
    });

    await t.step("several processes use it at once", async () => {
      const use = (n: number) =>
        elsewhere(
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

    await t.step("a second one cannot take its place", async () => {
      const said = await elsewhere(
        dir.path,
        `const vm = { facts: {}, release() { throw "released"; } };
         try {
           await detach(vm as any, ${JSON.stringify(path)});
         } catch (error) {
           console.log(error.code, error.hint);
         }`,
      );
      assert(said.startsWith("usage"), said);
      assert(said.includes("toolsmith stop"), said);
    });

    await t.step(
      "a user who dies takes the command along, not the machine",
      async () => {
        await using vm = attachDetachedVm(path, state);
        await elsewhere(
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
      "users who are killed leave no ports and no shells behind",
      async () => {
        await elsewhere(
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
        // Each shell around a command has the name of its ports as an argument.
        const look = `
          tries=0
          while [ "$tries" -lt 100 ]; do
            cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' >/tmp/words
            names=$(grep '^toolsmith[.]' /tmp/words | sort -u | wc -l)
            [ "$names" = 1 ] && exit 0
            tries=$((tries + 1))
            sleep 0.1
          done
          echo "$names commands"; exit 1`;
        const result = await vm.exec("sh", {
          args: ["-c", look],
          timeoutMs: 300_000,
        });
        assertEquals([result.code, result.stdout], [0, ""]);
        await vm[Symbol.asyncDispose]();
        const ports = Array.from(Deno.readDirSync(state.dir), (it) => it.name)
          .filter((name) => name.startsWith("toolsmith."));
        assertEquals(ports, []);
      },
    );

    await t.step("it is stopped, and leaves nothing behind", async () => {
      const shutdown = collect("shutdown");
      const stopped = await stopDetachedVm(path, { onEvent: shutdown.onEvent });
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
      "the state of a dead machine is recognised, and goes",
      async () => {
        // Its process id may belong to somebody else by now: here, to this test.
        await Deno.mkdir(state.dir);
        const token = await markMachineDir(state.dir);
        const stale = { ...state, pid: Deno.pid, token };
        await Deno.writeTextFile(path, formatRecord(stale));
        assertEquals(await findDetachedVm(path), undefined);
        assertEquals(await Deno.stat(path).catch(() => "gone"), "gone");
        assertEquals(await Deno.stat(state.dir).catch(() => "gone"), "gone");
      },
    );

    await t.step("a state file that is none is no machine", async () => {
      for (const text of ["", "{", "[]", '{"layout":1}', '{"layout":2}']) {
        await Deno.writeTextFile(path, text);
        assertEquals(await findDetachedVm(path), undefined);
      }
    });
  },
});

Deno.test("a record made by others removes no directory of the user", async () => {
  await using dir = await temporaryDir();
  const victim = join(dir.path, "toolsmith-notes");
  await Deno.mkdir(victim);
  // Called as a machine's own are.
  const files = ["console", "lock", "qmp", "seed"];
  for (const name of files) await Deno.writeTextFile(join(victim, name), "");
  const path = join(dir.path, "machine.json");
  for (const token of [undefined, "0".repeat(64)]) {
    const forged = formatRecord({ ...record, dir: victim, token });
    await Deno.writeTextFile(path, forged);
    assertEquals(await findDetachedVm(path), undefined);
    assertEquals(await namesIn(victim), files);
  }
});

/** A directory that pretends to be a machine's, and the record of it. */
async function pretender(pid: number) {
  const dir = await temporaryDir();
  const machine = join(dir.path, "toolsmith-pretender");
  await Deno.mkdir(machine, { mode: 0o700 });
  const socket = join(machine, "console");
  const listener = Deno.listen({ transport: "unix", path: socket });
  const path = join(dir.path, "machine.json");
  const text = formatRecord({ ...record, pid, dir: machine });
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
  "a record of another user, or a machine in a directory of theirs, is not used",
  async () => {
    await using fake = await pretender(4242);
    const { path, machine } = fake;
    assert(await findDetachedVm(path));
    await Deno.chown(path, 4242, 4242);
    const { events, onEvent } = collect("warning");
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
  "a directory that another user has put in the place of a machine's is not talked to",
  async () => {
    await using fake = await pretender(4242);
    const { path, machine } = fake;
    const record = await findDetachedVm(path);
    await using vm = attachDetachedVm(path, record!);
    await Deno.chown(machine, 4242, 4242);
    const error = await failure("guest_failed", () => vm.exec("true"));
    assert(error.message.includes("broke off"), error.message);
    const names = Array.from(Deno.readDirSync(machine), ({ name }) => name);
    assertEquals(names, ["console"]);
  },
);

asRoot(
  "a full directory of temporary disks is said of a detached machine, too",
  async () => {
    if (needsGuest.ignore) return;
    await using dir = await temporaryDir();
    const mount = ["-t", "tmpfs", "-o", "size=8m", "tmpfs", dir.path];
    assertEquals((await run("mount", { args: mount })).code, 0);
    const path = join(dir.path, "machine.json");
    try {
      await elsewhere(
        dir.path,
        `const vm = await boot({ image: ${JSON.stringify(await guest())} });
         await detach(vm, ${JSON.stringify(path)});`,
      );
      const state = await findDetachedVm(path) as DetachedVmRecord;
      await using vm = attachDetachedVm(path, state);
      const fill = "dd if=/dev/urandom of=/dev/vda bs=1M count=16 conv=fsync";
      const error = await failure(
        "disk_full",
        () => vm.exec("sh", { args: ["-c", fill] }),
      );
      assert(error.message.includes("no space left"), error.message);
      await vm.stop({ graceMs: 0 });
    } finally {
      // QEMU may hold a file there for another moment.
      await run("umount", { args: ["--lazy", dir.path] });
    }
  },
);

Deno.test({
  name: "a stop by force ends no process but the machine's QEMU",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using bystander = spawn("sleep", { args: ["60"] });
    let ended = false;
    bystander.ended.then(() => ended = true);
    await using fake = await pretender(bystander.pid);
    const error = await failure(
      "guest_failed",
      () => stopDetachedVm(fake.path, { graceMs: 0 }),
    );
    assert(error.message.includes(`process ${bystander.pid} is not its QEMU`));
    assertEquals(ended, false);
    assertEquals((await Deno.stat(fake.path)).isFile, true);
  },
});
