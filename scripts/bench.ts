/**
 * Measures the program against what a person would do by hand, in turns in the
 * same run, and prints medians and ratios. Machines differ: quote the ratios.
 *
 *     deno task bench
 *
 * @module
 */
import { attachShares } from "../lib/vm/_hotplug.ts";
import { listCache } from "../lib/cache/prune.ts";
import { fileChunks, sha256 } from "../lib/system/digest.ts";
import { execInGuest } from "../lib/guest/exec.ts";
import { makeMachineDir } from "../lib/qemu/machine_dir.ts";
import { ownMonitor } from "../lib/qemu/monitor.ts";
import { run, spawn } from "../lib/system/process.ts";
import { qemuArgs } from "../lib/qemu/args.ts";
import { openAgent } from "../lib/qemu/agent.ts";
import { openQmp } from "../lib/qemu/qmp.ts";
import { setup } from "./setup.ts";

const tools = await setup(["oras", "registry", "qemuImg", "qemu", "guest"]);
if (!tools.oras || !tools.registry || !tools.qemuImg) {
  console.error("the benchmark needs all of the above");
  Deno.exit(1);
}
// Not before the set-up: they look for the programs when they are loaded.
const { startRegistry } = await import("../tests/support/registry.ts");
const { cleanEnvironment, cliCommand, makeQcow2, orasPush, TYPE, workspace } =
  await import("../tests/support/workspace.ts");

const ROUNDS = 5;
const MIB = 1024 * 1024;

/** A way to do something, and its times in milliseconds. */
interface Rival {
  name: string;
  once: () => Promise<void>;
  times: number[];
}

await hydrateRows(256);
if (tools.qemu && tools.guest) await runRows(tools.qemu);

/** Hydrating an image, beside oras and sha256sum alone. */
async function hydrateRows(mib: number) {
  await using registry = await startRegistry();
  await using work = await workspace();
  const { sha256 } = await makeQcow2(`${work.dir}/image.qcow2`, mib * MIB);
  const reference = `${registry.host}/owner/image:1.0`;
  await orasPush(reference, [`image.qcow2:${TYPE}`], { cwd: work.dir });
  await work.manifest({ qcow2: `oci://${reference}`, qcow2_sha256: sha256 });
  const hydrate = await cliCommand(["hydrate", "--quiet"], ["-A"]);
  const toolsmith = () => must(Deno.execPath(), hydrate);
  const cache = `${work.dir}/.toolsmith/cache`;
  const pulled = `${work.dir}/pulled`;
  const sum = () => must("sha256sum", [`${pulled}/image.qcow2`]);

  await compare(`first hydrate of ${mib} MiB`, [
    {
      name: "toolsmith hydrate",
      once: async () => {
        await Deno.remove(cache, { recursive: true }).catch(() => {});
        await toolsmith();
      },
      times: [],
    },
    {
      name: "oras pull, then sha256sum",
      once: async () => {
        await Deno.remove(pulled, { recursive: true }).catch(() => {});
        const pull = ["pull", "--plain-http", "--no-tty", "-o", pulled];
        await must(tools.oras!, [...pull, reference]);
        await sum();
      },
      times: [],
    },
  ]);
  await compare(`hydrate of ${mib} MiB that are cached`, [
    { name: "toolsmith hydrate", once: toolsmith, times: [] },
    { name: "sha256sum", once: sum, times: [] },
  ]);

  async function must(program: string, args: string[]) {
    const env = cleanEnvironment();
    const { code, stderr } = await run(program, {
      args,
      cwd: work.dir,
      env,
    });
    if (code !== 0) throw new Error(`${program} ${args.join(" ")}: ${stderr}`);
  }
}

/** Starting a guest: booted, restored, and restored by hand. */
async function runRows(qemu: string) {
  const { buildGuest } = await import("./guest/build.ts");
  await using work = await workspace();
  const image = await buildGuest();
  Deno.env.set("TOOLSMITH_QEMU", qemu);
  const digest = await sha256(fileChunks(image));
  await work.manifest({ qcow2: image, qcow2_sha256: digest });
  const env = { ...cleanEnvironment(), TOOLSMITH_QEMU: qemu };
  const cwd = work.dir;
  const toolsmith = async (...flags: string[]) => {
    const command = ["run", "--json", ...flags, "--", "true"];
    const args = await cliCommand(command, ["-A"]);
    const { code, stdout } = await run(Deno.execPath(), { args, cwd, env });
    if (code !== 0) throw new Error(stdout);
    const events = stdout.trim().split("\n").map((line) => JSON.parse(line));
    return events.find(({ type }) => type === "boot_ready");
  };
  // Saves the machine that all others restore.
  await toolsmith();
  const ready: number[] = [];
  const byHand: number[] = [];
  const rows: Rival[] = [
    {
      name: "toolsmith run -- true, restored",
      once: async () => {
        const { how, phases } = await toolsmith();
        if (how !== "restored") throw new Error("it was not restored");
        ready.push(phases.start + phases.guest);
      },
      times: [],
    },
    {
      name: "QEMU by hand: the same work",
      once: async () => {
        byHand.push(await restoreByHand(qemu, work.dir));
      },
      times: [],
    },
    {
      name: "toolsmith run -- true, booted",
      once: async () => {
        await toolsmith("--fresh", "--no-save");
      },
      times: [],
    },
  ];
  await compare("a command in a guest, as a whole process", rows);
  print("until the agent answers, restored", [
    ["toolsmith", ready.slice(1)],
    ["QEMU by hand", byHand.slice(1)],
  ]);
}

/**
 * What a person's own script would do: QEMU with the same machine restores the
 * state, the workspace is mounted, the command runs. Returns the time until the
 * agent had answered, in milliseconds.
 */
async function restoreByHand(qemu: string, root: string): Promise<number> {
  const begun = performance.now();
  const [image] = await listCache(`${root}/.toolsmith/cache`);
  const dir = await makeMachineDir();
  const plan = {
    ...{ disk: image.path, ephemeral: true, dir, program: qemu },
    ...{ accelerator: "tcg" as const, memory: 512, extra: [] },
    cpus: Math.min(2, navigator.hardwareConcurrency),
    shares: [{ path: root, tag: "work", writable: false }],
  };
  const script = 'exec 9<"$1"; shift; exec "$@"';
  const args = [...qemuArgs(plan), "-incoming", "fd:9"];
  await using _qemu = spawn("sh", {
    args: ["-c", script, "sh", image.states[0].path, qemu, ...args],
  });
  const until = async <T>(connect: () => Promise<T>): Promise<T> => {
    while (true) {
      const connected = await connect().catch(() => undefined);
      if (connected) return connected;
      await new Promise((done) => setTimeout(done, 2));
    }
  };
  using qmp = await until(() => openQmp(`${dir}/qmp`));
  while (true) {
    const [{ status }] = await qmp.send(["query-status"]) as Status[];
    if (status !== "inmigrate") break;
  }
  await qmp.send(["cont"]);
  using agent = await openAgent(`${dir}/agent`);
  await agent.sync();
  const answered = performance.now() - begun;
  await using monitor = ownMonitor(dir, qmp, agent);
  await attachShares(monitor, plan.shares);
  await execInGuest(monitor, "true");
  await qmp.send(["quit"]).catch(() => {});
  await Deno.remove(dir, { recursive: true });
  return answered;
}

interface Status {
  status: string;
}

/** Runs rivals in turns, and prints their medians and ratios to the first. */
async function compare(title: string, rivals: Rival[]) {
  // The first round fills what the system caches, and is not counted.
  for (let round = 0; round <= ROUNDS; round++) {
    for (const rival of rivals) {
      const begun = performance.now();
      await rival.once();
      if (round > 0) rival.times.push(performance.now() - begun);
    }
  }
  print(title, rivals.map(({ name, times }) => [name, times]));
}

/** Prints medians, and their ratios to the first. */
function print(title: string, rows: [string, number[]][]) {
  const first = median(rows[0][1]);
  console.log(`\n${title}`);
  for (const [name, times] of rows) {
    const [low, mid, high] = [
      Math.min(...times),
      median(times),
      Math.max(...times),
    ];
    console.log(
      [
        `  ${name.padEnd(32)}`,
        `${mid.toFixed(0).padStart(7)} ms`,
        `(${low.toFixed(0)}–${high.toFixed(0)})`.padEnd(16),
        `${(mid / first).toFixed(2)} ×`,
      ].join("  "),
    );
  }
}

function median(times: number[]): number {
  return times.toSorted((a, b) => a - b)[times.length >> 1];
}
