/**
 * User scenarios in a Debian guest with systemd.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { dirname, join } from "@std/path";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import { runProcess } from "../../lib/system/process.ts";
import { buildDebianGuest, needsDebian } from "../support/guest.ts";
import { foundTools, requires } from "../support/parts.ts";
import { assertAllEnded } from "../support/processes.ts";
import { openTerminal } from "../support/tmux.ts";
import {
  cleanEnvironment,
  type CliOptions,
  commandLine,
  jsonLines,
  workspace,
} from "../support/workspace.ts";

/** Bytes to pass through standard input and output. */
const STREAM_BYTES = 2 ** 20;

Deno.test({
  name:
    "run boots a Debian guest with systemd once, then restores its snapshot",
  ...needsDebian,
  async fn(t) {
    await using work = await workspace();
    const qcow2 = await buildDebianGuest();
    await work.manifest({ qcow2, qcow2_sha256: await digestOf(qcow2) });
    const env = {
      PATH: `${dirname(foundTools.qemu!)}:${Deno.env.get("PATH")}`,
      TOOLSMITH_QEMU: "",
    };
    const toolsmith = (args: string[], options: CliOptions = {}) =>
      // On a busy host a guest may print nothing for minutes.
      work.toolsmith(["run", "--boot-timeout", "2400", ...args], {
        permissions: ["-P=run"],
        timeoutMs: 3_600_000,
        ...options,
        env,
      });
    /** Runs a script that must succeed, and returns what it printed. */
    const sh = async (script: string, ...flags: string[]) => {
      const args = ["--quiet", ...flags, "--", "bash", "-c", script];
      const { code, stdout, stderr } = await toolsmith(args);
      assertEquals([code, stderr], [0, ""], script);
      return stdout;
    };

    await t.step(
      "run boots the guest first, then restores the snapshot",
      async () => {
        for (const how of ["booted", "restored"]) {
          const ran = await toolsmith(["--json", "--", "sh", "-c", "exit 7"]);
          const { events, last } = jsonLines(ran.stdout);
          const ready = events.find(({ type }) => type === "boot_ready");
          assertEquals([ran.code, last.code, ready?.how], [7, 7, how]);
        }
      },
    );
    await t.step(
      "run: systemd is process 1 and reports no failed units",
      async () => {
        assertEquals(await sh("cat /proc/1/comm"), "systemd\n");
        const failed = "systemctl list-units --failed --plain --no-legend";
        assertEquals(await sh(failed), "");
      },
    );
    await t.step("run passes stdin and stdout bytes unchanged", async () => {
      const bytes = new Uint8Array(STREAM_BYTES);
      for (let at = 0; at < STREAM_BYTES; at += 2 ** 16) {
        crypto.getRandomValues(bytes.subarray(at, at + 2 ** 16));
      }
      const script = "base64 -w 0; echo end of input >&2";
      const ran = await toolsmith(["--quiet", "--", "sh", "-c", script], {
        input: { bytes },
      });
      assertEquals([ran.code, ran.stderr], [0, "end of input\n"]);
      assert(
        ran.stdout === bytes.toBase64(),
        `${ran.stdout.length} characters`,
      );
    });
    await t.step("run: python3 and git work in the workspace", async () => {
      for (
        const args of [
          ["init", "-q", "-b", "main"],
          ["add", "hello.py"],
          [
            ...["-c", "user.name=a", "-c", "user.email=a@example.org"],
            ...["commit", "-q", "-m", "Say hello"],
          ],
        ]
      ) {
        await Deno.writeTextFile(
          join(work.dir, "hello.py"),
          "import json, sys\nprint(json.dumps(sys.argv[1:]))\n",
        );
        const made = await runProcess("git", { args, cwd: work.dir });
        assertEquals(made.code, 0, made.stderr);
      }
      const said = await sh('python3 hello.py "a b" ü');
      assertEquals(JSON.parse(said), ["a b", "ü"]);
      // Owned by another user than the guest's, as most workspaces are.
      const owner = ["-R", "54321", ".git"];
      await runProcess("chown", { args: owner, cwd: work.dir });
      assertEquals(await sh("git log --format=%s"), "Say hello\n");
      assertMatch(
        await sh("touch new 2>&1 || true"),
        /Read-only file system/,
      );
    });
    await t.step("run --export writes to the host directory", async () => {
      const out = join(work.dir, "out");
      await Deno.mkdir(out);
      await sh("tar -cf /mnt/made/all.tar hello.py", "--export", `${out}:made`);
      const listed = await runProcess("tar", {
        args: ["-tf", join(out, "all.tar")],
      });
      assertEquals(listed.stdout, "hello.py\n");
    });
    await t.step(
      "run: a hot-plugged network card gets an address",
      async () => {
        const address = "ip -4 -o addr show scope global";
        assertMatch(await sh(address, "--network"), / inet 198\.18\.0\.2\//);
      },
    );
    await t.step({
      name: "shell runs bash on a terminal with the window's size",
      ignore: requires("tmux").ignore,
      async fn() {
        await using terminal = await openTerminal({
          cwd: work.dir,
          env: { ...cleanEnvironment(), ...env },
        });
        await terminal.type(`${await commandLine(["shell"])}; echo "is $?"`);
        await terminal.shows(/root@\w+:\/mnt\/work# *$/m);
        await terminal.type("stty size; tty; exit 3");
        await terminal.shows(/^30 90\n\/dev\/ttyS1\n(.*\n)*is 3$/m);
      },
    });
    await t.step(
      "run: restored VMs do not see each other's files",
      async () => {
        const script =
          "ls -A /root/mark 2>/dev/null; echo mine >/root/mark; sync";
        const clones = [sh(script), sh(script), sh(script)];
        assertEquals(await Promise.all(clones), ["", "", ""]);
      },
    );
    await assertAllEnded(work.dir);
  },
});

const digestOf = (path: string) => sha256OfChunks(readFileChunks(path));
