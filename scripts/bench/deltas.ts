/**
 * Measures updates: bytes, requests and time, and the cost of the chunk index, with
 * zsync, casync, xdelta3 and `zstd --patch-from` as bounds where they are installed.
 */
import { join } from "@std/path";
import { findProgram } from "../../lib/system/program_files.ts";
import { publish } from "../../lib/publish/publish.ts";
import { runProcess } from "../../lib/system/process.ts";
import { foundTools } from "../../tests/support/parts.ts";
import { startProxy } from "../../tests/support/proxy.ts";
import { type Registry, startRegistry } from "../../tests/support/registry.ts";
import {
  cleanEnvironment,
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
import { makeUpdateDisks } from "./update_images.ts";

const MIB = 1024 * 1024;
const LINK = { rate: 12 * MIB, roundTripMs: 40 };
const FORMATS: Record<string, string[]> = {
  plain: [],
  zlib: ["-c", "-o", "compression_type=zlib"],
  zstd: ["-c", "-o", "compression_type=zstd"],
  "zstd, 4k clusters": ["-c", "-o", "compression_type=zstd,cluster_size=4k"],
};
/** The update that times are measured with. */
const TIMED = ["zstd", "a package in place"] as const;

/** Two versions of an image, both published. */
interface Pair {
  older: string;
  newer: string;
  bytes: number;
  work: Workspace;
  registry: Registry;
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
        if (format === TIMED[0] && what === TIMED[1]) {
          rows.push(...await measureRivals(dir, site.pair));
          await measureTimes(site.pair);
          await measureIndexCost(site.pair);
        }
        await Deno.remove(newer);
      }
      addReportSection(`bytes of an update, ${format}`, rows, "× the image");
      await Deno.remove(older);
    }
  } finally {
    await removeIfExists(dir);
  }
}

async function publishPair(older: string, newer: string) {
  await using undo = new AsyncDisposableStack();
  const registry = undo.use(await startRegistry());
  const work = undo.use(await workspace());
  await publish(newer, `${registry.host}/o/i:2`, { intervalMs: 10 });
  const { size: bytes } = await Deno.stat(newer);
  const all = undo.move();
  const pair: Pair = { older, newer, bytes, work, registry };
  return { pair, [Symbol.asyncDispose]: () => all.disposeAsync() };
}

/** Hydrates the newer version from an address. */
async function hydrate(
  { work, newer }: Pair,
  host: string,
  args: string[] = [],
): Promise<void> {
  const { stdout } = await runOrThrow("sha256sum", { args: [newer] });
  const sha256 = stdout.replace(/^\\/, "").slice(0, 64);
  await work.manifest({ qcow2: `oci://${host}/o/i:2`, qcow2_sha256: sha256 });
  await runOrThrow(Deno.execPath(), {
    args: ["run", "-A", BUNDLE_PATH, "hydrate", "--quiet", ...args],
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
  await hydrate(pair, wire.host, ["--base", pair.older]);
  await forget(pair);
  const requests = proxy.seen.filter(({ status }) => status === 206).length;
  return [wire.received() / pair.bytes, requests];
}

/** Measures the same update with other programs, without headers and indexes. */
async function measureRivals(
  dir: string,
  { older, newer, bytes }: Pair,
): Promise<MeasuredValues[]> {
  const out = join(dir, "delta");
  const rivals: Record<string, string[][]> = {
    "zstd --patch-from": [
      [
        "zstd",
        "-q",
        "-f",
        "--long=31",
        `--patch-from=${older}`,
        newer,
        "-o",
        out,
      ],
    ],
    xdelta3: [[
      "xdelta3",
      "-f",
      "-e",
      "-B",
      `${MIB * 512}`,
      "-s",
      older,
      newer,
      out,
    ]],
    casync: [
      ["casync", "make", `--store=${out}.old`, `${out}.old.caibx`, older],
      ["casync", "make", `--store=${out}.new`, `${out}.new.caibx`, newer],
    ],
    zsync: [[
      "zsyncmake",
      "-u",
      "http://127.0.0.1/i",
      "-o",
      `${out}.zsync`,
      newer,
    ]],
  };
  const rows: MeasuredValues[] = [];
  for (const [name, commands] of Object.entries(rivals)) {
    if (!await findProgram(commands[0][0])) {
      console.error(`skipping ${name}: apt-get install ${name.split(" ")[0]}`);
      continue;
    }
    for (const [program, ...args] of commands) {
      await runOrThrow(program, { args, cwd: dir });
    }
    const received = name === "casync"
      ? await bytesOfNewChunks(`${out}.old`, `${out}.new`)
      : name === "zsync"
      ? await bytesOfZsync(`${out}.zsync`, { older, newer })
      : (await Deno.stat(out)).size;
    rows.push({ name, values: [received / bytes] });
  }
  return rows;
}

/** Sums the chunks of a casync store that another one lacks. */
async function bytesOfNewChunks(older: string, newer: string) {
  let sum = 0;
  for await (const { name, isDirectory } of Deno.readDir(newer)) {
    if (!isDirectory) continue;
    for await (const chunk of Deno.readDir(join(newer, name))) {
      const path = join(name, chunk.name);
      const known = await Deno.stat(join(older, path)).catch(() => undefined);
      if (!known) sum += (await Deno.stat(join(newer, path))).size;
    }
  }
  return sum;
}

/** Runs zsync against a server with ranges, and counts what that sends. */
async function bytesOfZsync(
  control: string,
  { older, newer }: { older: string; newer: string },
): Promise<number> {
  let sent = 0;
  using file = await Deno.open(newer);
  const { size } = await file.stat();
  await using server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    async (request) => {
      const range = request.headers.get("range") ?? `bytes=0-${size - 1}`;
      const [, from, last] = /(\d+)-(\d+)/.exec(range)!.map(Number);
      const bytes = new Uint8Array(last - from + 1);
      await file.seek(from, Deno.SeekMode.Start);
      for (let at = 0; at < bytes.length;) {
        at += await file.read(bytes.subarray(at)) ?? Infinity;
      }
      sent += bytes.length;
      const headers = { "content-range": `bytes ${from}-${last}/${size}` };
      return new Response(bytes, { status: 206, headers });
    },
  );
  const text = await Deno.readFile(control);
  const url = `http://127.0.0.1:${server.addr.port}/i`;
  // The address is in the header, which is Latin-1 text before binary sums.
  const latin1 = new TextDecoder("latin1").decode(text)
    .replace("http://127.0.0.1/i", url);
  const bytes = Uint8Array.from(latin1, (char) => char.charCodeAt(0));
  await Deno.writeFile(control, bytes);
  const args = ["-q", "-i", older, "-o", `${control}.out`, control];
  await runProcess("zsync", { args });
  return sent + (await Deno.stat(control)).size;
}

async function measureTimes(pair: Pair): Promise<void> {
  const { registry: { host }, older } = pair;
  await using link = startThrottledNetwork(host, LINK);
  const prepare = () => forget(pair);
  const contenders = (host: string) => [
    { name: "whole image", prepare, runOnce: () => hydrate(pair, host) },
    {
      name: "update",
      prepare,
      runOnce: () => hydrate(pair, host, ["--base", older]),
    },
  ];
  await measureInTurns("update over 12 MiB/s and 40 ms", contenders(link.host));
  // Here the older image is in the cache, so that Toolsmith decides.
  const [whole] = contenders(host);
  await measureInTurns("update from this host", [whole, {
    name: "older image in the cache",
    prepare: () => cacheOlder(pair),
    runOnce: () => hydrate(pair, host),
  }]);
}

/** Empties the cache, and adds the older image to it. */
async function cacheOlder(pair: Pair): Promise<void> {
  await forget(pair);
  const { work, older } = pair;
  const { stdout } = await runOrThrow("sha256sum", { args: [older] });
  await work.manifest({ qcow2: older, qcow2_sha256: stdout.slice(0, 64) });
  await runOrThrow(Deno.execPath(), {
    args: ["run", "-A", BUNDLE_PATH, "hydrate", "--quiet"],
    cwd: work.dir,
    env: cleanEnvironment(),
  });
}

async function measureIndexCost({ newer, registry }: Pair): Promise<void> {
  const target = `${registry.host}/o/cost:1`;
  const empty = () => removeIfExists(join(registry.storage, "docker"));
  const run = (args: string[]) => async () => {
    await runOrThrow(Deno.execPath(), {
      args: ["run", "-A", BUNDLE_PATH, "publish", "--quiet", ...args]
        .concat(newer, target),
      env: { ...cleanEnvironment(), TOOLSMITH_ORAS: foundTools.oras! },
    });
  };
  await measureInTurns("publish", [
    { name: "--no-index", prepare: empty, runOnce: run(["--no-index"]) },
    { name: "with a chunk index", prepare: empty, runOnce: run([]) },
  ]);
}
