import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { boot } from "../../lib/vm/boot.ts";
import { fileChunks, sha256 } from "../../lib/system/digest.ts";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { failure } from "../support/failure.ts";
import { temporaryDir } from "../support/directory.ts";
import { collect, env, guest, needsGuest } from "../support/guest.ts";

const digestOf = (path: string) => sha256(fileChunks(path));

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
  name: "a guest that gets copies has no device of an export",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const [workspace, out] = ["work", "out"].map((it) => join(dir.path, it));
    for (const path of [workspace, out]) await Deno.mkdir(path);
    await Deno.writeTextFile(join(out, "secret"), "secret\n");
    const image = await guest("hides9p");
    for (const more of [{ workspace }, {}]) {
      const warnings = collect("warning");
      await using vm = await boot({
        ...{ image, env, exports: [{ path: out }], ...more },
        onEvent: warnings.onEvent,
      });
      const said = warnings.events.map(({ message }) => message).join();
      assert(said.includes("The export out is a copy"), said);
      const mount = (tag: string) =>
        `mkdir -p /tmp/${tag} && mount -t 9p -o trans=virtio,version=9p2000.L ${tag} /tmp/${tag} 2>/dev/null; echo $?`;
      const { stdout } = await vm.exec("sh", {
        args: ["-c", `${mount("work")}; ${mount("out")}; ls /tmp/out`],
      });
      // Its kernel can mount what it may read, and finds nothing of the export.
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
      // A directory that is newer than the copy is not in it.
      const places = { deep: "/mnt/work/deep", later: "/mnt/work" };
      await Deno.mkdir(join(workspace, "later"));
      for (const [name, expected] of Object.entries(places)) {
        const hostCwd = join(workspace, name);
        const { stdout } = await vm.exec("pwd", { hostCwd });
        assertEquals(stdout, `${expected}\n`);
      }
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
    for (const hostCwd of [undefined, join(workspace, "deep")]) {
      assertEquals((await vm.exec("pwd", { hostCwd })).stdout, "/\n");
    }
    assert(said().includes("--copy-limit"), said());
    await vm.stop();
    assert(cancelled, "the machine holds on to what is typed");
  },
});
