/** Tests SIGINT, SIGTERM, SIGHUP, and blocked output pipes. */
import { assertEquals, assertMatch } from "@std/assert";
import { dirname, join } from "@std/path";
import { entryLockPath } from "../../lib/cache/_image_staging.ts";
import { acquireFileLock } from "../../lib/system/lock.ts";
import { runProcess, spawnProcess } from "../../lib/system/process.ts";
import { sleep } from "../../lib/system/time.ts";
import { temporaryDir } from "../support/directory.ts";
import { requires } from "../support/parts.ts";
import {
  killUnlessEnded,
  untilOpened,
  untilOutputBlocks,
} from "../support/processes.ts";
import { scriptCommand } from "../support/script.ts";
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

/** A workspace whose image does not exist. */
async function workspaceWithoutImage(): Promise<Workspace> {
  const work = await workspace();
  const qcow2 = "oci://127.0.0.1:9/owner/none:1";
  await work.manifest({ qcow2, qcow2_sha256: SHA256 });
  return work;
}

/** Starts the program from a shell script that ends in `exec "$@"`. */
async function startByScript(
  work: Workspace,
  script: string,
  args: string[],
  command = cliCommand(args, ["-A"]),
) {
  let stderr = "";
  const child = spawnProcess("sh", {
    args: ["-c", script, "sh", Deno.execPath(), ...await command],
    cwd: work.dir,
    env: cleanEnvironment(),
    stderr: (chunk) => stderr += new TextDecoder().decode(chunk),
  });
  return {
    child,
    stderr: () => stderr,
    /** Waits until standard error matches. */
    async says(pattern: RegExp) {
      const ended = child.ended.then(() => true);
      while (!pattern.test(stderr)) {
        if (await Promise.race([ended, sleep(20)])) {
          throw new Error(`it never said so: ${stderr}`);
        }
      }
    },
  };
}

/** Runs a host shell that prints when it has started and waits for a file. */
const RUN_UNTIL_FILE_EXISTS = ["run", "--execution", "host", "sh", "-c"].concat(
  "echo there >&2; until [ -e go ]; do sleep 0.1; done",
);

const STATUSES = { HUP: 129, INT: 130, TERM: 143 };

/**
 * Tells whether a signal is ignored. Half a second after its start, Deno 2.9.2 or newer
 * catches it, and nothing tells any more that it was ignored: on a slow host before the
 * program is loaded.
 */
const IS_IGNORED = `
const [name, ...args] = Deno.args;
const isIgnored = new Deno.Command("sh", {
  // A shell cannot catch a signal that it was started to ignore.
  args: ["-c", \`kill -\${name} $$\`],
}).outputSync().success;
`;

const MAIN = `
import { main } from "/lib/../cli.ts";
${IS_IGNORED}
console.error(isIgnored ? "ignored" : "caught by Deno");
Deno.exit(await main(args));
`;

Deno.test({
  name: "run ignores a signal that its parent process ignores, as nohup does",
  ...linux,
  async fn() {
    await using work = await workspaceWithoutImage();
    for (const name of ["HUP", "INT", "TERM"] as const) {
      for (const permissions of ["-A", "-P=run"]) {
        const args = [name, ...RUN_UNTIL_FILE_EXISTS];
        const how = { args, permissions: [permissions] };
        const { child, says, stderr } = await startByScript(
          work,
          `trap '' ${name}; exec "$@"`,
          args,
          scriptCommand(join(work.dir, "main.ts"), MAIN, how),
        );
        await using _child = child;
        await says(/there/);
        Deno.kill(child.pid, `SIG${name}`);
        // Give it time to exit.
        await sleep(500);
        await Deno.writeTextFile(join(work.dir, "go"), "");
        const { code } = await child.ended;
        const expected = stderr().startsWith("ignored\n") ? 0 : STATUSES[name];
        assertEquals(code, expected, `${name} ${permissions} ${stderr()}`);
        await Deno.remove(join(work.dir, "go"));
      }
    }
  },
});

/** Sends itself an ignored signal after it has stopped watching, and then SIGWINCH. */
const SIGNALLED_AFTER_WATCHING = `
import { watchSignals } from "/lib/cli/signals.ts";
${IS_IGNORED}
if (!isIgnored) Deno.exit(7);
(await watchSignals(() => {}))[Symbol.dispose]();
// Deno handles signals one after the other.
const handled = new Promise((done) => Deno.addSignalListener("SIGWINCH", done));
Deno.kill(Deno.pid, "SIG" + name);
Deno.kill(Deno.pid, "SIGWINCH");
await handled;
Deno.exit(7);
`;

Deno.test({
  name:
    "watchSignals() keeps ignoring what the parent process ignores when it is disposed",
  ...linux,
  async fn() {
    await using dir = await temporaryDir();
    const path = join(dir.path, "script.ts");
    for (const name of Object.keys(STATUSES)) {
      const signal = { args: [name] };
      const run = await scriptCommand(path, SIGNALLED_AFTER_WATCHING, signal);
      const line = `trap '' ${name}; exec "$@"`;
      const args = ["-c", line, "sh", Deno.execPath(), ...run];
      const { code, stderr } = await runProcess("sh", { args });
      assertEquals(code, 7, `${name} ${stderr}`);
    }
  },
});

Deno.test({
  name:
    "run exits with 128 plus the number of the signal that stopped toolsmith",
  ...linux,
  async fn() {
    await using work = await workspaceWithoutImage();
    for (const [name, code] of Object.entries(STATUSES)) {
      const { child, says, stderr } = await startByScript(
        work,
        'exec "$@"',
        RUN_UNTIL_FILE_EXISTS,
      );
      await using _child = child;
      await says(/there/);
      Deno.kill(child.pid, `SIG${name}` as Deno.Signal);
      assertEquals((await child.ended).code, code);
      assertMatch(stderr(), new RegExp(`by SIG${name} \\[cancelled\\]`));
    }
  },
});

Deno.test({
  name:
    "hydrate and run stop at SIGTERM while they wait for the lock of an image or a VM",
  ...linux,
  async fn() {
    await using work = await workspaceWithoutImage();
    const cache = join(work.dir, ".toolsmith", "cache");
    const image = entryLockPath({ cache, image: "demo", sha256: SHA256 });
    const vm = join(work.dir, ".toolsmith", "machine.json");
    await Deno.writeTextFile(vm, "{}", { mode: 0o600 });
    await Deno.mkdir(dirname(image), { recursive: true });
    using _image = await acquireFileLock(image);
    using _vm = await acquireFileLock(`${vm}.lock`);
    const waits: [string[], string][] = [
      [["hydrate"], image],
      [["stop"], `${vm}.lock`],
      [["run", "true"], `${vm}.lock`],
    ];
    for (const [args, held] of waits) {
      const { child, stderr } = await startByScript(work, 'exec "$@"', args);
      await using _child = child;
      await untilOpened(child.pid, held);
      Deno.kill(child.pid, "SIGTERM");
      const said = `${args.join(" ")}: ${stderr()}`;
      assertEquals((await child.ended).code, 143, said);
    }
  },
});

/** Starts the program with a full pipe without a reader as standard output. */
const BLOCKED_PIPE_SCRIPT =
  'mkfifo pipe; exec 9<>pipe; head -c 65536 /dev/zero >&9; exec "$@" >pipe';

Deno.test({
  name: "toolsmith stops at a signal while nobody reads its output pipe",
  ...linux,
  async fn() {
    const runs = [
      ["run", "--execution", "host", "--json", "sh", "-c", "echo; sleep 60"],
      ["run", "--execution", "host", "--json", "yes"],
      ["cache", "path"],
      ["hydrate", "--help"],
    ];
    for (const args of runs) {
      await using work = await workspaceWithoutImage();
      const { child } = await startByScript(work, BLOCKED_PIPE_SCRIPT, args);
      await using _child = child;
      await untilOutputBlocks(child.pid);
      Deno.kill(child.pid, "SIGTERM");
      assertEquals((await child.ended).code, 143, args.join(" "));
    }
  },
});

Deno.test({
  name:
    "run --execution host --json exits silently with 141 when its reader closes the pipe",
  ...unix,
  async fn() {
    await using work = await workspaceWithoutImage();
    const args = ["run", "--execution", "host", "--json", "yes"];
    const { child, stderr } = await startByScript(
      work,
      '{ "$@"; echo "status $?" >&2; } | head -c 20 >/dev/null',
      args,
    );
    await using _child = child;
    await child.ended;
    assertEquals(stderr(), "status 141\n");
  },
});

Deno.test({
  name: "boot restores the terminal after a second Ctrl-C",
  ignore: linux.ignore || requires("qemuImg").ignore,
  async fn() {
    await using work = await workspaceWithoutImage();
    const at = (name: string) => join(work.dir, name);
    const { sha256 } = await makeQcow2(at("none.qcow2"), 65536);
    await work.manifest({ qcow2: "../none.qcow2", qcow2_sha256: sha256 });
    // The guest never becomes ready and ignores the power button.
    const qemu = [
      ...["#!/bin/sh", `trap 'echo > ${at("told")}' TERM INT`],
      ...[`echo > ${at("booting")}`, "while :; do sleep 0.1; done", ""],
    ].join("\n");
    await Deno.writeTextFile(at("qemu"), qemu, { mode: 0o755 });
    const script = `stty -a >${at("before")}; sh -c 'echo $$ >${
      at("pid")
    }; exec "$@"' sh "$@"; stty -a >${at("after")}`;
    await Deno.writeTextFile(at("inner"), script);
    const command = await cliCommand(["boot", "--no-save", "--fresh"], ["-A"]);
    const line = ["sh", at("inner"), Deno.execPath(), ...command];
    await using child = spawnProcess("script", {
      args: ["-qec", line.map((word) => `'${word}'`).join(" "), "/dev/null"],
      cwd: work.dir,
      env: { ...cleanEnvironment(), TOOLSMITH_QEMU: at("qemu") },
      input: "held",
    });
    const read = async (name: string) => {
      let text = "";
      while (text === "") {
        await sleep(20);
        text = await Deno.readTextFile(at(name)).catch(() => "");
      }
      return text;
    };
    await read("booting");
    const pid = Number(await read("pid"));
    Deno.kill(pid, "SIGINT");
    await read("told");
    killUnlessEnded(pid, "SIGINT");
    assertEquals(await read("after"), await read("before"));
    await child.stop();
  },
});
