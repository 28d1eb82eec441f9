import { assert, assertEquals, assertMatch } from "@std/assert";
import { dirname, join } from "@std/path";
import { run, spawn } from "../../lib/system/process.ts";
import { fileChunks, sha256 } from "../../lib/system/digest.ts";
import { guest, needsGuest } from "../support/guest.ts";
import { parts } from "../support/parts.ts";
import { processesOf } from "../support/processes.ts";
import {
  cleanEnvironment,
  cliCommand,
  type CliOptions,
  jsonLines,
  type Workspace,
  workspace,
} from "../support/workspace.ts";

/** The workspace, in a guest. */
const IN = "/mnt/work";

/** A workspace whose manifest names the test guest. */
async function guestWorkspace(rules: Record<string, unknown> = {}) {
  const work = await workspace();
  const qcow2 = await guest();
  const digest = await sha256(fileChunks(qcow2));
  const image = { name: "guest", qcow2, qcow2_sha256: digest };
  await Deno.writeTextFile(
    join(work.dir, ".toolsmith/tools.json"),
    JSON.stringify({ image, ...rules }),
  );
  return work;
}

function vm(work: Workspace, args: string[], options: CliOptions = {}) {
  const env = { ...qemuOnPath(), ...options.env };
  return work.toolsmith(args, {
    permissions: ["-P=run"],
    ...options,
    env,
  });
}

/** The permission set names the program, not its path. */
function qemuOnPath(): Record<string, string> {
  const dir = parts.qemu!.replace(/\/[^/]*$/, "");
  return { PATH: `${dir}:${Deno.env.get("PATH")}`, TOOLSMITH_QEMU: "" };
}

Deno.test({
  name: "run runs a command in the guest as if it were here",
  ...needsGuest,
  async fn(t) {
    await using work = await guestWorkspace({
      tools: { lister: "/bin/ls" },
      operations: [],
    });
    await Deno.writeTextFile(join(work.dir, "here.txt"), "workspace\n");

    await t.step("its output, its exit status, and no more", async () => {
      const script = "echo out; echo err >&2; exit 3";
      const ran = await vm(work, ["run", "--quiet", "--", "sh", "-c", script]);
      assertEquals([ran.code, ran.signal], [3, null]);
      assertEquals([ran.stdout, ran.stderr], ["out\n", "err\n"]);
    });
    await t.step("death by a signal is 128 plus its number", async () => {
      const args = ["run", "--quiet", "--", "sh", "-c", "kill -9 $$"];
      assertEquals((await vm(work, args)).code, 137);
    });
    await t.step("arguments arrive byte for byte", async () => {
      const odd = [
        "",
        " ",
        "a \"b\" 'c'",
        "$HOME `id` \\",
        "two\nlines",
        "ü--",
      ];
      const print = ["printf", "[%s]", ...odd];
      const ran = await vm(work, ["run", "--quiet", "--", ...print]);
      assertEquals(ran.stdout, odd.map((arg) => `[${arg}]`).join(""));
    });
    await t.step("stdin reaches it, bytes and end", async () => {
      const bytes = crypto.getRandomValues(new Uint8Array(50_000));
      const args = ["run", "--quiet", "--", "sha256sum"];
      const ran = await vm(work, args, { input: { bytes } });
      const digest = await crypto.subtle.digest("SHA-256", bytes);
      assertEquals(ran.stdout.slice(0, 64), new Uint8Array(digest).toHex());
    });
    await t.step("the workspace is its directory, read-only", async () => {
      const list = await vm(work, ["run", "--quiet", "--", "cat", "here.txt"]);
      assertEquals(list.stdout, "workspace\n");
      const write = await vm(work, ["run", "--quiet", "--", "touch", "new"]);
      assert(write.code !== 0);
      assertMatch(write.stderr, /Read-only/);
    });
    await t.step("it starts in the directory that the user is in", async () => {
      const sub = join(work.dir, "sub");
      await Deno.mkdir(join(sub, "deep"), { recursive: true });
      await Deno.writeTextFile(join(sub, "note.txt"), "note\n");
      const from = async (cwd: string, ...args: string[]) => {
        const ran = await vm(work, ["run", "--quiet", ...args], { cwd });
        assertEquals(ran.code, 0, ran.stderr);
        return ran.stdout;
      };
      assertEquals(await from(sub, "cat", "note.txt"), "note\n");
      assertEquals(await from(sub, "--cwd", "deep", "pwd"), `${IN}/sub/deep\n`);
      assertEquals(await from(sub, "--cwd", ".", "pwd"), `${IN}/sub\n`);
      assertEquals(await from(sub, "--cwd", "/tmp", "pwd"), "/tmp\n");
      const manifest = join(work.dir, ".toolsmith", "tools.json");
      const named = ["--manifest", manifest, "pwd"];
      assertEquals(await from(dirname(work.dir), ...named), `${IN}\n`);
    });
    await t.step("an export takes what it writes", async () => {
      // It is made, with the directory around it.
      const out = join(work.dir, "build", "out");
      const ran = await vm(work, [
        ...["run", "--export", "build/out:made", "--env", "WHO=me"],
        ...["--cwd", "/mnt/made", "--", "sh", "-c", 'echo "$WHO $PWD" > f'],
      ]);
      assertEquals(ran.code, 0, ran.stderr);
      assertMatch(ran.stderr, new RegExp(`^created ${out}$`, "m"));
      const text = await Deno.readTextFile(join(out, "f"));
      assertEquals(text, "me /mnt/made\n");
    });
    await t.step("a wrong TMPDIR is named, and costs no snapshot", async () => {
      const env = { TMPDIR: join(work.dir, "none") };
      const { code, stderr } = await vm(work, ["run", "true"], { env });
      assertEquals(code, 2, stderr);
      const where =
        `Cannot make a temporary directory in ${env.TMPDIR}: no such`;
      assert(stderr.includes(where), stderr);
      assertMatch(stderr, /^hint: set TMPDIR to /m);
      await Deno.mkdir(join(work.dir, "tmp"));
      // A relative one is not that of QEMU's own directory.
      const again = await vm(work, ["run", "true"], { env: { TMPDIR: "tmp" } });
      assertEquals(again.code, 0, again.stderr);
      assertMatch(again.stderr, /^restored in/m);
    });
    await t.step("a tool of the manifest is run by its name", async () => {
      const ran = await vm(work, ["run", "--quiet", "--", "lister"]);
      assertMatch(ran.stdout, /^here\.txt$/m);
    });
    await t.step("the time limit ends it with 124", async () => {
      const late = ["run", "--timeout", "1", "--", "sleep", "60"];
      const ran = await vm(work, late);
      assertEquals(ran.code, 124);
      assertMatch(ran.stderr, /did not end within 1 s/);
    });
    await t.step("a command that is not there is 127", async () => {
      const ran = await vm(work, ["run", "--json", "--", "no-such-tool"]);
      const { last } = jsonLines(ran.stdout);
      assertEquals([ran.code, last.code], [127, "command_not_found"]);
    });
    await t.step(
      "--json has its output in base64, the result last",
      async () => {
        const ran = await vm(work, ["run", "--json", "--", "echo", "hi"]);
        const { events, last } = jsonLines(ran.stdout);
        const output = events.filter(({ type }) => type === "output");
        assertEquals(
          output.map(({ stream, base64 }) => [stream, atob(base64)]),
          [["stdout", "hi\n"]],
        );
        const ready = events.find(({ type }) => type === "boot_ready");
        assertEquals(ready.how, "restored");
        assertEquals(events.at(-1).type, "shutdown");
        assertEquals([last.type, last.code, last.signal], ["result", 0, null]);
      },
    );
    await t.step("output is seen before the command ends", async () => {
      const seen = Promise.withResolvers<void>();
      const args = ["run", "--quiet", "--", "sh", "-c", "echo now; exec cat"];
      const child = spawn(Deno.execPath(), {
        args: await cliCommand(args, ["-P=run"]),
        cwd: work.dir,
        env: { ...cleanEnvironment(), ...qemuOnPath() },
        // It reads until this ends, which is after its output was seen.
        input: "held",
        stdout: () => seen.resolve(),
      });
      await seen.promise;
      Deno.kill(child.pid, "SIGINT");
      assertEquals((await child.ended).code, 130);
    });
    await t.step("the image is as it was after ten runs", async () => {
      const hydrated = await vm(work, ["hydrate", "--quiet"]);
      const image = hydrated.stdout.trim();
      const digest = await sha256(fileChunks(image));
      assert(image.includes(digest), image);
      for (let n = 0; n < 10; n++) {
        const write = "echo $0 | dd of=/dev/vda bs=512 seek=40 conv=fsync";
        const args = ["run", "--quiet", "--", "sh", "-c", write, `${n}`];
        const ran = await vm(work, args);
        assertEquals(ran.code, 0, ran.stderr);
      }
      assertEquals(await sha256(fileChunks(image)), digest);
    });
    await t.step("a killed run leaves no machine behind", async () => {
      const seen = Promise.withResolvers<void>();
      const args = ["run", "--quiet", "--", "sh", "-c", "echo now; sleep 99"];
      const child = spawn(Deno.execPath(), {
        args: await cliCommand(args, ["-P=run"]),
        cwd: work.dir,
        env: { ...cleanEnvironment(), ...qemuOnPath() },
        stdout: () => seen.resolve(),
      });
      await seen.promise;
      assert((await processesOf(work.dir)).length > 1);
      Deno.kill(child.pid, "SIGKILL");
      await child.ended;
      while ((await processesOf(work.dir)).length > 0) {
        await new Promise((done) => setTimeout(done, 50));
      }
    });
  },
});

Deno.test({
  name: "run allows the manifest's operations alone, and no other place",
  ...needsGuest,
  async fn() {
    await using work = await guestWorkspace({
      tools: { name: "/bin/hostname" },
      operations: ["name"],
    });
    const refused = await vm(work, ["run", "--", "sh", "-c", "true"]);
    assertEquals([refused.code, refused.stdout], [76, ""]);
    assertMatch(refused.stderr, /allowed by "operations": name/);

    // No machine, no run: nothing falls back to the host by itself.
    const broken = { TOOLSMITH_QEMU: "/no/qemu" };
    const lost = await vm(work, ["run", "--no-save", "--", "name"], {
      env: broken,
      permissions: ["-A"],
    });
    assertEquals([lost.code, lost.stdout], [70, ""]);
    assertMatch(lost.stderr, /QEMU not found: \/no\/qemu/);

    const odd = await vm(work, ["run", "--", "name"], {
      env: { TOOLSMITH_EXECUTION: "cloud" },
    });
    assertEquals(odd.code, 2);
    for (
      const [flags, env] of [
        [["--execution", "host"], { TOOLSMITH_EXECUTION: "vm" }],
        [[], { TOOLSMITH_EXECUTION: "host" }],
      ] as [string[], Record<string, string>][]
    ) {
      const asked = await vm(work, ["run", ...flags, "--", "sh"], {
        env: { ...broken, ...env },
        permissions: ["-A"],
      });
      assertEquals(asked.code, 76, asked.stderr);
    }
    await Deno.writeTextFile(
      join(work.dir, ".toolsmith/tools.json"),
      (await Deno.readTextFile(join(work.dir, ".toolsmith/tools.json")))
        .replace('"operations":["name"]', '"operations":[]'),
    );
    const host = await vm(
      work,
      ["run", "--execution", "host", "--", "sh", "-c", "echo $TOOLSMITH_HERE"],
      { env: { ...broken, TOOLSMITH_HERE: "host" }, permissions: ["-A"] },
    );
    assertEquals([host.code, host.stdout], [0, "host\n"]);
  },
});

Deno.test({
  name: "boot --detach leaves a machine that run uses and stop ends",
  ...needsGuest,
  async fn() {
    await using work = await guestWorkspace();
    const booted = await vm(work, ["boot", "--detach", "--no-save"]);
    assertEquals(booted.code, 0, booted.stderr);
    const file = join(work.dir, ".toolsmith/machine.json");
    assertEquals(booted.stdout, `${file}\n`);
    try {
      const write = ["run", "--quiet", "--", "sh", "-c", "echo kept > /tmp/f"];
      assertEquals((await vm(work, write)).code, 0);
      const read = await vm(work, ["run", "--quiet", "--", "cat", "/tmp/f"]);
      assertEquals(read.stdout, "kept\n");
      const sub = join(work.dir, "sub");
      await Deno.mkdir(sub);
      const there = await vm(work, ["run", "--quiet", "pwd"], { cwd: sub });
      assertEquals(there.stdout, `${IN}/sub\n`);

      const second = await vm(work, ["boot", "--detach", "--no-save"]);
      assertEquals(second.code, 2);
      assertMatch(second.stderr, /A machine is running/);
    } finally {
      assertEquals((await vm(work, ["stop"])).code, 0);
    }
    assertEquals(await processesOf(work.dir), []);
    assertEquals((await vm(work, ["stop"])).code, 75);

    // What a dead machine left is recognised.
    await Deno.writeTextFile(
      file,
      JSON.stringify({
        layout: 1,
        pid: 1,
        dir: "/tmp/toolsmith-gone",
        image: "x",
        shares: [],
        graceMs: 0,
      }),
    );
    assertEquals((await vm(work, ["stop"])).code, 75);
  },
});

Deno.test({
  name: "boot shows the console, and Ctrl-C powers the guest down",
  ...needsGuest,
  async fn() {
    await using work = await guestWorkspace();
    let console = "";
    const child = spawn(Deno.execPath(), {
      args: await cliCommand(["boot", "--no-save", "--fresh"], ["-P=run"]),
      cwd: work.dir,
      env: { ...cleanEnvironment(), ...qemuOnPath() },
      stdout: (chunk) => console += new TextDecoder().decode(chunk),
      stderr: (chunk) => {
        if (/booted in/.test(new TextDecoder().decode(chunk))) {
          Deno.kill(child.pid, "SIGTERM");
        }
      },
    });
    const { code } = await child.ended;
    assertMatch(console, /SeaBIOS/);
    assertEquals(code, 0);
    assertEquals(await processesOf(work.dir), []);
  },
});

Deno.test({
  name: "TERM powers a guest down; input and output that break end a command",
  ...needsGuest,
  async fn(t) {
    await using work = await guestWorkspace();
    const cwd = work.dir;
    const environment = { ...cleanEnvironment(), ...qemuOnPath() };
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
