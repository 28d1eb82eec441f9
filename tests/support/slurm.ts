/**
 * A Slurm cluster of two nodes on this host, as an ordinary user would find it:
 * a controller, two node daemons and munge, all in a directory of their own.
 *
 * @module
 */
import { join } from "@std/path";
import { run, spawn } from "../../lib/system/process.ts";
import { sleep } from "../../lib/system/time.ts";
import { needs } from "./parts.ts";

/** What a test that starts a cluster spreads into its definition. */
export const needsSlurm = needs("slurm");

/** How a job, or a task of an array, ended. */
export interface JobEnd {
  /** Slurm's word, such as `COMPLETED`, `FAILED`, `CANCELLED`, `TIMEOUT`. */
  state: string;
  /** The exit status of its script. */
  code: number;
  /** The node that it ran on. */
  node: string;
}

/** A running cluster. */
export interface Cluster extends AsyncDisposable {
  /** Runs one of Slurm's commands, which must succeed. */
  slurm(program: string, args: string[]): Promise<string>;
  /** Submits a batch script with its environment, and returns the job's id. */
  submit(args: string[], env: Record<string, string>): Promise<string>;
  /** Waits until a task has the state. */
  reaches(task: string, state: RegExp): Promise<JobEnd>;
}

const PORTS = [26817, 26818, 26819];
const PATIENCE_MS = 120_000;

/**
 * Starts a cluster. Its nodes are `n1` and `n2`, with a processor each.
 *
 * @param dir An empty directory with a short path.
 */
export async function startSlurm(dir: string): Promise<Cluster> {
  await using undo = new AsyncDisposableStack();
  const socket = join(dir, "munge.sock");
  await Deno.chmod(dir, 0o755);
  await Deno.mkdir(join(dir, "munge"), { mode: 0o700 });
  await Deno.mkdir(join(dir, "state"));
  const key = join(dir, "munge", "key");
  const bytes = crypto.getRandomValues(new Uint8Array(128));
  await Deno.writeFile(key, bytes, { mode: 0o400 });
  const config = join(dir, "slurm.conf");
  await Deno.writeTextFile(config, configuration(dir, socket));
  const env = { SLURM_CONF: config };
  const daemon = (program: string, args: string[]) =>
    undo.use(spawn(program, { args, env }));
  daemon("munged", [
    "--foreground",
    "--force",
    `--key-file=${key}`,
    `--socket=${socket}`,
    `--pid-file=${join(dir, "munged.pid")}`,
    `--seed-file=${join(dir, "munge", "seed")}`,
    `--log-file=${join(dir, "munge", "log")}`,
  ]);
  await until(() => Deno.stat(socket).then(() => true, () => false), "munged");
  daemon("slurmctld", ["-D"]);
  for (const node of ["n1", "n2"]) {
    await Deno.mkdir(join(dir, `spool-${node}`));
    daemon("slurmd", ["-D", "-N", node]);
  }
  const slurm = async (
    program: string,
    args: string[],
    more: Record<string, string> = {},
  ) => {
    const output = await run(program, {
      args,
      env: { ...env, ...more },
      timeoutMs: 60_000,
    });
    if (output.code === 0) return output.stdout.trim();
    throw new Error(`${program} ${args.join(" ")}: ${output.stderr}`);
  };
  await until(async () => {
    const states = await slurm("sinfo", ["-h", "-N", "-o", "%T"])
      .catch(() => "");
    return states === "idle\nidle";
  }, "the nodes");
  const all = undo.move();
  return {
    slurm,
    submit: (args, more) => slurm("sbatch", ["--parsable", ...args], more),
    async reaches(task, state) {
      let end: JobEnd | undefined;
      await until(async () => {
        end = jobEnd(await slurm("scontrol", ["show", "job", task]));
        return state.test(end.state);
      }, `${task} to become ${state}`);
      return end!;
    },
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

function configuration(dir: string, socket: string): string {
  const host = Deno.hostname().replace(/\..*/, "");
  const [controller, ...nodes] = PORTS;
  return `
ClusterName=toolsmith
SlurmctldHost=${host}(127.0.0.1)
SlurmctldPort=${controller}
SlurmUser=root
AuthInfo=socket=${socket}
StateSaveLocation=${dir}/state
SlurmctldPidFile=${dir}/slurmctld.pid
SlurmctldLogFile=${dir}/slurmctld.log
SlurmdPidFile=${dir}/slurmd-%n.pid
SlurmdSpoolDir=${dir}/spool-%n
SlurmdLogFile=${dir}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
KillWait=5
${
    nodes.map((port, index) =>
      `NodeName=n${
        index + 1
      } NodeHostname=${host} NodeAddr=127.0.0.1 Port=${port} CPUs=1 RealMemory=1500`
    ).join("\n")
  }
PartitionName=work Nodes=n1,n2 Default=YES MaxTime=10 State=UP
`;
}

/** Reads what `scontrol show job` prints. */
function jobEnd(text: string): JobEnd {
  const field = (name: string) =>
    new RegExp(`\\b${name}=(\\S*)`).exec(text)?.[1] ?? "";
  return {
    state: field("JobState"),
    code: Number(field("ExitCode").split(":")[0]),
    node: field("NodeList"),
  };
}

async function until(ready: () => Promise<boolean>, what: string) {
  const begun = performance.now();
  while (!await ready()) {
    if (performance.now() - begun > PATIENCE_MS) {
      throw new Error(`waited ${PATIENCE_MS / 1000} s for ${what}`);
    }
    await sleep(200);
  }
}
