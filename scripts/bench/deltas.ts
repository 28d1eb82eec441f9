/**
 * Measures updates: bytes, requests and time, and the cost of the chunk index, with
 * zsync, casync, xdelta3 and `zstd --patch-from` as bounds where they are installed.
 */
import { walk } from "@std/fs/walk";
import { join, relative } from "@std/path";
import { orIfNotFound } from "../../lib/system/files.ts";
import { findProgram } from "../../lib/system/find_program.ts";
import { publish } from "../../lib/publish/publish.ts";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import { startNginx } from "../../tests/support/nginx.ts";
import { foundTools } from "../../tests/support/parts.ts";
import { startProxy } from "../../tests/support/proxy.ts";
import { type Registry, startRegistry } from "../../tests/support/registry.ts";
import {
  cleanEnvironment,
  makeQcow2,
  type Workspace,
  workspace,
} from "../../tests/support/workspace.ts";
import { BUNDLE_PATH, writeBundle } from "../bundle.ts";
import { runOrThrow } from "../guest/_programs.ts";
import {
  addReportSection,
  type MeasuredValues,
  measureInTurns,
} from "./measure.ts";
import { startThrottledNetwork } from "./throttled_network.ts";
import { removeIfExists } from "./transfer_bench.ts";
import { peakMemoryMib } from "./transfers.ts";
import { makeUpdateDisks } from "./update_images.ts";

const MIB = 1024 * 1024;
const LINK = { rate: 12 * MIB, isShared: true, roundTripMs: 40 };
const FORMATS: Record<string, string[]> = {
  plain: [],
  zlib: ["-c", "-o", "compression_type=zlib"],
  zstd: ["-c", "-o", "compression_type=zstd"],
  "zstd, 4k clusters": ["-c", "-o", "compression_type=zstd,cluster_size=4k"],
};
/** The update that is measured with other programs, too. */
const COMPARED_UPDATE = "a package in place";
/** The format that times are measured with. */
const TIMED_FORMAT = "zstd";
const MEMORY_MIB = [256, 2048];

/** Two versions of an image; the newer one is published. */
interface Pair {
  older: ImageFile;
  newer: ImageFile;
  work: Workspace;
  registry: Registry;
}

interface ImageFile {
  path: string;
  sha256: string;
  bytes: number;
}

/** Measures updates of images made from Debian's packages. */
export async function measureDeltas(): Promise<void> {
  if (!await writeBundle()) throw new Error("no dist/toolsmith.js");
  Deno.env.set("TOOLSMITH_ORAS", foundTools.oras!);
  const dir = await Deno.makeTempDir({ prefix: "toolsmith-deltas-" });
  try {
    const { base, updates } = await makeUpdateDisks(dir);
    const convert = async (disk: string, format: string) => {
      const image = join(dir, `${crypto.randomUUID()}.qcow2`);
      const args = ["convert", "-O", "qcow2", ...FORMATS[format], disk, image];
      await runOrThrow("qemu-img", { args });
      return image;
    };
    for (const format of Object.keys(FORMATS)) {
      const older = await convert(base, format);
      const rows: MeasuredValues[] = [];
      for (const [what, disk] of Object.entries(updates)) {
        const newer = await convert(disk, format);
        await using site = await publishPair(older, newer);
        const [bytes, requests] = await measureBytes(site.pair);
        rows.push({ name: `${what}, ${requests} requests`, values: [bytes] });
        if (what === COMPARED_UPDATE) {
          rows.push(...await measureRivals(dir, site.pair));
          if (format === TIMED_FORMAT) {
            await measureTimes(site.pair);
            await measureIndexCost(site.pair);
          }
        }
        await Deno.remove(newer);
      }
      addReportSection(`bytes of an update, ${format}`, rows, "× the image");
      await Deno.remove(older);
    }
    await measureMemory(dir);
  } finally {
    await removeIfExists(dir);
  }
}

async function publishPair(older: string, newer: string) {
  await using undo = new AsyncDisposableStack();
  const registry = undo.use(await startRegistry());
  const work = undo.use(await workspace());
  await publish(newer, `${registry.host}/o/i:2`, { intervalMs: 10 });
  const pair: Pair = {
    older: await readImageFile(older),
    newer: await readImageFile(newer),
    work,
    registry,
  };
  const all = undo.move();
  return { pair, [Symbol.asyncDispose]: () => all.disposeAsync() };
}

async function readImageFile(path: string): Promise<ImageFile> {
  const sha256 = await sha256OfChunks(readFileChunks(path), "runtime");
  return { path, sha256, bytes: (await Deno.stat(path)).size };
}

/** Names the newer version, at an address, in the workspace's manifest. */
function select({ work, newer }: Pair, host: string) {
  const qcow2 = `oci://${host}/o/i:2`;
  return work.manifest({ qcow2, qcow2_sha256: newer.sha256 });
}

const HYDRATE = ["run", "-A", BUNDLE_PATH, "hydrate", "--quiet"];

async function hydrate({ work }: Pair, args: string[] = []): Promise<void> {
  await runOrThrow(Deno.execPath(), {
    args: [...HYDRATE, ...args],
    cwd: work.dir,
    env: cleanEnvironment(),
  });
}

const forget = ({ work }: Pair) =>
  removeIfExists(join(work.dir, ".toolsmith/cache"));

/** Returns what an update receives, as a share of the image, and its requests. */
async function measureBytes(pair: Pair): Promise<[number, number]> {
  await using proxy = startProxy(pair.registry.host);
  await using wire = startThrottledNetwork(proxy.host);
  await select(pair, wire.host);
  await hydrate(pair, ["--base", pair.older.path]);
  await forget(pair);
  return [wire.received() / pair.newer.bytes, proxy.seen.length];
}

/** Measures the same update with other programs, without their indexes' headers. */
async function measureRivals(
  dir: string,
  { older, newer, registry }: Pair,
): Promise<MeasuredValues[]> {
  const out = join(dir, "delta");
  const run = (command: string, ...paths: string[]) => {
    const [program, ...flags] = command.split(" ");
    return runOrThrow(program, { args: [...flags, ...paths], cwd: dir });
  };
  const sizeOf = async (path: string) => (await Deno.stat(path)).size;
  const rivals: Record<string, () => Promise<number>> = {
    async "zstd --patch-from"() {
      const patch = `--patch-from=${older.path}`;
      await run("zstd -q -f --long=31", patch, newer.path, "-o", out);
      return await sizeOf(out);
    },
    async xdelta3() {
      const window = `${512 * MIB}`;
      const paths = ["-s", older.path, newer.path, out];
      await run("xdelta3 -f -e -B", window, ...paths);
      return await sizeOf(out);
    },
    async casync() {
      for (const { path } of [older, newer]) {
        await run("casync make", `--store=${path}.d`, `${path}.caibx`, path);
      }
      const stores = [`${older.path}.d`, `${newer.path}.d`] as const;
      return await bytesOfNewChunks(...stores) +
        await sizeOf(`${newer.path}.caibx`);
    },
    async zsync() {
      // The registry does not serve several ranges at once, as nginx does.
      await using nginx = await startNginx(registry.url);
      await using wire = startThrottledNetwork(new URL(nginx.url).host);
      const path = `/v2/o/i/blobs/sha256:${newer.sha256}`;
      const { body } = await fetch(`${nginx.url}${path}`);
      await body!.pipeTo(new WritableStream());
      const url = `http://${wire.host}${path}`;
      await run("zsyncmake -u", url, "-o", `${out}.zsync`, newer.path);
      await run("zsync -q -i", older.path, "-o", out, `${out}.zsync`);
      return wire.received() + await sizeOf(`${out}.zsync`);
    },
  };
  const rows: MeasuredValues[] = [];
  for (const [name, measure] of Object.entries(rivals)) {
    const [program] = name.split(" ");
    if (await findProgram(program)) {
      rows.push({ name, values: [await measure() / newer.bytes] });
    } else console.error(`skipping ${name}: apt-get install ${program}`);
    for (const suffix of ["", ".zsync"]) {
      await removeIfExists(`${out}${suffix}`);
    }
  }
  return rows;
}

/** Sums the chunks of a casync store that another one lacks. */
async function bytesOfNewChunks(older: string, newer: string) {
  let sum = 0;
  for await (const { path } of walk(newer, { includeDirs: false })) {
    const known = Deno.stat(join(older, relative(newer, path)));
    if (!await orIfNotFound(known)) sum += (await Deno.stat(path)).size;
  }
  return sum;
}

async function measureTimes(pair: Pair): Promise<void> {
  const { registry, older } = pair;
  const prepare = () => forget(pair);
  const whole = { name: "whole image", prepare, runOnce: () => hydrate(pair) };
  await using link = startThrottledNetwork(registry.host, LINK);
  await select(pair, link.host);
  await measureInTurns("update over 12 MiB/s and 40 ms", [whole, {
    name: "update",
    prepare,
    runOnce: () => hydrate(pair, ["--base", older.path]),
  }]);
  // Here the older image is in the cache, so that Toolsmith decides.
  await select(pair, registry.host);
  await measureInTurns("update from this host", [whole, {
    name: "older image in the cache",
    prepare: () => cacheOlder(pair),
    runOnce: () => hydrate(pair),
  }]);
}

/** Empties the cache, and adds the older image to it. */
async function cacheOlder(pair: Pair): Promise<void> {
  const { work, older, registry } = pair;
  await forget(pair);
  await work.manifest({ qcow2: older.path, qcow2_sha256: older.sha256 });
  await hydrate(pair);
  await select(pair, registry.host);
}

async function measureIndexCost({ newer, registry }: Pair): Promise<void> {
  const target = `${registry.host}/o/cost:1`;
  const empty = () => removeIfExists(join(registry.storage, "docker"));
  const run = (args: string[]) => async () => {
    await runOrThrow(Deno.execPath(), {
      args: ["run", "-A", BUNDLE_PATH, "publish", "--quiet", ...args]
        .concat(newer.path, target),
      env: { ...cleanEnvironment(), TOOLSMITH_ORAS: foundTools.oras! },
    });
  };
  await measureInTurns("publish", [
    { name: "--no-index", prepare: empty, runOnce: run(["--no-index"]) },
    { name: "with a chunk index", prepare: empty, runOnce: run([]) },
  ]);
}

/** Measures peak memory for images of random data; a MiB of them changed. */
async function measureMemory(dir: string): Promise<void> {
  const rows: MeasuredValues[] = [];
  for (const mib of MEMORY_MIB) {
    const [older, newer] = [join(dir, "older"), join(dir, "newer")];
    await makeQcow2(older, mib * MIB);
    await Deno.copyFile(older, newer);
    using file = await Deno.open(newer, { write: true });
    await file.seek(mib * MIB / 2, Deno.SeekMode.Start);
    await file.write(new Uint8Array(MIB).fill(1));
    await using site = await publishPair(older, newer);
    const { pair, pair: { work, registry } } = site;
    await select(pair, registry.host);
    const args = [...HYDRATE, "--base", older];
    const values = [await peakMemoryMib(work, args)];
    rows.push({ name: `update of ${mib} MiB`, values });
  }
  addReportSection("peak memory of an update", rows, "MiB");
}
