import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { boot } from "../lib/boot.ts";
import { findMachine } from "../lib/detached.ts";
import { endMarker } from "../lib/end_marker.ts";
import { emitter } from "../lib/events.ts";
import { ToolsmithError } from "../lib/errors.ts";
import { watchLimits } from "../lib/guest_limits.ts";
import { run, spawn } from "../lib/process.ts";
import { fileChunks, sha256 } from "../lib/digest.ts";
import { findSlot } from "../lib/state_slot.ts";
import { temporaryFolder } from "./_folder.ts";
import { env, guest, needsGuest } from "./_guest.ts";
import { cleanEnvironment, cliCommand, workspace } from "./_workspace.ts";

Deno.test("a guest that never ends its last word fills no memory", () => {
  const end = endMarker("marker");
  end.push(new TextEncoder().encode("marker"));
  for (let turn = 0; turn < 3; turn++) end.push(new Uint8Array(100).fill(55));
  assert(end.word !== undefined && end.word.length <= 100);
});

Deno.test("a cancel while a command starts ends the command", () => {
  const killed: string[] = [];
  const signal = AbortSignal.abort();
  const watch = watchLimits((name) => killed.push(name), { signal });
  watch.clear();
  assertEquals(killed, ["TERM"]);
});

Deno.test("a state file made by others removes no folder of the user", async () => {
  await using folder = await temporaryFolder();
  const victim = join(folder.path, "toolsmith-notes");
  await Deno.mkdir(join(victim, "sub"), { recursive: true });
  await Deno.writeTextFile(join(victim, "precious"), "mine");
  const path = join(folder.path, "machine.json");
  const state = { layout: 1, pid: 4242, folder: victim, shares: [] };
  await Deno.writeTextFile(path, JSON.stringify(state));
  assertEquals(await findMachine(path), undefined);
  assertEquals(await Deno.readTextFile(join(victim, "precious")), "mine");
});

Deno.test("QEMU arguments that name a file of the host are never saved", async () => {
  await using folder = await temporaryFolder();
  const program = join(folder.path, "qemu");
  await Deno.writeTextFile(program, "the program");
  const slot = (...extra: string[]) =>
    findSlot(
      {
        ...{ program, extra, disk: "/a.qcow2", throwAway: true, shares: [] },
        ...{ folder: folder.path, accelerator: "tcg", memory: 512, cpus: 1 },
      },
      { folder: join(folder.path, "machines"), digest: "sha256:0" },
      emitter(undefined),
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
    await using folder = await temporaryFolder();
    const image = join(folder.path, "image.qcow2");
    await Deno.copyFile(await guest(), image);
    const work = join(folder.path, "work");
    await Deno.mkdir(join(work, ".toolsmith", "deep"), { recursive: true });
    await Deno.mkdir(join(work, ".toolsmithy"));
    for (const path of [folder.path, work, join(work, ".toolsmith/deep")]) {
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
    await using folder = await temporaryFolder();
    const states = { folder: join(folder.path, "states"), digest: "sha256:1" };
    await using vm = await boot({
      ...{ image: await guest(), env, states },
      console: {
        output() {},
        input: new Blob(["touch /tmp/typed\n"]).stream(),
      },
    });
    await vm.stop();
    await assertRejects(
      () => Deno.stat(states.folder),
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
    const cwd = work.folder;
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
