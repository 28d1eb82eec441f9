import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { boot } from "../lib/vm/boot.ts";
import { findDetachedVm } from "../lib/vm/detached.ts";
import { emitter } from "../lib/events.ts";
import { ToolsmithError } from "../lib/errors.ts";
import { run, spawn } from "../lib/system/process.ts";
import { fileChunks, sha256 } from "../lib/system/digest.ts";
import { findSlot } from "../lib/vm/_snapshot.ts";
import { temporaryDir } from "./support/directory.ts";
import { env, guest, needsGuest } from "./support/guest.ts";
import {
  cleanEnvironment,
  cliCommand,
  workspace,
} from "./support/workspace.ts";

Deno.test("a state file made by others removes no directory of the user", async () => {
  await using dir = await temporaryDir();
  const victim = join(dir.path, "toolsmith-notes");
  await Deno.mkdir(join(victim, "sub"), { recursive: true });
  await Deno.writeTextFile(join(victim, "precious"), "mine");
  const path = join(dir.path, "machine.json");
  const state = { layout: 1, pid: 4242, dir: victim, shares: [] };
  await Deno.writeTextFile(path, JSON.stringify(state));
  assertEquals(await findDetachedVm(path), undefined);
  assertEquals(await Deno.readTextFile(join(victim, "precious")), "mine");
});

Deno.test("QEMU arguments that name a file of the host are never saved", async () => {
  await using dir = await temporaryDir();
  const program = join(dir.path, "qemu");
  await Deno.writeTextFile(program, "the program");
  const slot = (...extra: string[]) =>
    findSlot(
      {
        ...{ program, extra, disk: "/a.qcow2", ephemeral: true, shares: [] },
        ...{ dir: dir.path, accelerator: "tcg", memory: 512, cpus: 1 },
      },
      {
        snapshots: { dir: join(dir.path, "machines"), digest: "sha256:0" },
        emit: emitter(undefined),
      },
    );
  assert(await slot("-device", "virtio-keyboard-pci"));
  assertEquals(await slot("second.img"), undefined);
  assertEquals(await slot("-cpu", "max", "second.img"), undefined);
  const rom = ["-device", "virtio-net-pci,romfile=my.rom"];
  assertEquals(await slot(...rom), undefined);
});

Deno.test({
  name: "an export that holds the image or .toolsmith is refused",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const image = join(dir.path, "image.qcow2");
    await Deno.copyFile(await guest(), image);
    const work = join(dir.path, "work");
    await Deno.mkdir(join(work, ".toolsmith", "deep"), { recursive: true });
    await Deno.mkdir(join(work, ".toolsmithy"));
    for (const path of [dir.path, work, join(work, ".toolsmith/deep")]) {
      const error = await assertRejects(
        () =>
          boot({
            image,
            workspace: work,
            exports: [{ path, tag: "out" }],
            env,
          }),
        ToolsmithError,
        "An export would let the guest write to",
      );
      assertEquals(error.code, "usage");
    }
  },
});

Deno.test({
  name: "a machine that was typed into before it was ready is not saved",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const snapshots = { dir: join(dir.path, "states"), digest: "sha256:1" };
    await using vm = await boot({
      ...{ image: await guest(), env, snapshots },
      console: {
        output() {},
        input: new Blob(["touch /tmp/typed\n"]).stream(),
      },
    });
    await vm.stop();
    await assertRejects(
      () => Deno.stat(snapshots.dir),
      Deno.errors.NotFound,
    );
  },
});

Deno.test({
  name: "TERM powers a guest down; input and output that break end a command",
  ...needsGuest,
  async fn(t) {
    await using work = await workspace();
    const image = await guest();
    const digest = await sha256(fileChunks(image));
    await work.manifest({ qcow2: image, qcow2_sha256: digest });
    const cwd = work.dir;
    const environment = {
      ...cleanEnvironment(),
      ...Object.fromEntries(env),
    };
    await t.step("TERM powers the guest down", async () => {
      let console = "";
      let events = "";
      const child = spawn(Deno.execPath(), {
        args: await cliCommand(["boot", "--json"], ["-A"]),
        ...{ cwd, env: environment },
        stdout: (chunk) => {
          events += new TextDecoder().decode(chunk);
          if (/boot_ready/.test(new TextDecoder().decode(chunk))) {
            Deno.kill(child.pid, "SIGTERM");
          }
        },
        stderr: (chunk) => console += new TextDecoder().decode(chunk),
      });
      assertEquals((await child.ended).code, 0);
      assertMatch(events, /"powered_down"/);
      assertMatch(console, /Power down/);
    });
    await t.step("--json into a closed pipe ends", async () => {
      const args = await cliCommand(["run", "--json", "--", "yes"], ["-A"]);
      const script = '"$@" | head -n 1';
      const { stdout } = await run("bash", {
        args: ["-c", script, "bash", Deno.execPath(), ...args],
        ...{ cwd, env: environment, timeoutMs: 25_000 },
      });
      assertMatch(stdout, /^{"type":"cache_hit"/);
    });
    await t.step("input that cannot be read is an error", async () => {
      const args = await cliCommand(["run", "--quiet", "--", "cat"], ["-A"]);
      const { code, stderr } = await run("bash", {
        args: ["-c", 'exec "$@" </', "bash", Deno.execPath(), ...args],
        ...{ cwd, env: environment, timeoutMs: 25_000 },
      });
      assertEquals(code, 14, stderr);
      assertMatch(stderr, /input cannot be read/);
    });
  },
});
