/**
 * A guest's output that nobody reads, or that cannot be written.
 *
 * @module
 */
import { assertEquals, assertMatch } from "@std/assert";
import { fileChunks, sha256 } from "../../lib/system/digest.ts";
import { spawn } from "../../lib/system/process.ts";
import { settlesWithin, sleep } from "../../lib/system/time.ts";
import { guest, needsGuest } from "../support/guest.ts";
import { parts } from "../support/parts.ts";
import { processesOf } from "../support/processes.ts";
import {
  cleanEnvironment,
  cliCommand,
  type Workspace,
  workspace,
} from "../support/workspace.ts";

async function guestWorkspace(): Promise<Workspace> {
  const work = await workspace();
  const qcow2 = await guest();
  const digest = await sha256(fileChunks(qcow2));
  await work.manifest({ name: "guest", qcow2, qcow2_sha256: digest });
  return work;
}

/** Starts the program by a script that has it as `"$@"`. */
async function start(work: Workspace, script: string, args: string[]) {
  const said = { stderr: "" };
  const command = await cliCommand(args, ["-A"]);
  const child = spawn("sh", {
    args: ["-c", script, "sh", Deno.execPath(), ...command],
    cwd: work.dir,
    env: { ...cleanEnvironment(), TOOLSMITH_QEMU: parts.qemu! },
    stderr: (chunk) => said.stderr += new TextDecoder().decode(chunk),
  });
  return { child, said };
}

Deno.test({
  name: "output that nobody reads, or that cannot be written, ends a program",
  ...needsGuest,
  async fn(t) {
    await using work = await guestWorkspace();
    await t.step("boot comes up all the same, and ends at TERM", async () => {
      const script =
        'mkfifo pipe; exec 9<>pipe; head -c 65536 /dev/zero >&9; exec "$@" >pipe';
      const { child, said } = await start(work, script, ["boot"]);
      await using _child = child;
      for (let tries = 0; !/booted in/.test(said.stderr); tries++) {
        if (tries > 600) throw new Error(`it did not come up: ${said.stderr}`);
        await sleep(100);
      }
      Deno.kill(child.pid, "SIGTERM");
      assertEquals(await settlesWithin(child.ended, 20_000), true, said.stderr);
      assertEquals((await child.ended).code, 143);
    });
    await t.step("run ends silently with 141", async () => {
      const script = '{ "$@"; echo "status $?" >&2; } | head -n1';
      const args = ["run", "--quiet", "yes"];
      const { child, said } = await start(work, script, args);
      await using _child = child;
      await child.ended;
      assertEquals(said.stderr, "status 141\n");
    });
    await t.step("run reports one that is full", async () => {
      const args = ["run", "--quiet", "yes"];
      const { child, said } = await start(work, 'exec "$@" >/dev/full', args);
      await using _child = child;
      assertEquals((await child.ended).code, 50, said.stderr);
      assertMatch(
        said.stderr,
        /^error: Cannot write to standard output: .*\nhint: .*\n$/,
      );
    });
    await t.step("run reports one that is closed", async () => {
      const args = ["run", "--quiet", "echo", "hi"];
      const script = '"$@" >&-; exit $?';
      const { child, said } = await start(work, script, args);
      await using _child = child;
      const { code } = await child.ended;
      if (Deno.build.os !== "linux") return;
      assertEquals(code, 14, said.stderr);
      assertMatch(
        said.stderr,
        /^error: Cannot write to standard output: it is closed .*\nhint: .*\n$/,
      );
    });
    assertEquals(await processesOf(work.dir), []);
  },
});
