/**
 * Ctrl-C, TERM, HUP, and output that nobody reads.
 *
 * @module
 */
import { assertEquals, assertMatch } from "@std/assert";
import { dirname, join } from "@std/path";
import { lockPath } from "../../lib/cache/_staging.ts";
import { lock } from "../../lib/system/lock.ts";
import { spawn } from "../../lib/system/process.ts";
import { settlesWithin, sleep } from "../../lib/system/time.ts";
import { needs } from "../support/parts.ts";
import {
  cleanEnvironment,
  cliCommand,
  makeQcow2,
  type Workspace,
  workspace,
} from "../support/workspace.ts";

const SHA256 = "0".repeat(64);
const unix = { ignore: Deno.build.os === "windows" };
const linux = { ignore: Deno.build.os !== "linux" };

/** A workspace whose image is never needed. */
async function imageless(): Promise<Workspace> {
  const work = await workspace();
  const qcow2 = "oci://127.0.0.1:9/owner/none:1";
  await work.manifest({ qcow2, qcow2_sha256: SHA256 });
  return work;
}

/** Starts the program by way of a script, which ends in `exec "$@"`. */
async function start(
  work: Workspace,
  script: string,
  args: string[],
  permissions = "-A",
) {
  let stderr = "";
  const command = await cliCommand(args, [permissions]);
  const child = spawn("sh", {
    args: ["-c", script, "sh", Deno.execPath(), ...command],
    cwd: work.dir,
    env: cleanEnvironment(),
    stderr: (chunk) => stderr += new TextDecoder().decode(chunk),
  });
  return {
    child,
    stderr: () => stderr,
    /** Waits until standard error says something. */
    async says(pattern: RegExp) {
      for (let tries = 0; !pattern.test(stderr); tries++) {
        if (tries > 500) throw new Error(`it never said so: ${stderr}`);
        await sleep(20);
      }
    },
    /** The exit status, which has to come soon. */
    async ends(withinMs = 5000) {
      if (await settlesWithin(child.ended, withinMs)) return await child.ended;
      Deno.kill(child.pid, "SIGKILL");
      throw new Error(`it did not end within ${withinMs} ms: ${stderr}`);
    },
  };
}

/** Runs a shell on the host that reports when it is there, and waits. */
const WAITING = ["run", "--execution", "host", "sh", "-c"].concat(
  "echo there >&2; sleep 1",
);

Deno.test({
  name: "a signal that nohup has set to be ignored does not end run",
  ...linux,
  async fn() {
    await using work = await imageless();
    for (const name of ["HUP", "INT", "TERM"] as const) {
      for (const permissions of ["-A", "-P=run"]) {
        const { child, says, ends } = await start(
          work,
          `trap '' ${name}; exec "$@"`,
          WAITING,
          permissions,
        );
        await using _child = child;
        await says(/there/);
        Deno.kill(child.pid, `SIG${name}`);
        assertEquals(await ends(), { code: 0, signal: null });
      }
    }
  },
});

Deno.test({
  name: "a signal ends run with 128 and its number",
  ...linux,
  async fn() {
    await using work = await imageless();
    const statuses = { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 } as const;
    for (const [name, code] of Object.entries(statuses)) {
      const { child, says, ends, stderr } = await start(
        work,
        'exec "$@"',
        WAITING,
      );
      await using _child = child;
      await says(/there/);
      Deno.kill(child.pid, name as Deno.Signal);
      assertEquals((await ends()).code, code);
      assertMatch(stderr(), new RegExp(`Cancelled by ${name} \\[cancelled\\]`));
    }
  },
});

Deno.test({
  name: "who waits for the lock of an image, or of a VM, ends at TERM",
  ...unix,
  async fn() {
    await using work = await imageless();
    const cache = join(work.dir, ".toolsmith", "cache");
    const image = lockPath({ cache, image: "demo", sha256: SHA256 });
    const vm = join(work.dir, ".toolsmith", "machine.json");
    await Deno.writeTextFile(vm, "{}", { mode: 0o600 });
    await Deno.mkdir(dirname(image), { recursive: true });
    using _image = await lock(image);
    using _vm = await lock(`${vm}.lock`);
    for (const args of [["hydrate"], ["stop"], ["run", "true"]]) {
      const { child, ends, stderr } = await start(work, 'exec "$@"', args);
      await using _child = child;
      // It has to have got as far as to the lock.
      await sleep(1500);
      assertEquals(await settlesWithin(child.ended, 0), false, stderr());
      Deno.kill(child.pid, "SIGTERM");
      assertEquals((await ends()).code, 143, args.join(" "));
    }
  },
});

/** Standard output is a pipe that is full, and that nobody reads. */
const UNREAD =
  'mkfifo pipe; exec 9<>pipe; head -c 65536 /dev/zero >&9; exec "$@" >pipe';

Deno.test({
  name:
    "a pipe that nobody reads does not keep signals from ending the program",
  ...linux,
  async fn() {
    const runs = [
      ["run", "--execution", "host", "--json", "sh", "-c", "echo; sleep 60"],
      ["run", "--execution", "host", "--json", "yes"],
      ["cache", "path"],
      ["hydrate", "--help"],
    ];
    for (const args of runs) {
      await using work = await imageless();
      const { child, ends } = await start(work, UNREAD, args);
      await using _child = child;
      await sleep(1500);
      assertEquals(await settlesWithin(child.ended, 0), false, "it is blocked");
      Deno.kill(child.pid, "SIGTERM");
      const { code } = await ends();
      assertEquals(code, 143, args.join(" "));
    }
  },
});

Deno.test({
  name: "a command on the host whose JSON nobody reads ends with 141, silently",
  ...unix,
  async fn() {
    await using work = await imageless();
    const args = ["run", "--execution", "host", "--json", "yes"];
    const { child, ends, stderr } = await start(
      work,
      '{ "$@"; echo "status $?" >&2; } | head -c 20 >/dev/null',
      args,
    );
    await using _child = child;
    await ends(20_000);
    assertEquals(stderr(), "status 141\n");
  },
});

Deno.test({
  name: "the terminal is as it was after a second Ctrl-C in boot",
  ignore: linux.ignore || needs("qemuImg").ignore,
  async fn() {
    await using work = await imageless();
    const at = (name: string) => join(work.dir, name);
    const { sha256 } = await makeQcow2(at("none.qcow2"), 65536);
    await work.manifest({ qcow2: "../none.qcow2", qcow2_sha256: sha256 });
    // It is never ready, and takes its time to end.
    const qemu = `#!/bin/sh\ntrap '' TERM INT\necho > ${
      at("booting")
    }\nsleep 8\n`;
    await Deno.writeTextFile(at("qemu"), qemu, { mode: 0o755 });
    const script = `stty -a >${at("before")}; sh -c 'echo $$ >${
      at("pid")
    }; exec "$@"' sh "$@"; stty -a >${at("after")}`;
    await Deno.writeTextFile(at("inner"), script);
    const command = await cliCommand(["boot", "--no-save", "--fresh"], ["-A"]);
    const line = ["sh", at("inner"), Deno.execPath(), ...command];
    await using child = spawn("script", {
      args: ["-qec", line.map((word) => `'${word}'`).join(" "), "/dev/null"],
      cwd: work.dir,
      env: { ...cleanEnvironment(), TOOLSMITH_QEMU: at("qemu") },
      input: "held",
    });
    const read = async (name: string) => {
      for (let tries = 0; tries < 500; tries++) {
        const text = await Deno.readTextFile(at(name)).catch(() => "");
        if (text !== "") return text;
        await sleep(20);
      }
      throw new Error(`${name} was never written`);
    };
    await read("booting");
    const pid = Number(await read("pid"));
    Deno.kill(pid, "SIGINT");
    await sleep(300);
    Deno.kill(pid, "SIGINT");
    assertEquals(await read("after"), await read("before"));
    await child.stop();
  },
});
