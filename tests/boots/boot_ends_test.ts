import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { boot } from "../../lib/vm/boot.ts";
import { run, spawn } from "../../lib/system/process.ts";
import { denoArgs, ROOT } from "../../scripts/deno.ts";
import { failure } from "../support/failure.ts";
import { temporaryDir } from "../support/directory.ts";
import { env, guest, needsGuest } from "../support/guest.ts";
import { processesOf } from "../support/processes.ts";
import { asRoot } from "../support/users.ts";

/** Waits until something is so; a test's own deadline is the limit. */
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
  name: "a boot can be cancelled, and leaves nothing",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const image = await guest();
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
  name: "SIGKILL for the owner of a machine leaves no QEMU and no directory",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const script = join(dir.path, "owner.ts");
    await Deno.writeTextFile(
      script,
      `import { boot } from "${ROOT}/lib/vm/boot.ts";
       await boot({
         image: ${JSON.stringify(await guest())},
         onEvent: (event) => console.log(JSON.stringify(event)),
         console: { output: () => console.log("console") },
       });`,
    );
    let said = "";
    await using owner = spawn(Deno.execPath(), {
      args: await denoArgs(["run", "-A", script]),
      env: { TMPDIR: dir.path, ...Object.fromEntries(env) },
      stdout: (chunk) => said += new TextDecoder().decode(chunk),
    });
    // In the midst of the boot.
    await until(() => said.includes("console"));
    const [machine] = Array.from(Deno.readDirSync(dir.path))
      .filter(({ name, isDirectory }) =>
        isDirectory && name.startsWith("toolsmith-")
      );
    const socket = join(dir.path, machine.name, "console");
    // QEMU itself; the watcher beside it was forked later.
    const [{ pid }] = await processesOf(socket);
    assert(isAlive(pid));
    Deno.kill(owner.pid, "SIGKILL");
    await until(() => !isAlive(pid));
    await until(() =>
      Deno.stat(join(dir.path, machine.name)).then(() => false, () => true)
    );
  },
});

asRoot(
  "a full directory of temporary disks is said to be full, soon",
  async () => {
    if (needsGuest.ignore) return;
    await using dir = await temporaryDir();
    const mount = ["-t", "tmpfs", "-o", "size=8m", "tmpfs", dir.path];
    assertEquals((await run("mount", { args: mount })).code, 0);
    try {
      await using vm = await boot({
        image: await guest(),
        env: new Map([...env, ["TMPDIR", dir.path]]),
      });
      const begun = performance.now();
      const fill = "dd if=/dev/urandom of=/dev/vda bs=1M count=16 conv=fsync";
      const error = await failure(
        "disk_full",
        () => vm.exec("sh", { args: ["-c", fill] }),
      );
      assert(error.message.includes("no space left"), error.message);
      assert(performance.now() - begun < 15_000);
    } finally {
      await run("umount", { args: [dir.path] });
    }
  },
);

Deno.test({
  name: "an export that holds the image or .toolsmith is refused",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "image.qcow2");
    await Deno.copyFile(await guest(), image);
    const work = join(dir.path, "work");
    await Deno.mkdir(join(work, ".toolsmith", "deep"), { recursive: true });
    for (const path of [dir.path, work, join(work, ".toolsmith/deep")]) {
      const exports = [{ path, tag: "out" }];
      const error = await failure(
        "usage",
        () => boot({ image, workspace: work, exports, env }),
      );
      assert(error.message.includes("the guest could write to"));
    }
  },
});

Deno.test({
  name: "a guest leaves no program with set-ID bits in an export",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const out = join(dir.path, "out");
    await Deno.mkdir(out);
    const outside = join(dir.path, "outside");
    await Deno.writeTextFile(outside, "", { mode: 0o755 });
    await Deno.chmod(outside, 0o4755);
    const exports = [{ path: out }];
    const vm = await boot({ image: await guest(), exports, env });
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
  name: "SIGKILL for the owner of a machine leaves no set-ID bits in an export",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const out = join(dir.path, "out");
    await Deno.mkdir(out);
    const script = join(dir.path, "owner.ts");
    const command = "cp /bin/busybox /mnt/out/tool && chmod 6755 /mnt/out/tool";
    await Deno.writeTextFile(
      script,
      `import { boot } from "${ROOT}/lib/vm/boot.ts";
       const vm = await boot({
         image: ${JSON.stringify(await guest())},
         exports: [{ path: ${JSON.stringify(out)} }],
       });
       await vm.exec("sh", { args: ["-c", ${JSON.stringify(command)}] });
       console.log("done");
       await vm.ended;`,
    );
    const done = Promise.withResolvers<void>();
    await using owner = spawn(Deno.execPath(), {
      args: await denoArgs(["run", "-A", script]),
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
