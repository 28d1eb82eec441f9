/** Measures hydrate against oras, curl and skopeo. */
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import { spawnProcess } from "../../lib/system/process.ts";
import { foundTools } from "../../tests/support/parts.ts";
import { cleanEnvironment } from "../../tests/support/workspace.ts";
import {
  measureCutTransfer,
  measureFleet,
  measureKilledPull,
} from "./bytes_on_wire.ts";
import { addReportSection, type Contender, measureInTurns } from "./measure.ts";
import {
  openTransferBench,
  removeIfExists,
  type TransferBench,
} from "./transfer_bench.ts";
import {
  type NetworkOptions,
  startThrottledNetwork,
  THROTTLED_BYTES_PER_S,
} from "./throttled_network.ts";

const DIGEST_ENGINES = [
  ["the runtime", "runtime"],
  ["@std/crypto", "std"],
] as const;

/** The parts of the transfer benchmark by name. */
const MEASUREMENTS = {
  cold: measureColdHydrate,
  slow: measureSlowNetworks,
  cut: measureCutTransfer,
  "start-over": measureKilledPull,
  crowd: measureParallelHydrates,
  eight: measureEightAtOnce,
  warm: measureWarmCache,
};

/**
 * Measures transfers.
 *
 * @param mib Size of the image, in MiB.
 * @param wants Selects `cold`, `slow`, `cut`, `start-over`, `crowd`, `eight`, `warm`,
 * `fleet`.
 */
export async function measureTransfers(
  mib: number,
  wants: (name: string) => boolean,
) {
  const rows = Object.entries(MEASUREMENTS).filter(([name]) => wants(name));
  if (rows.length > 0) {
    await using site = await openTransferBench(mib);
    for (const [, measure] of rows) await measure(site);
  }
  if (!wants("fleet")) return;
  // The number of requests does not depend on the size.
  await using small = await openTransferBench(Math.min(mib, 128));
  await measureFleet(small);
}

/**
 * Measures peak memory.
 *
 * @param mib Size of the image, in MiB.
 */
export async function measurePeakMemory(mib: number) {
  await using site = await openTransferBench(mib);
  await site.forget();
  const idle = ["eval", "await new Promise((done) => setTimeout(done, 500))"];
  addReportSection(`peak memory, first hydrate of ${mib} MiB`, [
    { name: "deno, doing nothing", values: [await peakMemoryMib(site, idle)] },
    {
      name: "toolsmith hydrate",
      values: [await peakMemoryMib(site, site.hydrate())],
    },
  ], "MiB");
}

/** Measures downloads to memory (no disk waits) and to the disk. */
async function measureColdHydrate(site: TransferBench) {
  const options = { dir: "/dev/shm", prefix: "toolsmith-bench-" };
  const memory = await Deno.makeTempDir(options).catch(() => undefined);
  if (memory !== undefined) {
    await measureColdHydrateInto(site, memory).finally(() =>
      removeIfExists(memory)
    );
  }
  await measureColdHydrateInto(site, site.dir);
}

async function measureColdHydrateInto(site: TransferBench, into: string) {
  const { mib, reference, dir, must } = site;
  const inMemory = into !== dir;
  const out = `${into}/out`;
  const pull = ["pull", "--plain-http", "--no-tty", "-o", out, reference];
  const blob = `http://${
    reference.split("/")[0]
  }/v2/o/i/blobs/sha256:${site.sha256}`;
  const env = { ...cleanEnvironment(), TOOLSMITH_CACHE: out };
  const rivals: Contender[] = [
    { name: "oras pull", runOnce: () => must(foundTools.oras!, pull) },
    ...[4, 1].map((connections): Contender => ({
      name: `toolsmith hydrate, ${connections} connections`,
      runOnce: () =>
        must(Deno.execPath(), site.hydrate({ connections }), { env }),
    })),
    {
      name: "toolsmith hydrate, TOOLSMITH_DIGEST=std",
      runOnce: () =>
        must(Deno.execPath(), site.hydrate(), {
          env: { ...env, TOOLSMITH_DIGEST: "std" },
        }),
    },
    {
      name: "oras pull && sha256sum && mv",
      async runOnce() {
        await must(foundTools.oras!, pull);
        await must("sha256sum", [`${out}/image.qcow2`]);
        await Deno.rename(`${out}/image.qcow2`, `${out}/i`);
      },
    },
    { name: "curl", runOnce: () => must("curl", ["-sf", "-o", out, blob]) },
    ...DIGEST_ENGINES.map(([name, engine]): Contender => ({
      name: `SHA-256 alone, ${name}`,
      runOnce: async () =>
        void await sha256OfChunks(readFileChunks(`${dir}/image.qcow2`), engine),
    })),
  ];
  if (!inMemory) {
    rivals.splice(1, 0, {
      name: "oras pull, and the sync of it",
      async runOnce() {
        await must(foundTools.oras!, pull);
        using file = await Deno.open(`${out}/image.qcow2`);
        await file.syncData();
      },
    });
  }
  if (foundTools.skopeo) {
    const args = ["copy", "-q", "--src-tls-verify=false"];
    const copy = [...args, `docker://${reference}`, `dir:${out}`];
    rivals.push({
      name: "skopeo copy",
      runOnce: () => must(foundTools.skopeo!, copy),
    });
  }
  const where = inMemory ? ", into memory" : "";
  await measureInTurns(
    `first hydrate of ${mib} MiB, loopback${where}`,
    rivals.map((rival) => ({ ...rival, before: () => removeIfExists(out) })),
  );
  await removeIfExists(out);
}

/** Measures downloads over throttled connections. */
async function measureSlowNetworks(site: TransferBench) {
  const networks: [string, NetworkOptions][] = [
    ["60 MiB/s a connection", { rate: THROTTLED_BYTES_PER_S }],
    ["60 MiB/s a connection, round trips of 20 ms", {
      rate: THROTTLED_BYTES_PER_S,
      roundTripMs: 20,
    }],
  ];
  for (const [title, options] of networks) {
    await using wire = startThrottledNetwork(site.host, options);
    await site.name(wire.host);
    const pull = ["pull", "--plain-http", "--no-tty", "-o", "pulled"];
    await measureInTurns(`first hydrate of ${site.mib} MiB, ${title}`, [
      ...[4, 1].map((connections): Contender => ({
        name: `toolsmith hydrate, ${connections} connections`,
        prepare: site.forget,
        runOnce: async () =>
          await site.must(Deno.execPath(), site.hydrate({ connections })),
      })),
      {
        name: "oras pull",
        prepare: () => removeIfExists(`${site.dir}/pulled`),
        runOnce: () =>
          site.must(foundTools.oras!, [...pull, `${wire.host}/o/i:1`]),
      },
    ]);
  }
  await site.name(site.host);
}

async function measureParallelHydrates(site: TransferBench) {
  const args = site.hydrate();
  const crowd = (count: number) => async () => {
    const one = () => site.must(Deno.execPath(), args);
    await Promise.all(Array.from({ length: count }, one));
  };
  await measureInTurns(`first hydrate of ${site.mib} MiB, several at once`, [
    { name: "one", prepare: site.forget, runOnce: crowd(1) },
    { name: "eight", prepare: site.forget, runOnce: crowd(8) },
  ]);
}

/** Eight at once, where each would otherwise fetch and check by itself. */
async function measureEightAtOnce(site: TransferBench) {
  const eight = (one: (at: number) => Promise<void>) => async () =>
    void await Promise.all(Array.from({ length: 8 }, (_, at) => one(at)));
  const pull = ["pull", "--plain-http", "--no-tty", site.reference, "-o"];
  await measureInTurns(`first hydrate of ${site.mib} MiB, eight at once`, [
    {
      name: "toolsmith hydrate",
      prepare: site.forget,
      runOnce: eight(() => site.must(Deno.execPath(), site.hydrate())),
    },
    {
      name: "oras pull && sha256sum && mv",
      prepare: () => removeIfExists(`${site.dir}/pulled`),
      runOnce: eight(async (at) => {
        const out = `${site.dir}/pulled/${at}`;
        await site.must(foundTools.oras!, [...pull, out]);
        await site.must("sha256sum", [`${out}/image.qcow2`]);
        await Deno.rename(`${out}/image.qcow2`, `${out}/i`);
      }),
    },
  ]);
  await removeIfExists(`${site.dir}/pulled`);
}

async function measureWarmCache(site: TransferBench) {
  const args = site.hydrate();
  await site.must(Deno.execPath(), args);
  await measureInTurns(`hydrate of ${site.mib} MiB that are cached`, [
    {
      name: "deno eval 0",
      runOnce: () => site.must(Deno.execPath(), ["eval", "0"]),
    },
    {
      name: "toolsmith hydrate",
      runOnce: () => site.must(Deno.execPath(), args),
    },
    {
      name: "sha256sum",
      runOnce: () => site.must("sha256sum", ["image.qcow2"]),
    },
  ]);
}

/** Runs Deno in a directory, and returns the process's peak memory (VmHWM). */
export async function peakMemoryMib(
  { dir: cwd }: { dir: string },
  args: string[],
): Promise<number> {
  const child = spawnProcess(Deno.execPath(), {
    args,
    cwd,
    env: cleanEnvironment(),
  });
  let kib = 0;
  let ended = false;
  child.ended.then(() => ended = true);
  while (!ended) {
    const text = await Deno.readTextFile(`/proc/${child.pid}/status`)
      .catch(() => "");
    kib = Number(/^VmHWM:\s*(\d+)/m.exec(text)?.[1] ?? kib);
    await new Promise((done) => setTimeout(done, 20));
  }
  if ((await child.ended).code !== 0) throw new Error(args.join(" "));
  return kib / 1024;
}
