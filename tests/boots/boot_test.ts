import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { boot } from "../../lib/vm/boot.ts";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { temporaryDir } from "../support/directory.ts";
import {
  buildTestGuest,
  collectEvents,
  env,
  needsGuest,
} from "../support/guest.ts";

const digestOf = (path: string) => sha256OfChunks(readFileChunks(path));

Deno.test({
  name:
    "boot() runs two VMs of one image at once and leaves the image unchanged",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "image, copied.qcow2");
    await Deno.copyFile(await buildTestGuest(), image);
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
      .filter((name) => !name.includes("-verdict-"));
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
  name: "boot() with overlay keeps the guest's writes for the next VM",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const image = await buildTestGuest();
    const before = await digestOf(image);
    const overlay = join(dir.path, "kept.qcow2");
    const write = "echo kept >/tmp/a; dd if=/tmp/a of=/dev/vda seek=2000";
    const shutdown = collectEvents("shutdown");
    {
      await using vm = await boot({
        ...{ image, overlay, env },
        onEvent: shutdown.onEvent,
      });
      const { code } = await vm.exec("sh", { args: ["-c", write] });
      assertEquals(code, 0);
      // Longer than by default, for a slow guest.
      await vm.stop({ graceMs: 600_000 });
    }
    // The guest powered down and could flush its writes.
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
  name: "boot() with the network host-loopback lets the guest reach the host",
  ...needsGuest,
  async fn() {
    const server = Deno.serve(
      { hostname: "127.0.0.1", port: 0, onListen: () => {} },
      () => new Response("hello from the host\n"),
    );
    try {
      const image = await buildTestGuest();
      await using vm = await boot({ image, env, network: "host-loopback" });
      const url = `http://10.0.2.2:${server.addr.port}/`;
      const { stdout } = await vm.exec("wget", {
        args: ["-q", "-O", "-", url],
        timeoutMs: 60_000,
      });
      assertEquals(stdout, "hello from the host\n");
      const servers = ["nameserver", "/etc/resolv.conf"];
      const resolver = await vm.exec("grep", { args: servers });
      assertEquals(resolver.stdout, "nameserver 10.0.2.3\n");
    } finally {
      await server.shutdown();
    }
  },
});

Deno.test({
  name: "boot() plugs in no device for an export that is copied into the guest",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const [workspace, out] = ["work", "out"].map((it) => join(dir.path, it));
    for (const path of [workspace, out]) await Deno.mkdir(path);
    await Deno.writeTextFile(join(out, "secret"), "secret\n");
    const image = await buildTestGuest("hides9p");
    for (const more of [{ workspace }, {}]) {
      const warnings = collectEvents("warning");
      await using vm = await boot({
        ...{ image, env, exports: [{ path: out }], ...more },
        onEvent: warnings.onEvent,
      });
      const said = warnings.events.map(({ message }) => message).join();
      assert(said.includes("The export out was copied"), said);
      const mount = (tag: string) =>
        `mkdir -p /tmp/${tag} && mount -t 9p -o trans=virtio,version=9p2000.L ${tag} /tmp/${tag} 2>/dev/null; echo $?`;
      const { stdout } = await vm.exec("sh", {
        args: ["-c", `${mount("work")}; ${mount("out")}; ls /tmp/out`],
      });
      // The kernel can mount the workspace but finds no export device.
      const [work, exported] = stdout.split("\n");
      assertEquals([work === "0", exported === "0"], [
        "workspace" in more,
        false,
      ]);
      assert(!stdout.includes("secret"), stdout);
    }
  },
});

Deno.test({
  name:
    "boot() copies workspace and exports into a guest that cannot mount them",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const image = await buildTestGuest("noDirs");
    const [workspace, out] = ["work", "out"].map((it) => join(dir.path, it));
    await Deno.mkdir(join(workspace, "deep"), { recursive: true });
    await Deno.mkdir(out);
    await Deno.writeTextFile(join(workspace, "deep", "file"), "content\n");
    await Deno.symlink("deep/file", join(workspace, "link"));
    await Deno.writeTextFile(join(out, "old"), "old\n");
    const warnings = collectEvents("warning");
    const said = () => warnings.events.map(({ message }) => message).join();
    {
      await using vm = await boot({
        ...{ image, env, workspace, exports: [{ path: out }] },
        onEvent: warnings.onEvent,
      });
      assert(said().includes("The workspace was copied"), said());
      assert(said().includes("The export out was copied"), said());
      const script =
        "pwd; cat link; touch here 2>/dev/null && echo wrote; cd /mnt/out; cat old; echo new >a; ln -s a b; ln -s /etc/passwd c; chmod 4711 a; exit 3";
      const ended = await vm.exec("sh", { args: ["-c", script] });
      assertEquals(
        [ended.code, ended.stdout],
        [3, "/mnt/work\ncontent\nold\n"],
      );
      assertEquals(await Deno.readTextFile(join(out, "b")), "new\n");
      // The copy lacks a directory created after the boot.
      const places = { deep: "/mnt/work/deep", later: "/mnt/work" };
      await Deno.mkdir(join(workspace, "later"));
      for (const [name, expected] of Object.entries(places)) {
        const hostCwd = join(workspace, name);
        const { stdout } = await vm.exec("pwd", { hostCwd });
        assertEquals(stdout, `${expected}\n`);
      }
      assertEquals((await Deno.stat(join(out, "a"))).mode! & 0o7777, 0o711);
      assertEquals(Array.from(Deno.readDirSync(out)).length, 3);
      assert(said().includes("unsafe on a host; skipped 1"), said());

      // Each command syncs the export, one at a time.
      const names = Array.from({ length: 6 }, (_, n) => `at-once-${n}`);
      await Promise.all(names.map(async (name) => {
        const args = ["-c", `echo ${name} >/mnt/out/${name}`];
        assertEquals((await vm.exec("sh", { args })).code, 0);
        const text = await Deno.readTextFile(join(out, name));
        assertEquals(text, `${name}\n`);
      }));

      // Syncing the export counts towards the command's timeout.
      const hang =
        "rm /bin/tar; printf '#!/bin/sh\\nexec sleep 99' >/bin/tar; chmod 755 /bin/tar";
      const limits = { args: ["-c", hang], timeoutMs: 4000 };
      await expectFailure("timeout", () => vm.exec("sh", limits));
    }
    let cancelled = false;
    const input = new ReadableStream({ cancel: () => void (cancelled = true) });
    await Deno.writeFile(join(workspace, "large"), new Uint8Array(2 ** 20));
    const vm = await boot({
      ...{ image, env, workspace, copyLimit: 1 },
      console: { input, output: () => {} },
      onEvent: warnings.onEvent,
    });
    for (const hostCwd of [undefined, join(workspace, "deep")]) {
      assertEquals((await vm.exec("pwd", { hostCwd })).stdout, "/\n");
    }
    assert(said().includes("--copy-limit"), said());
    await vm.stop();
    assert(cancelled, "the machine holds on to what is typed");
  },
});
