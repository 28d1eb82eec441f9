import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { boot } from "../../lib/vm/boot.ts";
import { fileChunks, sha256 } from "../../lib/system/digest.ts";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { run, spawn } from "../../lib/system/process.ts";
import { denoArgs, ROOT } from "../../scripts/deno.ts";
import { failure } from "../support/failure.ts";
import { temporaryDir } from "../support/directory.ts";
import { collect, env, guest, needsGuest } from "../support/guest.ts";
import { needs } from "../support/parts.ts";
import { processesOf } from "../support/processes.ts";
import { asRoot } from "../support/users.ts";

const digestOf = (path: string) => sha256(fileChunks(path));

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
  name: "two machines at once leave the image as it was, and nothing behind",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "image, copied.qcow2");
    await Deno.copyFile(await guest(), image);
    await Deno.chmod(image, 0o444);
    const before = await digestOf(image);
    const [one, two] = ["one", "two"].map((name) => join(dir.path, name));
    const temporary = join(dir.path, "tmp");
    for (const path of [one, two, temporary]) await Deno.mkdir(path);
    const events: ToolsmithEvent[] = [];
    const common = {
      image,
      env: new Map([...env, ["TMPDIR", temporary]]),
      onEvent: (event: ToolsmithEvent) => events.push(event),
    };
    {
      const [first, second] = await Promise.all([
        boot({ ...common, exports: [{ path: one, tag: "out" }] }),
        boot({ ...common, exports: [{ path: two, tag: "out" }] }),
      ]);
      await using _first = first;
      await using _second = second;
      const script =
        "dd if=/dev/urandom of=/dev/vda bs=1M count=8 conv=fsync && " +
        'echo "$1" >/tmp/mine && sleep 1 && cp /tmp/mine /mnt/out/';
      const results = await Promise.all(
        [first, second].map((vm, n) =>
          vm.exec("sh", { args: ["-c", script, "sh", `${n + 1}`] })
        ),
      );
      assertEquals(results.map(({ code }) => code), [0, 0]);
      const clones = await Promise.all(
        [first, second].map((vm) =>
          vm.exec("head", { args: ["-c16", "/dev/urandom"], stdout: () => {} })
        ),
      );
      assertEquals(clones.map(({ stdoutBytes }) => stdoutBytes), [16, 16]);
    }
    const written = [one, two].map((path) =>
      Deno.readTextFileSync(join(path, "mine"))
    );
    assertEquals(written, ["1\n", "2\n"]);
    assertEquals(await digestOf(image), before);
    const left = Array.from(Deno.readDirSync(temporary), (it) => it.name)
      .filter((name) => !name.includes("-no-"));
    assertEquals(left, []);

    const all = <T extends ToolsmithEvent["type"]>(type: T) =>
      events.filter((it): it is Extract<ToolsmithEvent, { type: T }> =>
        it.type === type
      );
    const types = ["vm_boot", "boot_ready", "command_end", "shutdown"] as const;
    assertEquals(types.map((type) => all(type).length), [2, 2, 4, 2]);
    for (const { backend, image: booted, accelerator } of all("vm_boot")) {
      assertEquals([backend, booted], ["qemu", image]);
      assert(["kvm", "hvf", "tcg"].includes(accelerator));
    }
    for (const { how, phases, elapsedMs } of all("boot_ready")) {
      assertEquals(how, "booted");
      assert(phases.guest > 0);
      assert(elapsedMs >= phases.start + phases.guest);
    }
  },
});

Deno.test({
  name: "an overlay keeps what the guest writes; a power-down ends it well",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const image = await guest();
    const before = await digestOf(image);
    const overlay = join(dir.path, "kept.qcow2");
    const write = "echo kept >/tmp/a; dd if=/tmp/a of=/dev/vda seek=2000";
    const shutdown = collect("shutdown");
    {
      await using vm = await boot({
        ...{ image, overlay, env },
        onEvent: shutdown.onEvent,
      });
      const { code } = await vm.exec("sh", { args: ["-c", write] });
      assertEquals(code, 0);
    }
    // The guest was asked to power down, so that it could write what it held.
    assertEquals(shutdown.events.map(({ how }) => how), ["powered_down"]);
    {
      await using vm = await boot({ image, overlay, env });
      const read = "dd if=/dev/vda skip=2000 count=1 2>/dev/null | head -n1";
      const { stdout } = await vm.exec("sh", { args: ["-c", read] });
      assertEquals(stdout, "kept\n");
      await vm.stop({ graceMs: 0 });
    }
    assertEquals(await digestOf(image), before);
  },
});

Deno.test({
  name: "a network is there when it is asked for",
  ...needsGuest,
  async fn() {
    const server = Deno.serve(
      { hostname: "127.0.0.1", port: 0, onListen: () => {} },
      () => new Response("hello from the host\n"),
    );
    try {
      const image = await guest();
      await using vm = await boot({ image, env, network: true });
      const url = `http://10.0.2.2:${server.addr.port}/`;
      const { stdout } = await vm.exec("wget", {
        args: ["-q", "-O", "-", url],
        timeoutMs: 60_000,
      });
      assertEquals(stdout, "hello from the host\n");
    } finally {
      await server.shutdown();
    }
  },
});

Deno.test({
  name: "a guest that panics is told at once, with its last words",
  ...needsGuest,
  async fn() {
    const image = await guest("panics");
    const error = await failure("guest_panicked", () => boot({ image, env }));
    assert(error.message.includes("Attempted to kill init"), error.message);
    assert(error.message.includes("  | "), error.message);
  },
});

Deno.test({
  name: "a guest without an agent is given up, with the end of its console",
  ...needsGuest,
  async fn() {
    const image = await guest("noAgent");
    const error = await failure(
      "guest_not_ready",
      () => boot({ image, env, bootTimeoutMs: 3_000 }),
    );
    assert(error.message.includes("did not start within 3 s"));
    assert(error.message.includes("take the one that Toolsmith offers"));
    assert(error.hint?.includes("cloud-init"));
    assert(error.message.includes("\n  | SeaBIOS"), error.message);
    assert(error.hint?.includes("qemu-guest-agent"));
  },
});

Deno.test({
  name: "a guest without an agent still has a console, where that is enough",
  ...needsGuest,
  async fn() {
    const image = await guest("noAgent");
    const input = new TransformStream<Uint8Array, Uint8Array>();
    const writer = input.writable.getWriter();
    const type = (text: string) => writer.write(new TextEncoder().encode(text));
    const decoder = new TextDecoder();
    let seen = "";
    let typed = false;
    const answered = Promise.withResolvers<void>();
    const warnings = collect("warning");
    await using vm = await boot({
      ...{ image, env, bootTimeoutMs: 3_000, agentOptional: true },
      onEvent: warnings.onEvent,
      console: {
        input: input.readable,
        output(chunk) {
          seen += decoder.decode(chunk, { stream: true });
          if (!typed && seen.includes("/ #")) {
            typed = true;
            type("echo $((6 * 7))-typed\n");
          }
          if (seen.includes("42-typed")) answered.resolve();
        },
      },
    });
    await answered.promise;
    assert(warnings.events.some(({ message }) => message.includes("console")));
    await failure("guest_not_ready", () => vm.exec("true"));
  },
});

Deno.test({
  name: "a guest whose agent says nothing is told from one without an agent",
  ...needsGuest,
  async fn() {
    const image = await guest("silent");
    let message = "";
    // How long a boot takes depends on what else this host does.
    for (let seconds = 10; seconds <= 80; seconds *= 2) {
      const bootTimeoutMs = seconds * 1000;
      ({ message } = await failure(
        "guest_not_ready",
        () => boot({ image, env, bootTimeoutMs }),
      ));
      if (!message.includes("did not start")) break;
    }
    assert(message.includes("agent is there"), message);
  },
});

Deno.test({
  name: "directories come as copies into a guest that cannot mount them",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const image = await guest("noDirs");
    const [workspace, out] = ["work", "out"].map((it) => join(dir.path, it));
    await Deno.mkdir(join(workspace, "deep"), { recursive: true });
    await Deno.mkdir(out);
    await Deno.writeTextFile(join(workspace, "deep", "file"), "content\n");
    await Deno.symlink("deep/file", join(workspace, "link"));
    await Deno.writeTextFile(join(out, "old"), "old\n");
    const warnings = collect("warning");
    const said = () => warnings.events.map(({ message }) => message).join();
    {
      await using vm = await boot({
        ...{ image, env, workspace, exports: [{ path: out }] },
        onEvent: warnings.onEvent,
      });
      assert(said().includes("The workspace is a copy"), said());
      assert(said().includes("The export out is a copy"), said());
      const script =
        "pwd; cat link; touch here 2>/dev/null && echo wrote; cd /mnt/out; cat old; echo new >a; ln -s a b; ln -s /etc/passwd c; chmod 4711 a; exit 3";
      const ended = await vm.exec("sh", { args: ["-c", script] });
      assertEquals(
        [ended.code, ended.stdout],
        [3, "/mnt/work\ncontent\nold\n"],
      );
      assertEquals(await Deno.readTextFile(join(out, "b")), "new\n");
      assertEquals((await Deno.stat(join(out, "a"))).mode! & 0o7777, 0o711);
      assertEquals(Array.from(Deno.readDirSync(out)).length, 3);
      assert(said().includes("a host must not take; left out: 1"), said());

      // Each brings the export back, and they take turns.
      const names = Array.from({ length: 6 }, (_, n) => `at-once-${n}`);
      await Promise.all(names.map(async (name) => {
        const args = ["-c", `echo ${name} >/mnt/out/${name}`];
        assertEquals((await vm.exec("sh", { args })).code, 0);
        const text = await Deno.readTextFile(join(out, name));
        assertEquals(text, `${name}\n`);
      }));

      // What the guest sends back is a part of the command, in time as well.
      const hang =
        "rm /bin/tar; printf '#!/bin/sh\\nexec sleep 99' >/bin/tar; chmod 755 /bin/tar";
      const limits = { args: ["-c", hang], timeoutMs: 4000 };
      await failure("timeout", () => vm.exec("sh", limits));
    }
    let cancelled = false;
    const input = new ReadableStream({ cancel: () => void (cancelled = true) });
    await Deno.writeFile(join(workspace, "large"), new Uint8Array(2 ** 20));
    const vm = await boot({
      ...{ image, env, workspace, copyLimit: 1 },
      console: { input, output: () => {} },
      onEvent: warnings.onEvent,
    });
    assertEquals((await vm.exec("pwd")).stdout, "/\n");
    assert(said().includes("--copy-limit"), said());
    await vm.stop();
    assert(cancelled, "the machine holds on to what is typed");
  },
});

Deno.test({
  name: "an image that holds nothing to boot is told before its deadline",
  ...needs("qemu", "qemuImg"),
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "empty.qcow2");
    await run("qemu-img", {
      args: ["create", "-q", "-f", "qcow2", image, "8M"],
    });
    const error = await failure("boot_failed", () => boot({ image, env }));
    assert(error.message.includes("No bootable device"), error.message);
    assert(error.message.includes("Booting from Hard Disk"), error.message);
  },
});

Deno.test({
  name: "without QEMU there is no boot, and a hint",
  ...needs("qemuImg"),
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "a.qcow2");
    await run("qemu-img", {
      args: ["create", "-q", "-f", "qcow2", image, "8M"],
    });
    const missing = new Map([
      ["TOOLSMITH_QEMU", "/nowhere/qemu-system-x86_64"],
      ["TMPDIR", dir.path],
    ]);
    const error = await failure(
      "qemu_not_found",
      () => boot({ image, env: missing }),
    );
    assert(error.message.includes("/nowhere/qemu-system-x86_64"));
    assert(error.hint?.includes("TOOLSMITH_QEMU"));
    const names = Array.from(Deno.readDirSync(dir.path), (it) => it.name);
    assertEquals(names, ["a.qcow2"]);
  },
});

Deno.test({
  name: "what QEMU refuses is told in its own words",
  ...needsGuest,
  async fn() {
    const image = await guest();
    const error = await failure(
      "boot_failed",
      () => boot({ image, env, qemuArgs: ["-device", "no-such-device"] }),
    );
    assert(error.message.includes("no-such-device"), error.message);
    await failure("usage", () => boot({ image, env, memory: 0 }));
    await failure("usage", () => boot({ image, env, cpus: 1.5 }));
  },
});

Deno.test({
  name:
    "an accelerator that does not work is replaced, unless it was asked for",
  ...needs("qemu", "qemuImg"),
  ignore: Deno.build.os !== "linux" || needs("qemu", "qemuImg").ignore,
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "empty.qcow2");
    await run("qemu-img", {
      args: ["create", "-q", "-f", "qcow2", image, "8M"],
    });
    // Stands for a QEMU whose KVM is there and of no use.
    const program = join(dir.path, "qemu");
    await Deno.writeTextFile(
      program,
      "#!/bin/sh\ncase $* in *accel=kvm*) echo KVM is broken >&2; exit 134 ;; esac\n" +
        `exec '${env.get("TOOLSMITH_QEMU")}' "$@"\n`,
    );
    await Deno.chmod(program, 0o755);
    const own = new Map([
      ["TOOLSMITH_QEMU", program],
      ["TMPDIR", dir.path],
    ]);
    const asked = await failure(
      "boot_failed",
      () => boot({ image, env: own, accelerator: "kvm" }),
    );
    assert(asked.message.includes("KVM is broken"), asked.message);
    const warnings = collect("warning");
    const started = collect("vm_boot");
    const onEvent = (event: ToolsmithEvent) => {
      warnings.onEvent(event);
      started.onEvent(event);
    };
    for (let time = 0; time < 2; time++) {
      const error = await failure(
        "boot_failed",
        () => boot({ image, env: own, onEvent }),
      );
      assert(error.message.includes("No bootable device"), error.message);
    }
    assertEquals(started.events.map((it) => it.accelerator), ["tcg", "tcg"]);
    const offered = await Deno.stat("/dev/kvm").then(() => 1, () => 0);
    assertEquals(warnings.events.length, offered);
  },
});

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
      .filter((name) => !name.includes("-no-"));
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
      assert(error.message.includes("would let the guest write to"));
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
