/**
 * A Slurm cluster of two nodes on this host: a controller, two node daemons and munge,
 * all in one directory.
 */
import { join } from "@std/path";
import { runProcess, spawnProcess } from "../../lib/system/process.ts";
import { waitUntil } from "./wait_until.ts";
import { requires } from "./parts.ts";

/** Spread into the definition of a test that starts a cluster. */
export const needsSlurm = requires("slurm");

/** How a job, or a task of an array, ended. */
export interface JobEnd {
  /** Slurm's job state, such as `COMPLETED`, `FAILED`, `CANCELLED`, `TIMEOUT`. */
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
/** Poll slowly, as each poll starts a program. */
const LOOK_MS = 200;

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
    undo.use(spawnProcess(program, { args, env }));
  daemon("munged", [
    "--foreground",
    "--force",
    `--key-file=${key}`,
    `--socket=${socket}`,
    `--pid-file=${join(dir, "munged.pid")}`,
    `--seed-file=${join(dir, "munge", "seed")}`,
    `--log-file=${join(dir, "munge", "log")}`,
  ]);
  await waitUntil(
    "munged",
    () => Deno.stat(socket).then(() => true, () => false),
  );
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
    const output = await runProcess(program, {
      args,
      env: { ...env, ...more },
      timeoutMs: 600_000,
    });
    if (output.code === 0) return output.stdout.trim();
    throw new Error(`${program} ${args.join(" ")}: ${output.stderr}`);
  };
  await waitUntil("idle nodes", async () => {
    const states = await slurm("sinfo", ["-h", "-N", "-o", "%T"])
      .catch(() => "");
    return states === "idle\nidle";
  }, LOOK_MS);
  const all = undo.move();
  return {
    slurm,
    submit: (args, more) => slurm("sbatch", ["--parsable", ...args], more),
    async reaches(task, state) {
      let end: JobEnd | undefined;
      await waitUntil(() => `${task} is ${end?.state}`, async () => {
        end = jobEnd(await slurm("scontrol", ["show", "job", task]));
        return state.test(end.state);
      }, LOOK_MS);
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
