import { assert, assertEquals, assertMatch } from "@std/assert";
import { dirname, join } from "@std/path";
import { spawnProcess } from "../../lib/system/process.ts";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import { buildTestGuest, needsGuest } from "../support/guest.ts";
import { temporaryDir } from "../support/directory.ts";
import { foundTools } from "../support/parts.ts";
import { assertAllEnded, findProcesses } from "../support/processes.ts";
import { waitUntil } from "../support/wait_until.ts";
import {
  cleanEnvironment,
  cliCommand,
  type CliOptions,
  jsonLines,
  type Workspace,
  workspace,
} from "../support/workspace.ts";

/** The workspace's path in the guest. */
const GUEST_WORKSPACE = "/mnt/work";

/** Shared by all tests: the first boot saves a snapshot, which the others restore. */
const cache = await temporaryDir();
Deno.test.afterAll(async () => await cache[Symbol.asyncDispose]());

/** A workspace whose manifest names the test guest. */
async function guestWorkspace(rules: Record<string, unknown> = {}) {
  const work = await workspace();
  const qcow2 = await buildTestGuest();
  const digest = await sha256OfChunks(readFileChunks(qcow2));
  const image = { name: "guest", qcow2, qcow2_sha256: digest };
  await Deno.writeTextFile(
    join(work.dir, ".toolsmith/tools.json"),
    JSON.stringify({ image, ...rules }),
  );
  return work;
}

function runWithGuest(
  work: Workspace,
  args: string[],
  options: CliOptions = {},
) {
  const env = { ...guestEnvironment(), ...options.env };
  return work.toolsmith(args, {
    permissions: ["-P=run"],
    ...options,
    env,
  });
}

/** The permission set names QEMU's program, not its path. */
function guestEnvironment(): Record<string, string> {
  const dir = foundTools.qemu!.replace(/\/[^/]*$/, "");
  const PATH = `${dir}:${Deno.env.get("PATH")}`;
  return { PATH, TOOLSMITH_QEMU: "", TOOLSMITH_CACHE: cache.path };
}

/** Starts the program from a shell script as `"$@"`. */
async function startByScript(work: Workspace, script: string, args: string[]) {
  const said = { stdout: "", stderr: "" };
  const command = await cliCommand(args, ["-A"]);
  const child = spawnProcess("bash", {
    args: ["-c", script, "bash", Deno.execPath(), ...command],
    cwd: work.dir,
    env: { ...cleanEnvironment(), ...guestEnvironment() },
    stdout: (chunk) => said.stdout += new TextDecoder().decode(chunk),
    stderr: (chunk) => said.stderr += new TextDecoder().decode(chunk),
  });
  return { child, said };
}

Deno.test({
  name: "run behaves in the guest like a local command",
  ...needsGuest,
  async fn(t) {
    await using work = await guestWorkspace({
      tools: { lister: "/bin/ls" },
      operations: [],
    });
    await Deno.writeTextFile(join(work.dir, "here.txt"), "workspace\n");

    await t.step(
      "run prints the command's output alone and exits with its status",
      async () => {
        const script = "echo out; echo err >&2; exit 3";
        const ran = await runWithGuest(work, [
          // The first run boots: on a busy host a guest may print nothing for minutes.
          ...["run", "--boot-timeout", "2400", "--quiet"],
          ...["--", "sh", "-c", script],
        ]);
        assertEquals([ran.code, ran.signal], [3, null], ran.stderr);
        assertEquals([ran.stdout, ran.stderr], ["out\n", "err\n"]);
      },
    );
    await t.step(
      "run exits with 128 plus the signal's number when a signal ends the command",
      async () => {
        const args = ["run", "--quiet", "--", "sh", "-c", "kill -9 $$"];
        assertEquals((await runWithGuest(work, args)).code, 137);
      },
    );
    await t.step("run passes arguments byte for byte", async () => {
      const odd = [
        "",
        " ",
        "a \"b\" 'c'",
        "$HOME `id` \\",
        "two\nlines",
        "ü--",
      ];
      const print = ["printf", "[%s]", ...odd];
      const ran = await runWithGuest(work, ["run", "--quiet", "--", ...print]);
      assertEquals(ran.stdout, odd.map((arg) => `[${arg}]`).join(""));
    });
    await t.step("run passes stdin to the command, up to its end", async () => {
      const bytes = crypto.getRandomValues(new Uint8Array(50_000));
      const args = ["run", "--quiet", "--", "sha256sum"];
      const ran = await runWithGuest(work, args, { input: { bytes } });
      const digest = await crypto.subtle.digest("SHA-256", bytes);
      assertEquals(ran.stdout.slice(0, 64), new Uint8Array(digest).toHex());
    });
    await t.step(
      "run mounts the workspace read-only as the working directory",
      async () => {
        const list = await runWithGuest(work, [
          "run",
          "--quiet",
          "--",
          "cat",
          "here.txt",
        ]);
        assertEquals(list.stdout, "workspace\n");
        const write = await runWithGuest(work, [
          "run",
          "--quiet",
          "--",
          "touch",
          "new",
        ]);
        assert(write.code !== 0);
        assertMatch(write.stderr, /Read-only/);
      },
    );
    await t.step(
      "run starts the command in the user's current directory",
      async () => {
        const sub = join(work.dir, "sub");
        await Deno.mkdir(join(sub, "deep"), { recursive: true });
        await Deno.writeTextFile(join(sub, "note.txt"), "note\n");
        const from = async (cwd: string, ...args: string[]) => {
          const ran = await runWithGuest(work, ["run", "--quiet", ...args], {
            cwd,
          });
          assertEquals(ran.code, 0, ran.stderr);
          return ran.stdout;
        };
        assertEquals(await from(sub, "cat", "note.txt"), "note\n");
        assertEquals(
          await from(sub, "--cwd", "deep", "pwd"),
          `${GUEST_WORKSPACE}/sub/deep\n`,
        );
        assertEquals(
          await from(sub, "--cwd", ".", "pwd"),
          `${GUEST_WORKSPACE}/sub\n`,
        );
        assertEquals(await from(sub, "--cwd", "/tmp", "pwd"), "/tmp\n");
        const manifest = join(work.dir, ".toolsmith", "tools.json");
        const named = ["--manifest", manifest, "pwd"];
        assertEquals(
          await from(dirname(work.dir), ...named),
          `${GUEST_WORKSPACE}\n`,
        );
      },
    );
    await t.step(
      "run --export keeps files that the command writes",
      async () => {
        // The export's directory and its parent are created.
        const out = join(work.dir, "build", "out");
        const ran = await runWithGuest(work, [
          ...["run", "--export", "build/out:made", "--env", "WHO=me"],
          ...["--cwd", "/mnt/made", "--", "sh", "-c", 'echo "$WHO $PWD" > f'],
        ]);
        assertEquals(ran.code, 0, ran.stderr);
        assertMatch(ran.stderr, new RegExp(`^created ${out}$`, "m"));
        const text = await Deno.readTextFile(join(out, "f"));
        assertEquals(text, "me /mnt/made\n");
      },
    );
    await t.step(
      "run names a wrong TMPDIR and still restores its snapshot afterwards",
      async () => {
        const env = { TMPDIR: join(work.dir, "none") };
        // With --accel, the snapshot is the first to need TMPDIR.
        const args = ["run", "--accel", "tcg", "true"];
        const { code, stderr } = await runWithGuest(work, args, { env });
        assertEquals(code, 2, stderr);
        const where =
          `Cannot create a temporary directory in ${env.TMPDIR}: no such`;
        assert(stderr.includes(where), stderr);
        assertMatch(stderr, /^hint: set TMPDIR to /m);
        await Deno.mkdir(join(work.dir, "tmp"));
        // A relative TMPDIR is not relative to QEMU's working directory.
        const again = await runWithGuest(work, ["run", "true"], {
          env: { TMPDIR: "tmp" },
        });
        assertEquals(again.code, 0, again.stderr);
        assertMatch(again.stderr, /^restored in/m);
      },
    );
    await t.step("run resolves a tool name by the manifest", async () => {
      const ran = await runWithGuest(work, ["run", "--quiet", "--", "lister"]);
      assertMatch(ran.stdout, /^here\.txt$/m);
    });
    await t.step(
      "run --timeout ends the command and exits with 124",
      async () => {
        const late = ["run", "--timeout", "1", "--", "sleep", "60"];
        const ran = await runWithGuest(work, late);
        assertEquals(ran.code, 124);
        assertMatch(ran.stderr, /did not end within 1 s/);
      },
    );
    await t.step("run exits with 127 for a missing command", async () => {
      const ran = await runWithGuest(work, [
        "run",
        "--json",
        "--",
        "no-such-tool",
      ]);
      const { last } = jsonLines(ran.stdout);
      assertEquals([ran.code, last.code], [127, "command_not_found"]);
    });
    await t.step(
      "run --json prints output in base64 and the result last",
      async () => {
        const ran = await runWithGuest(work, [
          "run",
          "--json",
          "--",
          "echo",
          "hi",
        ]);
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
    await t.step("run prints output before the command ends", async () => {
      const seen = Promise.withResolvers<void>();
      const args = ["run", "--quiet", "--", "sh", "-c", "echo now; exec cat"];
      const child = spawnProcess(Deno.execPath(), {
        args: await cliCommand(args, ["-P=run"]),
        cwd: work.dir,
        env: { ...cleanEnvironment(), ...guestEnvironment() },
        // The command reads stdin until this test has seen its output.
        input: "held",
        stdout: () => seen.resolve(),
      });
      await seen.promise;
      Deno.kill(child.pid, "SIGINT");
      assertEquals((await child.ended).code, 130);
    });
    await t.step(
      "run leaves the image unchanged after three runs",
      async () => {
        const hydrated = await runWithGuest(work, ["hydrate", "--quiet"]);
        const image = hydrated.stdout.trim();
        const digest = await sha256OfChunks(readFileChunks(image));
        assert(image.includes(digest), image);
        for (let n = 0; n < 3; n++) {
          const write = "echo $0 | dd of=/dev/vda bs=512 seek=40 conv=fsync";
          const args = ["run", "--quiet", "--", "sh", "-c", write, `${n}`];
          const ran = await runWithGuest(work, args);
          assertEquals(ran.code, 0, ran.stderr);
        }
        assertEquals(await sha256OfChunks(readFileChunks(image)), digest);
      },
    );
    await t.step("run leaves no VM behind after SIGKILL", async () => {
      const seen = Promise.withResolvers<void>();
      const args = ["run", "--quiet", "--", "sh", "-c", "echo now; sleep 99"];
      const child = spawnProcess(Deno.execPath(), {
        args: await cliCommand(args, ["-P=run"]),
        cwd: work.dir,
        env: { ...cleanEnvironment(), ...guestEnvironment() },
        stdout: () => seen.resolve(),
      });
      await seen.promise;
      assert((await findProcesses(work.dir)).length > 1);
      Deno.kill(child.pid, "SIGKILL");
      await child.ended;
      await assertAllEnded(work.dir);
    });
  },
});

Deno.test({
  name:
    "run rejects tools outside the manifest's operations, in a VM and on the host",
  ...needsGuest,
  async fn() {
    await using work = await guestWorkspace({
      tools: { name: "/bin/hostname" },
      operations: ["name"],
    });
    const refused = await runWithGuest(work, ["run", "--", "sh", "-c", "true"]);
    assertEquals([refused.code, refused.stdout], [76, ""]);
    assertMatch(refused.stderr, /run a tool that "operations" allows: name/);

    // Without a VM, run fails instead of falling back to the host.
    const broken = { TOOLSMITH_QEMU: "/no/qemu" };
    const lost = await runWithGuest(work, ["run", "--no-save", "--", "name"], {
      env: broken,
      permissions: ["-A"],
    });
    assertEquals([lost.code, lost.stdout], [70, ""]);
    assertMatch(lost.stderr, /QEMU not found: \/no\/qemu/);

    const odd = await runWithGuest(work, ["run", "--", "name"], {
      env: { TOOLSMITH_EXECUTION: "cloud" },
    });
    assertEquals(odd.code, 2);
    for (
      const [flags, env] of [
        [["--execution", "host"], { TOOLSMITH_EXECUTION: "vm" }],
        [[], { TOOLSMITH_EXECUTION: "host" }],
      ] as [string[], Record<string, string>][]
    ) {
      const asked = await runWithGuest(work, ["run", ...flags, "--", "sh"], {
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
    const host = await runWithGuest(
      work,
      ["run", "--execution", "host", "--", "sh", "-c", "echo $TOOLSMITH_HERE"],
      { env: { ...broken, TOOLSMITH_HERE: "host" }, permissions: ["-A"] },
    );
    assertEquals([host.code, host.stdout], [0, "host\n"]);
  },
});

Deno.test({
  name: "boot --detach leaves a VM that run uses and stop ends",
  ...needsGuest,
  async fn() {
    await using work = await guestWorkspace();
    const booted = await runWithGuest(work, ["boot", "--detach"]);
    assertEquals(booted.code, 0, booted.stderr);
    const file = join(work.dir, ".toolsmith/machine.json");
    assertEquals(booted.stdout, `${file}\n`);
    try {
      const write = ["run", "--quiet", "--", "sh", "-c", "echo kept > /tmp/f"];
      assertEquals((await runWithGuest(work, write)).code, 0);
      const read = await runWithGuest(work, [
        "run",
        "--quiet",
        "--",
        "cat",
        "/tmp/f",
      ]);
      assertEquals(read.stdout, "kept\n");
      const sub = join(work.dir, "sub");
      await Deno.mkdir(sub);
      const there = await runWithGuest(work, ["run", "--quiet", "pwd"], {
        cwd: sub,
      });
      assertEquals(there.stdout, `${GUEST_WORKSPACE}/sub\n`);

      const second = await runWithGuest(work, ["boot", "--detach"]);
      assertEquals(second.code, 2);
      assertMatch(second.stderr, /A detached VM is already running/);
    } finally {
      assertEquals((await runWithGuest(work, ["stop"])).code, 0);
    }
    await assertAllEnded(work.dir);
    assertEquals((await runWithGuest(work, ["stop"])).code, 75);

    // stop recognizes the record of a dead VM.
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
    assertEquals((await runWithGuest(work, ["stop"])).code, 75);
  },
});

Deno.test({
  name:
    "boot and run handle SIGTERM, a closed pipe, unreadable input and a blocked output",
  ...needsGuest,
  async fn(t) {
    await using work = await guestWorkspace();
    await t.step("boot powers the guest down at SIGTERM", async () => {
      const { child, said } = await startByScript(work, 'exec "$@"', [
        "boot",
        "--json",
      ]);
      await waitUntil("boot_ready", () => /boot_ready/.test(said.stdout));
      Deno.kill(child.pid, "SIGTERM");
      assertEquals((await child.ended).code, 0);
      assertMatch(said.stdout, /"powered_down"/);
      assertMatch(said.stderr, /Power down/);
      await assertAllEnded(work.dir);
    });
    await t.step("run --json ends when its output pipe is closed", async () => {
      const args = ["run", "--json", "--", "yes"];
      const { child, said } = await startByScript(
        work,
        '"$@" | head -n 1',
        args,
      );
      await child.ended;
      assertMatch(said.stdout, /^{"type":"cache_hit"/);
    });
    await t.step("run reports stdin that cannot be read", async () => {
      const args = ["run", "--quiet", "--", "cat"];
      const { child, said } = await startByScript(work, 'exec "$@" </', args);
      assertEquals((await child.ended).code, 14, said.stderr);
      assertMatch(said.stderr, /Cannot read the command's standard input/);
    });
    await t.step("boot starts while nobody reads its output", async () => {
      const script =
        'mkfifo pipe; exec 9<>pipe; head -c 65536 /dev/zero >&9; exec "$@" >pipe';
      const { child, said } = await startByScript(work, script, ["boot"]);
      await waitUntil(
        () => said.stderr,
        () => /(booted|restored) in/.test(said.stderr),
      );
      Deno.kill(child.pid, "SIGTERM");
      assertEquals((await child.ended).code, 143);
    });
    await t.step(
      "run exits silently with 141 when its reader closes the pipe",
      async () => {
        const script = '{ "$@"; echo "status $?" >&2; } | head -n1';
        const { child, said } = await startByScript(work, script, [
          "run",
          "--quiet",
          "yes",
        ]);
        await child.ended;
        assertEquals(said.stderr, "status 141\n");
      },
    );
    for (
      const [what, script, args, status, words] of [
        ["full", 'exec "$@" >/dev/full', ["yes"], 50, ".*"],
        // Deno can detect that only on Linux.
        ...Deno.build.os === "linux"
          ? [[
            "closed",
            '"$@" >&-; exit $?',
            ["echo", "hi"],
            14,
            "it is closed .*",
          ]]
          : [],
      ] as [string, string, string[], number, string][]
    ) {
      await t.step(
        `run reports a standard output that is ${what}`,
        async () => {
          const command = ["run", "--quiet", ...args];
          const { child, said } = await startByScript(work, script, command);
          assertEquals((await child.ended).code, status, said.stderr);
          const error =
            `^error: Cannot write to standard output: ${words}\nhint: `;
          assertMatch(said.stderr, new RegExp(error));
        },
      );
    }
    await assertAllEnded(work.dir);
  },
});
