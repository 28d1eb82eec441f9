import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { boot } from "../../lib/vm/boot.ts";
import { spawnProcess } from "../../lib/system/process.ts";
import { PROJECT_ROOT, withImportMap } from "../../scripts/deno.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { temporaryDir } from "../support/directory.ts";
import {
  buildTestGuest,
  env,
  GUEST_PARTS,
  needsGuest,
} from "../support/guest.ts";
import { findProcesses } from "../support/processes.ts";
import { mountTmpfs } from "../support/tmpfs.ts";
import { asRoot } from "../support/users.ts";

/** Polls a condition until it is true. */
async function until(isSo: () => Promise<boolean> | boolean) {
  while (!await isSo()) await new Promise((done) => setTimeout(done, 20));
}

function isAlive(pid: number): boolean {
  try {
    Deno.kill(pid, "SIGCONT");
    return true;
  } catch {
    return false;
  }
}

Deno.test({
  name: "boot() leaves no VM directory when it is aborted",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const image = await buildTestGuest();
    const stop = new AbortController();
    const output = () => stop.abort(new Error("changed my mind"));
    await assertRejects(
      () =>
        boot({
          image,
          env: new Map([...env, ["TMPDIR", dir.path]]),
          signal: stop.signal,
          console: { output },
        }),
      Error,
      "changed my mind",
    );
    const left = Array.from(Deno.readDirSync(dir.path), (it) => it.name)
      .filter((name) => !name.includes("-verdict-"));
    assertEquals(left, []);
  },
});

Deno.test({
  name: "SIGKILL of a VM's owner process leaves no QEMU and no VM directory",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const script = join(dir.path, "owner.ts");
    await Deno.writeTextFile(
      script,
      `import { boot } from "${PROJECT_ROOT}/lib/vm/boot.ts";
       await boot({
         image: ${JSON.stringify(await buildTestGuest())},
         onEvent: (event) => console.log(JSON.stringify(event)),
         console: { output: () => console.log("console") },
       });`,
    );
    let said = "";
    await using owner = spawnProcess(Deno.execPath(), {
      args: await withImportMap(["run", "-A", script]),
      env: { TMPDIR: dir.path, ...Object.fromEntries(env) },
      stdout: (chunk) => said += new TextDecoder().decode(chunk),
    });
    // During the boot.
    await until(() => said.includes("console"));
    const [machine] = Array.from(Deno.readDirSync(dir.path))
      .filter(({ name, isDirectory }) =>
        isDirectory && name.startsWith("toolsmith-")
      );
    const socket = join(dir.path, machine.name, "console");
    // QEMU itself; the watcher beside it was forked later.
    const [{ pid }] = await findProcesses(socket);
    assert(isAlive(pid));
    Deno.kill(owner.pid, "SIGKILL");
    await until(() => !isAlive(pid));
    await until(() =>
      Deno.stat(join(dir.path, machine.name)).then(() => false, () => true)
    );
  },
});

asRoot(
  "exec() throws disk_full when the overlay's file system is full",
  async () => {
    await using dir = await temporaryDir();
    await using _ = await mountTmpfs(dir.path, "8m");
    await using vm = await boot({
      image: await buildTestGuest(),
      env: new Map([...env, ["TMPDIR", dir.path]]),
    });
    const fill = "dd if=/dev/urandom of=/dev/vda bs=1M count=16 conv=fsync";
    const error = await expectFailure(
      "disk_full",
      () => vm.exec("sh", { args: ["-c", fill] }),
    );
    assert(error.message.includes("no space left"), error.message);
  },
  GUEST_PARTS,
);

Deno.test({
  name: "boot() refuses an export that contains the image or .toolsmith",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "image.qcow2");
    await Deno.copyFile(await buildTestGuest(), image);
    const work = join(dir.path, "work");
    await Deno.mkdir(join(work, ".toolsmith", "deep"), { recursive: true });
    for (const path of [dir.path, work, join(work, ".toolsmith/deep")]) {
      const exports = [{ path, tag: "out" }];
      const error = await expectFailure(
        "usage",
        () => boot({ image, workspace: work, exports, env }),
      );
      assert(error.message.includes("the guest could write to"));
    }
  },
});

Deno.test({
  name: "Vm.stop() removes set-ID bits from files in an export",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const out = join(dir.path, "out");
    await Deno.mkdir(out);
    const outside = join(dir.path, "outside");
    await Deno.writeTextFile(outside, "", { mode: 0o755 });
    await Deno.chmod(outside, 0o4755);
    const exports = [{ path: out }];
    const vm = await boot({ image: await buildTestGuest(), exports, env });
    const script = `cd /mnt/out && mkdir -p a/b && cp /bin/busybox a/b/tool &&
      chmod 6755 a/b/tool && ln -s ${outside} link && chmod 0111 a/b`;
    const { code, stderr } = await vm.exec("sh", { args: ["-c", script] });
    assertEquals(code, 0, stderr);
    const mode = (path: string) => Deno.statSync(path).mode! & 0o7777;
    const tool = join(out, "a", "b", "tool");
    assertEquals(mode(tool), 0o6755);
    await vm.stop();
    assertEquals(mode(tool), 0o755);
    assertEquals(mode(outside), 0o4755);
  },
});

Deno.test({
  name: "SIGKILL of a VM's owner process leaves no set-ID bits in an export",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const out = join(dir.path, "out");
    await Deno.mkdir(out);
    const script = join(dir.path, "owner.ts");
    const command = "cp /bin/busybox /mnt/out/tool && chmod 6755 /mnt/out/tool";
    await Deno.writeTextFile(
      script,
      `import { boot } from "${PROJECT_ROOT}/lib/vm/boot.ts";
       const vm = await boot({
         image: ${JSON.stringify(await buildTestGuest())},
         exports: [{ path: ${JSON.stringify(out)} }],
       });
       await vm.exec("sh", { args: ["-c", ${JSON.stringify(command)}] });
       console.log("done");
       await vm.ended;`,
    );
    const done = Promise.withResolvers<void>();
    await using owner = spawnProcess(Deno.execPath(), {
      args: await withImportMap(["run", "-A", script]),
      env: Object.fromEntries(env),
      stdout: () => done.resolve(),
    });
    await done.promise;
    const tool = join(out, "tool");
    assertEquals(Deno.statSync(tool).mode! & 0o6000, 0o6000);
    Deno.kill(owner.pid, "SIGKILL");
    await until(() => (Deno.statSync(tool).mode! & 0o6000) === 0);
  },
});
