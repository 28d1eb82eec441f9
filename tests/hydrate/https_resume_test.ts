import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { hydrate } from "../../lib/hydrate/hydrate.ts";
import { parseManifest } from "../../lib/manifest/manifest.ts";
import { PART, readPartRecord } from "../../lib/system/part_record.ts";
import { issueCertificate } from "../support/certificates.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { needs } from "../support/parts.ts";
import { type Exchange, startTlsServer } from "../support/tls_server.ts";
import { makeQcow2 } from "../support/workspace.ts";

const { ignore } = needs("openssl", "qemuImg");
const CUT = 700_000;

/** What the second answer is, and what the second run does with it. */
interface Case {
  name: string;
  /** What happens between the runs. @default nothing */
  meanwhile?: (staging: string) => Promise<void>;
  /** Answers what comes after the cut. */
  answer: (exchange: Exchange, image: Uint8Array) => Promise<void>;
  /** The positions that requests ask from. */
  asked: number[];
  /** What each transfer of the second run begins with. */
  resumed: number[];
}

const fromOf = ({ headers }: Exchange) =>
  Number(/^bytes=(\d+)-$/.exec(headers.get("range") ?? "")?.[1] ?? 0);

async function ranges(exchange: Exchange, image: Uint8Array) {
  const from = fromOf(exchange);
  const { length } = image;
  if (from >= length) return await exchange.head(416, { "content-length": 0 });
  await exchange.head(from > 0 ? 206 : 200, {
    "content-length": length - from,
    ...from > 0
      ? { "content-range": `bytes ${from}-${length - 1}/${length}` }
      : {},
  });
  await exchange.body(image.subarray(from));
}

async function whole(exchange: Exchange, image: Uint8Array) {
  await exchange.head(200, { "content-length": image.length });
  await exchange.body(image);
}

const CASES: Case[] = [
  {
    name: "a server with ranges sends the rest alone",
    answer: ranges,
    asked: [0, CUT],
    resumed: [CUT],
  },
  {
    name: "a server without ranges sends all, and nothing is doubled",
    answer: whole,
    asked: [0, CUT],
    resumed: [CUT],
  },
  {
    name: "a server whose file is shorter by now is asked for all of it",
    answer: (exchange, image) =>
      fromOf(exchange) > 0
        ? exchange.head(416, { "content-length": 0 })
        : whole(exchange, image),
    asked: [0, CUT, 0],
    resumed: [CUT],
  },
  {
    name: "kept bytes that are wrong are dropped, and come once more",
    async meanwhile(staging) {
      using file = await Deno.open(join(staging, PART), { write: true });
      await file.write(new Uint8Array(10).fill(9));
    },
    answer: ranges,
    asked: [0, CUT, 0],
    resumed: [CUT, 0],
  },
];

for (const { name, meanwhile, answer, asked, resumed } of CASES) {
  Deno.test({
    name: `a download that was cut goes on in the next run: ${name}`,
    ignore,
    async fn() {
      await using dir = await temporaryDir();
      const certificate = await issueCertificate(dir.path);
      const { path, sha256 } = await makeQcow2(join(dir.path, "image.qcow2"));
      const image = await Deno.readFile(path);
      await using server = await startTlsServer(certificate, async (it) => {
        if (it.number > 1) return await answer(it, image);
        await it.head(200, { "content-length": image.length });
        await it.body(image.subarray(0, CUT));
      });
      const text = JSON.stringify({
        image: {
          ...{ name: "demo", tarball: "", sha256: "" },
          ...{ qcow2: `${server.url}/image.qcow2`, qcow2_sha256: sha256 },
        },
        ...{ tools: {}, operations: [] },
      });
      const manifest = parseManifest(text, join(dir.path, "tools.json"));
      const cache = join(dir.path, "cache");
      const events: ToolsmithEvent[] = [];
      const run = () =>
        hydrate(manifest, {
          ...{ cache, caFile: certificate.caFile, retries: 0 },
          onEvent: (event) => events.push(event),
        });
      await failure("transfer_interrupted", run);
      const [staging] = [...Deno.readDirSync(join(cache, "demo"))]
        .filter(({ isDirectory }) => isDirectory)
        .map(({ name }) => join(cache, "demo", name));
      assertEquals((await readPartRecord(staging))?.bytes, CUT);
      await meanwhile?.(staging);
      events.length = 0;
      const placed = await run();
      assertEquals([placed.outcome, placed.bytes], [
        "downloaded",
        image.length,
      ]);
      assertEquals(server.requests.map(fromOf), asked);
      const starts = events.filter(({ type }) => type === "download_start");
      assertEquals(starts.map((it) => "resumed" in it && it.resumed), resumed);
      assertEquals(await Deno.readFile(placed.path), image);
      assert(!Deno.readDirSync(join(cache, "demo")).some(isStaging));
    },
  });
}

function isStaging({ name }: Deno.DirEntry): boolean {
  return name.startsWith(".staging");
}
