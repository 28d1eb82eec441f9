/**
 * Measures the program against what a person would do by hand, in turns in the
 * same run, and prints medians and ratios. Machines differ: quote the ratios.
 *
 *     deno task bench
 *
 * @module
 */
import { run } from "../lib/process.ts";
import { setup } from "./setup.ts";

const tools = await setup(["oras", "registry", "qemuImg"]);
if (!tools.oras || !tools.registry || !tools.qemuImg) {
  console.error("the benchmark needs all of the above");
  Deno.exit(1);
}
// Not before the set-up: they look for the programs when they are loaded.
const { startRegistry } = await import("../tests/_registry.ts");
const { cleanEnvironment, cliCommand, makeQcow2, orasPush, TYPE, workspace } =
  await import("../tests/_workspace.ts");

const ROUNDS = 5;
const MIB = 1024 * 1024;

/** A way to do something, and its times in milliseconds. */
interface Rival {
  name: string;
  once: () => Promise<void>;
  times: number[];
}

await hydrateRows(256);

/** Hydrating an image, beside oras and sha256sum alone. */
async function hydrateRows(mib: number) {
  await using registry = await startRegistry();
  await using work = await workspace();
  const { sha256 } = await makeQcow2(`${work.folder}/image.qcow2`, mib * MIB);
  const reference = `${registry.host}/owner/image:1.0`;
  await orasPush(reference, [`image.qcow2:${TYPE}`], { cwd: work.folder });
  await work.manifest({ qcow2: `oci://${reference}`, qcow2_sha256: sha256 });
  const hydrate = await cliCommand(["hydrate", "--quiet"], ["-A"]);
  const toolsmith = () => must(Deno.execPath(), hydrate);
  const cache = `${work.folder}/.toolsmith/cache`;
  const pulled = `${work.folder}/pulled`;
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
      cwd: work.folder,
      env,
    });
    if (code !== 0) throw new Error(`${program} ${args.join(" ")}: ${stderr}`);
  }
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
  const first = median(rivals[0].times);
  console.log(`\n${title}`);
  for (const { name, times } of rivals) {
    const [low, mid, high] = [
      Math.min(...times),
      median(times),
      Math.max(...times),
    ];
    console.log(
      [
        `  ${name.padEnd(28)}`,
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
