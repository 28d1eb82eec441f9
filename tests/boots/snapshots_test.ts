import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { boot } from "../../lib/vm/boot.ts";
import type { BootOptions } from "../../lib/vm/boot_options.ts";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import { writeOverlay } from "../../lib/image/overlay.ts";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { runProcess } from "../../lib/system/process.ts";
import { snapshotStore } from "../../lib/cache/snapshots.ts";
import { PROJECT_ROOT, withImportMap } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";
import { buildTestGuest, env, needsGuest } from "../support/guest.ts";
import { replaceMethod } from "../support/replace_method.ts";

const digestOf = (path: string) => sha256OfChunks(readFileChunks(path));
/** Sectors between the partition table and the first partition. */
const MARK = 40;

/** File names in a directory without lock files, which remain. */
function files(dir: string): string[] {
  return Array.from(Deno.readDirSync(dir), ({ name }) => name)
    .filter((name) => !name.endsWith(".lock"));
}

const endings = (dir: string) =>
  files(dir).map((name) => name.replace(/^[0-9a-f]{64}/, "")).sort();

/** Boots or restores a VM and reports which. */
async function start(options: BootOptions) {
  const events: ToolsmithEvent[] = [];
  const vm = await boot({
    env,
    // On a busy host a guest may show nothing for minutes while it works.
    bootTimeoutMs: 86_400_000,
    ...options,
    onEvent: (event) => events.push(event),
  });
  const all = <T extends ToolsmithEvent["type"]>(type: T) =>
    events.filter((it): it is Extract<ToolsmithEvent, { type: T }> =>
      it.type === type
    );
  return {
    how: all("boot_ready")[0].how,
    all,
    /** Warnings, except those about the accelerator. */
    said: () =>
      all("warning").map(({ message }) => message)
        .filter((message) => /saved|snapshot/.test(message)),
    /** Runs a script of the guest's shell, and returns what it prints. */
    async sh(script: string) {
      const { code, stdout } = await vm.exec("sh", { args: ["-c", script] });
      assertEquals(code, 0, script);
      return stdout;
    },
    [Symbol.asyncDispose]: () => vm.stop(),
  };
}

/** Reads the disk directly, past the guest's page cache. */
const readMark = `dd if=/dev/vda skip=${MARK} count=1 iflag=direct 2>/dev/null`;

const readRandom = "od -An -N16 -tx1 /dev/urandom";

/** One snapshot for all steps: booting takes longer than the tests. */
Deno.test({
  name: "Snapshots: the first boot saves the VM and later boots restore it",
  ...needsGuest,
  async fn(t) {
    await using dir = await temporaryDir();
    const image = join(dir.path, "image, copied.qcow2");
    await Deno.copyFile(await buildTestGuest(), image);
    await Deno.chmod(image, 0o444);
    const digest = `sha256:${await digestOf(image)}`;
    const machines = join(dir.path, "machines");
    const snapshots = { dir: machines, digest };
    const common = { image, snapshots, workspace: dir.path };

    await t.step("boot() killed while saving leaves no snapshot", async () => {
      const script = join(dir.path, "owner.ts");
      await Deno.writeTextFile(
        script,
        `import { boot } from "${PROJECT_ROOT}/lib/vm/boot.ts";
         setInterval(() => {
           for (const { name } of Deno.readDirSync(${JSON.stringify(machines)}))
             if (name.startsWith(".staging-")) Deno.kill(Deno.pid, "SIGKILL");
         }, 1);
         await boot(${JSON.stringify(common)});`,
      );
      await Deno.mkdir(machines, { mode: 0o700 });
      const { signal, stderr } = await runProcess(Deno.execPath(), {
        args: await withImportMap(["run", "-A", script]),
        env: { TMPDIR: dir.path, ...Object.fromEntries(env) },
      });
      assertEquals(signal, "SIGKILL", stderr);
      // If QEMU was started already, its watcher removes staging.
      for (const left of files(machines)) {
        assert(left.startsWith(".staging-"), left);
      }
    });

    await t.step("boot() saves a VM and removes stale staging", async () => {
      const vm = await start(common);
      assertEquals([vm.how, vm.said()], ["booted", []]);
      const [{ phases }] = vm.all("boot_ready");
      assert(phases.save > 0);
      assertEquals(await vm.sh("echo here"), "here\n");
      await vm[Symbol.asyncDispose]();
      assertEquals(endings(machines), [".json", ".memory", ".qcow2", ".state"]);
      const [saved] = vm.all("state_saved");
      const [state] = await snapshotStore(machines).list();
      assertEquals([saved.path, saved.bytes], [state.path, state.bytes]);
      assert(saved.stoodMs > 0);
      // Memory that the guest has not used takes no disk space.
      const { size } = await Deno.stat(state.memory);
      assertEquals(size, 512 * 2 ** 20);
      assert(state.bytes < size / 2, `${state.bytes}`);
    });

    const [state] = await snapshotStore(machines).list();
    const digests = async () => [
      await digestOf(state.path),
      await digestOf(state.memory),
    ];
    const before = await digests();
    const random: string[] = [];

    await t.step("boot() reports a restored VM and its phases", async () => {
      await using vm = await start(common);
      assertEquals([vm.how, vm.said()], ["restored", []]);
      assertEquals(vm.all("vm_boot").map(({ how }) => how), ["restore"]);
      const [{ phases, elapsedMs }] = vm.all("boot_ready");
      assertEquals(phases.save, 0);
      assert(elapsedMs >= phases.start + phases.guest);
      assertEquals(await vm.sh("printf first"), "first");
      // The kernel has noticed that it was restored.
      assert((await vm.sh("dmesg")).includes("due to virtual machine fork"));
    });

    await t.step(
      "exec() uses the snapshot's warm shell for the first command",
      async () => {
        await using vm = await start(common);
        const around = "tr '\\0' ' ' </proc/$PPID/cmdline";
        const shells = [await vm.sh(around), await vm.sh(around)];
        const waited = shells.map((it) => it.includes("read -r kind count"));
        assertEquals(waited, [true, false], shells.join("\n"));
      },
    );

    await t.step("boot() restores two isolated VMs at once", async () => {
      const [one, two] = await Promise.all([start(common), start(common)]);
      await using _one = one;
      await using _two = two;
      const vms = [one, two];
      assertEquals(vms.map(({ how }) => how), ["restored", "restored"]);
      random.push(...await Promise.all(vms.map((vm) => vm.sh(readRandom))));
      await one.sh(
        `echo mine >/tmp/mine; dd if=/tmp/mine of=/dev/vda seek=${MARK} conv=fsync`,
      );
      assertEquals(await two.sh(`ls /tmp; ${readMark} | tr -d '\\0'`), "");
      assertEquals(await one.sh(`${readMark} | tr -d '\\0'`), "mine\n");
    });

    await t.step("boot() restores no changes of an earlier VM", async () => {
      await using vm = await start(common);
      assertEquals(vm.how, "restored");
      random.push(await vm.sh(readRandom));
      assertEquals(random.map((it) => it.length), [49, 49, 49]);
      assertEquals(new Set(random).size, 3, random.join());
      assertEquals(await vm.sh(`ls /tmp; ${readMark} | tr -d '\\0'`), "");
      assertEquals(await digests(), before);
      assertEquals(`sha256:${await digestOf(image)}`, digest);
    });

    await t.step("boot() hot-plugs shares and a network", async () => {
      const out = join(dir.path, "out");
      await Deno.mkdir(out);
      const server = Deno.serve(
        { hostname: "127.0.0.1", port: 0, onListen: () => {} },
        () => new Response("hello from the host\n"),
      );
      try {
        await using vm = await start({
          ...common,
          exports: [{ path: out }],
          network: "host-loopback",
        });
        assertEquals(vm.how, "restored");
        const url = `http://10.0.2.2:${server.addr.port}/`;
        assertEquals(
          await vm.sh(`wget -q -O - ${url} | tee /mnt/out/page`),
          "hello from the host\n",
        );
        assertEquals(
          await Deno.readTextFile(join(out, "page")),
          "hello from the host\n",
        );
        assertEquals(
          await vm.sh("! touch new && sha256sum image*"),
          `${digest.replace("sha256:", "")}  image, copied.qcow2\n`,
        );
      } finally {
        await server.shutdown();
      }
    });

    await t.step("boot() restores no snapshot for other options", async () => {
      const different: Record<string, BootOptions> = {
        "more memory": {
          ...common,
          memory: 640,
          snapshots: { ...snapshots, save: false },
        },
        "not to be restored": {
          ...common,
          snapshots: { ...snapshots, restore: false, save: false },
        },
        "a disk that is kept": {
          ...common,
          overlay: join(dir.path, "kept.qcow2"),
        },
      };
      await Promise.all(
        Object.entries(different).map(async ([what, options]) => {
          await using vm = await start(options);
          assertEquals([vm.how, vm.said()], ["booted", []], what);
        }),
      );
      assertEquals(endings(machines), [".json", ".memory", ".qcow2", ".state"]);
      assertEquals(await digests(), before);
    });

    await t.step("boot() sets the clock of a restored VM", async () => {
      // Unless set, the clock would show the time of the save.
      const now = Date.now.bind(Date);
      using _clock = replaceMethod(Date, { now: () => now() + 3_600_000 });
      const earliest = Date.now() / 1000;
      await using vm = await start(common);
      assertEquals(vm.how, "restored");
      const time = Number(await vm.sh("date +%s"));
      const latest = Date.now() / 1000;
      // The clock may be set in whole seconds.
      assert(time > earliest - 2, `${time} is before ${earliest}`);
      assert(time < latest + 2, `${time} is after ${latest}`);
    });

    await t.step("boot() replaces a snapshot that QEMU refuses", async () => {
      const bytes = await Deno.readFile(state.path);
      const bad = {
        garbage: crypto.getRandomValues(new Uint8Array(60_000)),
        half: bytes.subarray(0, bytes.length / 2),
        // The format of a snapshot without mapped memory.
        whole: bytes,
      };
      await Promise.all(
        Object.entries(bad).map(async ([what, bytes]) => {
          const own = { ...snapshots, dir: join(dir.path, what) };
          {
            await using staging = await snapshotStore(own.dir).createStaging(
              state.key,
            );
            await Deno.writeFile(staging!.state, bytes);
            const memory = new Uint8Array(2 ** 20);
            await Deno.writeFile(staging!.memory, memory);
            await writeOverlay(staging!.disk, image);
            await staging!.commit();
          }
          {
            await using vm = await start({ ...common, snapshots: own });
            assertEquals(vm.how, "booted", what);
            assertEquals(vm.all("vm_boot").at(-1)?.how, "boot");
            const [line, ...more] = vm.said();
            assertEquals(more, []);
            assert(line.startsWith("The snapshot was removed: "), line);
            assert(line.endsWith("; booting instead"), line);
            assert(/QEMU exited with status|refused/.test(line), line);
            assert(!/\n|console/.test(line), line);
            assertEquals(await vm.sh("echo here"), "here\n");
          }
          const [{ key, bytes: size }] = await snapshotStore(own.dir).list();
          assertEquals(key, state.key);
          assert(size > 2 * 2 ** 20, `${size}`);
        }),
      );
    });

    await t.step("restored VM survives removal of its snapshot", async () => {
      await using vm = await start(common);
      assertEquals(vm.how, "restored");
      assert(await snapshotStore(machines).remove(state));
      assertEquals(endings(machines), []);
      // Programs in its page cache, and unused memory.
      const all =
        "cat /bin/busybox | wc -c; dd if=/dev/zero of=/tmp/some bs=1M count=64";
      assertMatch(await vm.sh(`${all} 2>/dev/null`), /^\d+\n$/);
    });

    await t.step("boot() runs a VM that cannot be saved", async () => {
      // A file where the directory should be.
      const own = { ...snapshots, dir: image };
      await using vm = await start({ ...common, snapshots: own });
      assertEquals(vm.how, "booted");
      const [line, ...more] = vm.said();
      assertEquals(more, []);
      assert(line.startsWith("The VM was not saved: "), line);
      assertEquals(await vm.sh("echo here"), "here\n");
    });
  },
});

Deno.test({
  name:
    "boot() restores a VM with its disk as saved, without the writes of other restored VMs",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "image, copied.qcow2");
    await Deno.copyFile(await buildTestGuest("writer"), image);
    const digest = await digestOf(image);
    const machines = join(dir.path, "machines");
    const common = { image, snapshots: { dir: machines, digest } };
    const both = `cat /tmp/mark; ${readMark} | head -n1`;
    const marks: string[] = [];
    for (const how of ["booted", "restored", "restored"]) {
      await using vm = await start(common);
      assertEquals([vm.how, vm.said()], [how, []]);
      marks.push(await vm.sh(both));
      // The next VM must not see this write.
      await vm.sh(`echo no | dd of=/dev/vda seek=${MARK} conv=fsync`);
    }
    const [line, again, end] = marks[0].split("\n");
    assertEquals([again, end], [line, ""]);
    assert(/^( [0-9a-f]{2}){16}$/.test(line), line);
    assertEquals(marks, [marks[0], marks[0], marks[0]]);
    assertEquals(endings(machines), [".json", ".memory", ".qcow2", ".state"]);
    const [{ disk }] = await snapshotStore(machines).list();
    assertEquals((await Deno.stat(disk!)).mode! & 0o777, 0o600);
    assertEquals(await digestOf(image), digest);
  },
});

Deno.test({
  name:
    "boot() does not save a VM that received console input before it was ready",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const snapshots = { dir: join(dir.path, "states"), digest: "sha256:1" };
    await using vm = await boot({
      ...{ image: await buildTestGuest(), env, snapshots },
      console: {
        output() {},
        input: new Blob(["touch /tmp/typed\n"]).stream(),
      },
    });
    await vm.stop();
    assertEquals(endings(snapshots.dir), []);
  },
});

/** QEMU without an option that older versions lack. */
async function olderQemu(dir: string): Promise<Map<string, string>> {
  const program = join(dir, "qemu");
  await Deno.writeTextFile(
    program,
    `#!/bin/sh
case "$*" in
*memory-backend=*) echo "Property 'memory-backend' not found" >&2; exit 1 ;;
esac
exec ${env.get("TOOLSMITH_QEMU")} "$@"
`,
    { mode: 0o755 },
  );
  return new Map([["TOOLSMITH_QEMU", program]]);
}

Deno.test({
  name: "boot() does not save a VM when QEMU cannot map the VM's memory",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const machines = join(dir.path, "machines");
    await using vm = await start({
      image: await buildTestGuest(),
      snapshots: { dir: machines, digest: "sha256:1" },
      env: await olderQemu(dir.path),
    });
    assertEquals([vm.how, vm.all("vm_boot").length], ["booted", 1]);
    const [line, ...more] = vm.said();
    assertEquals(more, []);
    assert(
      line.startsWith("The VM was not saved: QEMU cannot map guest memory"),
      line,
    );
    assert(line.endsWith("Property 'memory-backend' not found"), line);
    assertEquals(await vm.sh("echo here"), "here\n");
    assertEquals(endings(machines), []);
  },
});
