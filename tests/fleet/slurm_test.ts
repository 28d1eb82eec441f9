/**
 * Runs tools as jobs of a Slurm cluster, as docs/fleets.md describes.
 */
import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import { buildTestGuest, needsGuest } from "../support/guest.ts";
import { findProcesses } from "../support/processes.ts";
import { startProxy } from "../support/proxy.ts";
import { startRegistry } from "../support/registry.ts";
import { needsSlurm, startSlurm } from "../support/slurm.ts";
import { waitUntil } from "../support/wait_until.ts";
import {
  cleanEnvironment,
  cliCommand,
  orasPush,
  TYPE,
  workspace,
} from "../support/workspace.ts";

/**
 * The batch script of docs/fleets.md, with a variable command, and a time limit: on a busy
 * host a guest may print nothing for minutes.
 */
const SCRIPT = `#!/bin/sh
export TOOLSMITH_CACHE="$CACHES/$SLURMD_NODENAME"
exec toolsmith run --boot-timeout 2400 -- sh -c "$COMMAND" task "$SLURM_ARRAY_TASK_ID"
`;

Deno.test({
  name: "toolsmith run works in the jobs of a Slurm cluster",
  ignore: needsSlurm.ignore || needsGuest.ignore,
  async fn(t) {
    await using work = await workspace();
    await using registry = await startRegistry();
    await using proxy = startProxy(registry.host);
    const { dir } = work;
    await Deno.copyFile(await buildTestGuest(), join(dir, "guest.qcow2"));
    const layers = [`guest.qcow2:${TYPE}`];
    await orasPush(`${registry.host}/owner/guest:1`, layers, { cwd: dir });
    await work.manifest({
      name: "guest",
      qcow2: `oci://${proxy.host}/owner/guest:1`,
      qcow2_sha256: await sha256OfChunks(
        readFileChunks(join(dir, "guest.qcow2")),
      ),
    });
    await Deno.mkdir(join(dir, "slurm"));
    await using cluster = await startSlurm(join(dir, "slurm"));
    const { PATH, ...env } = cleanEnvironment();
    await installToolsmith(join(dir, "bin"));
    const script = join(dir, "job.sh");
    await Deno.writeTextFile(script, SCRIPT, { mode: 0o755 });
    const caches = join(dir, "caches");

    const submit = (task: number, command: string, ...args: string[]) =>
      cluster.submit([
        `--array=${task}`,
        `--chdir=${dir}`,
        `--output=${dir}/out-%a`,
        `--error=${dir}/err-%a`,
        ...args,
        script,
      ], {
        ...env,
        PATH: `${dir}/bin:${PATH}`,
        CACHES: caches,
        COMMAND: command,
      });
    const read = (stream: "out" | "err", task: number) =>
      Deno.readTextFile(join(dir, `${stream}-${task}`)).catch(() => "");
    /** Waits until a task's command has printed something. */
    const running = (task: number) =>
      waitUntil(
        `output of ${task}`,
        async () => await read("out", task) !== "",
      );
    const machines = () => findProcesses(`file=${caches}`);
    const noneLeft = () =>
      waitUntil("the guest's end", async () => (await machines()).length === 0);

    await t.step(
      "run returns the exit status and output of each Slurm task",
      async () => {
        const tasks = [0, 1, 2, 3];
        const job = await submit(0, 'echo "task $1"; exit "$1"', "--array=0-3");
        const nodes = new Set<string>();
        for (const task of tasks) {
          const end = await cluster.reaches(
            `${job}_${task}`,
            /COMPLETED|FAILED/,
          );
          assertEquals(end.code, task, await read("err", task));
          assertEquals(end.state, task === 0 ? "COMPLETED" : "FAILED");
          assertEquals(await read("out", task), `task ${task}\n`);
          nodes.add(end.node);
        }
        assertEquals([...nodes].sort(), ["n1", "n2"]);
      },
    );

    await t.step("run downloads the image once per Slurm node", () => {
      const whole = proxy.seen.filter(({ request, bytes }) =>
        /^GET .*\/blobs\//.test(request) && bytes > 1_000_000
      );
      assertEquals(whole.length, 2);
    });

    await t.step("scancel stops the VM of the cancelled task", async () => {
      const job = await submit(4, "echo up; sleep 600");
      await running(4);
      assert((await machines()).length > 0);
      await cluster.slurm("scancel", [`${job}_4`]);
      await cluster.reaches(`${job}_4`, /CANCELLED/);
      await noneLeft();
    });

    await t.step("Slurm time limit stops the VM of the task", async () => {
      const job = await submit(5, "echo up; sleep 600");
      await running(5);
      // Only now, as the VM's start may take a minute on a busy host.
      const change = [`jobid=${job}_5`, "timelimit=1"];
      await cluster.slurm("scontrol", ["update", ...change]);
      await cluster.reaches(`${job}_5`, /TIMEOUT/);
      await noneLeft();
    });

    await t.step(
      "Slurm node being drained finishes its task and receives no new one",
      async () => {
        const job = await submit(6, "echo up; sleep 3", "--nodelist=n1");
        await running(6);
        await update("n1", "drain");
        const end = await cluster.reaches(`${job}_6`, /COMPLETED|FAILED/);
        assertEquals([end.state, end.node], ["COMPLETED", "n1"]);
        await noneLeft();
        const next = await submit(7, "echo elsewhere");
        const other = await cluster.reaches(`${next}_7`, /COMPLETED|FAILED/);
        assertEquals([other.state, other.node], ["COMPLETED", "n2"]);
        await update("n1", "resume");
      },
    );

    await t.step(
      "Slurm node set to down stops its VM",
      async () => {
        await submit(8, "echo up; sleep 600", "--nodelist=n2", "--no-requeue");
        await running(8);
        await update("n2", "down");
        await noneLeft();
      },
    );

    async function update(node: string, state: string) {
      const change = [`nodename=${node}`, `state=${state}`, "reason=test"];
      await cluster.slurm("scontrol", ["update", ...change]);
    }
  },
});

/** Installs a `toolsmith` command for the nodes. */
async function installToolsmith(bin: string) {
  await Deno.mkdir(bin);
  const command = [Deno.execPath(), ...await cliCommand([], ["-A"])];
  const words = command.map((word) => `'${word}'`).join(" ");
  const text = `#!/bin/sh\nexec ${words} "$@"\n`;
  await Deno.writeTextFile(join(bin, "toolsmith"), text, { mode: 0o755 });
}
