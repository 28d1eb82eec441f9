/**
 * Getting an image, beside what else gets one.
 *
 * @module
 */
import { fileChunks, sha256 } from "../../lib/system/digest.ts";
import { spawn } from "../../lib/system/process.ts";
import { parts } from "../../tests/support/parts.ts";
import { cleanEnvironment } from "../../tests/support/workspace.ts";
import { cutRows, fleetRows } from "./counted.ts";
import { compare, record, type Rival } from "./measure.ts";
import { openSite, remove, type Site } from "./site.ts";
import { RATE, startWire, type WireOptions } from "./wire.ts";

/** Who computes digests, by what a reader knows. */
const ENGINES = [
  ["the runtime", "runtime"],
  ["@std/crypto", "std"],
] as const;

/** What is measured of transfers, by name. */
const ROWS = {
  cold: coldRows,
  slow: slowRows,
  cut: cutRows,
  crowd: crowdRows,
  warm: warmRows,
};

/**
 * Measures transfers.
 *
 * @param mib Size of the image, in MiB.
 * @param wants Tells what to measure: `cold`, `slow`, `cut`, `crowd`, `warm`,
 * `fleet`.
 */
export async function transferRows(
  mib: number,
  wants: (name: string) => boolean,
) {
  const rows = Object.entries(ROWS).filter(([name]) => wants(name));
  if (rows.length > 0) {
    await using site = await openSite(mib);
    for (const [, measure] of rows) await measure(site);
  }
  if (!wants("fleet")) return;
  // What is asked of a registry depends on no size.
  await using small = await openSite(Math.min(mib, 128));
  await fleetRows(small);
}

/**
 * Measures memory.
 *
 * @param mib Size of the image, in MiB.
 */
export async function memoryRows(mib: number) {
  await using site = await openSite(mib);
  await site.forget();
  const idle = ["eval", "await new Promise((done) => setTimeout(done, 500))"];
  record(`peak memory, first hydrate of ${mib} MiB`, [
    { name: "deno, doing nothing", values: [await peakMib(site, idle)] },
    {
      name: "toolsmith hydrate",
      values: [await peakMib(site, site.hydrate())],
    },
  ], "MiB");
}

/** Into memory, where no program waits for a disk, and to the disk. */
async function coldRows(site: Site) {
  const options = { dir: "/dev/shm", prefix: "toolsmith-bench-" };
  const memory = await Deno.makeTempDir(options).catch(() => undefined);
  if (memory !== undefined) {
    await coldInto(site, memory).finally(() => remove(memory));
  }
  await coldInto(site, site.dir);
}

async function coldInto(site: Site, into: string) {
  const { mib, reference, dir, must } = site;
  const inMemory = into !== dir;
  const out = `${into}/out`;
  const pull = ["pull", "--plain-http", "--no-tty", "-o", out, reference];
  const blob = `http://${
    reference.split("/")[0]
  }/v2/o/i/blobs/sha256:${site.sha256}`;
  const env = { ...cleanEnvironment(), TOOLSMITH_CACHE: out };
  const rivals: Rival[] = [
    { name: "oras pull", once: () => must(parts.oras!, pull) },
    ...[4, 1].map((connections): Rival => ({
      name: `toolsmith hydrate, ${connections} connections`,
      once: () => must(Deno.execPath(), site.hydrate({ connections }), { env }),
    })),
    {
      name: "toolsmith hydrate, TOOLSMITH_DIGEST=std",
      once: () =>
        must(Deno.execPath(), site.hydrate(), {
          env: { ...env, TOOLSMITH_DIGEST: "std" },
        }),
    },
    {
      name: "oras pull && sha256sum && mv",
      async once() {
        await must(parts.oras!, pull);
        await must("sha256sum", [`${out}/image.qcow2`]);
        await Deno.rename(`${out}/image.qcow2`, `${out}/i`);
      },
    },
    { name: "curl", once: () => must("curl", ["-sf", "-o", out, blob]) },
    ...ENGINES.map(([name, engine]): Rival => ({
      name: `SHA-256 alone, ${name}`,
      once: async () =>
        void await sha256(fileChunks(`${dir}/image.qcow2`), engine),
    })),
  ];
  if (!inMemory) {
    rivals.splice(1, 0, {
      name: "oras pull, and the sync of it",
      async once() {
        await must(parts.oras!, pull);
        using file = await Deno.open(`${out}/image.qcow2`);
        await file.syncData();
      },
    });
  }
  if (parts.skopeo) {
    const args = ["copy", "-q", "--src-tls-verify=false"];
    const copy = [...args, `docker://${reference}`, `dir:${out}`];
    rivals.push({
      name: "skopeo copy",
      once: () => must(parts.skopeo!, copy),
    });
  }
  const where = inMemory ? ", into memory" : "";
  await compare(
    `first hydrate of ${mib} MiB, loopback${where}`,
    rivals.map((rival) => ({ ...rival, before: () => remove(out) })),
  );
  await remove(out);
}

/** The same, over networks that hold each connection back. */
async function slowRows(site: Site) {
  const networks: [string, WireOptions][] = [
    ["60 MiB/s a connection", { rate: RATE }],
    ["60 MiB/s a connection, round trips of 20 ms", {
      rate: RATE,
      roundTripMs: 20,
    }],
  ];
  for (const [title, options] of networks) {
    await using wire = startWire(site.host, options);
    await site.name(wire.host);
    const pull = ["pull", "--plain-http", "--no-tty", "-o", "pulled"];
    await compare(`first hydrate of ${site.mib} MiB, ${title}`, [
      ...[4, 1].map((connections): Rival => ({
        name: `toolsmith hydrate, ${connections} connections`,
        before: site.forget,
        once: async () =>
          await site.must(Deno.execPath(), site.hydrate({ connections })),
      })),
      {
        name: "oras pull",
        before: () => remove(`${site.dir}/pulled`),
        once: () => site.must(parts.oras!, [...pull, `${wire.host}/o/i:1`]),
      },
    ]);
  }
  await site.name(site.host);
}

async function crowdRows(site: Site) {
  const args = site.hydrate();
  const crowd = (count: number) => async () => {
    const one = () => site.must(Deno.execPath(), args);
    await Promise.all(Array.from({ length: count }, one));
  };
  await compare(`first hydrate of ${site.mib} MiB, several at once`, [
    { name: "one", before: site.forget, once: crowd(1) },
    { name: "eight", before: site.forget, once: crowd(8) },
  ]);
}

async function warmRows(site: Site) {
  const args = site.hydrate();
  await site.must(Deno.execPath(), args);
  await compare(`hydrate of ${site.mib} MiB that are cached`, [
    {
      name: "deno eval 0",
      once: () => site.must(Deno.execPath(), ["eval", "0"]),
    },
    {
      name: "toolsmith hydrate",
      once: () => site.must(Deno.execPath(), args),
    },
    {
      name: "sha256sum",
      once: () => site.must("sha256sum", ["image.qcow2"]),
    },
  ]);
}

/** The most memory that a process has had, as Linux counts it. */
async function peakMib(site: Site, args: string[]): Promise<number> {
  const child = spawn(Deno.execPath(), {
    args,
    cwd: site.dir,
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
