import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { hydrate, type HydrateResult } from "../../lib/hydrate/hydrate.ts";
import { parseManifest } from "../../lib/manifest/manifest.ts";
import {
  PART,
  PART_JOURNAL,
  PART_RECORD,
  readPartRecord,
} from "../../lib/system/part_record.ts";
import { issueCertificate } from "../support/certificates.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { needs } from "../support/parts.ts";
import {
  type Exchange,
  fromOf,
  startTlsServer,
  type TlsServer,
} from "../support/tls_server.ts";
import { makeQcow2 } from "../support/workspace.ts";

const { ignore } = needs("openssl", "qemuImg");
const CUT = 700_000;
const FILLED = 300_000;

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

/** The first kept bytes are others by now. */
async function spoil(staging: string) {
  using file = await Deno.open(join(staging, PART), { write: true });
  await file.write(new Uint8Array(10).fill(9));
}

/** An earlier `oras pull` was killed: the record names the file that it filled. */
async function nameFilled(staging: string) {
  const bytes = await Deno.readFile(join(staging, PART));
  await Deno.writeFile(join(staging, "filled"), bytes.subarray(0, FILLED));
  const path = join(staging, PART_RECORD);
  const record = JSON.parse(await Deno.readTextFile(path));
  record.filled = "filled";
  await Deno.writeTextFile(path, JSON.stringify(record));
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
    meanwhile: spoil,
    answer: ranges,
    asked: [0, CUT, 0],
    resumed: [CUT, 0],
  },
  {
    name: "the rest of a file of another size is not taken for the rest of it",
    async answer(exchange, image) {
      const from = fromOf(exchange);
      if (from === 0) return await whole(exchange, image);
      const length = image.length + 10;
      await exchange.head(206, {
        "content-length": length - from,
        "content-range": `bytes ${from}-${length - 1}/${length}`,
      });
      await exchange.body(image.subarray(from));
    },
    asked: [0, CUT, 0],
    resumed: [CUT],
  },
  {
    name: "what a killed oras has filled is gone on with where that ends",
    meanwhile: nameFilled,
    answer: ranges,
    asked: [0, FILLED],
    resumed: [FILLED],
  },
];

/** A download that was cut, and what can be done with it. */
interface CutDownload {
  image: Uint8Array<ArrayBuffer>;
  /** The directory with what has arrived. */
  staging: string;
  server: TlsServer;
  /** The events of the last run. */
  events: ToolsmithEvent[];
  /** Hydrates once more. */
  run: () => Promise<HydrateResult>;
}

/** Runs a test after a first run that was cut. */
function testCut(
  name: string,
  answer: (exchange: Exchange, cut: CutDownload) => Promise<void>,
  body: (cut: CutDownload) => Promise<void>,
) {
  Deno.test({
    name: `a download that was cut goes on in the next run: ${name}`,
    ignore,
    async fn() {
      await using dir = await temporaryDir();
      const certificate = await issueCertificate(dir.path);
      const { path, sha256 } = await makeQcow2(join(dir.path, "image.qcow2"));
      const image = await Deno.readFile(path);
      await using server = await startTlsServer(certificate, async (it) => {
        if (it.number > 1) return await answer(it, cut);
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
      const run = () => {
        events.length = 0;
        return hydrate(manifest, {
          ...{ cache, caFile: certificate.caFile, retries: 0 },
          onEvent: (event) => events.push(event),
        });
      };
      await failure("transfer_interrupted", run);
      const [staging] = [...Deno.readDirSync(join(cache, "demo"))]
        .filter(({ isDirectory }) => isDirectory)
        .map(({ name }) => join(cache, "demo", name));
      assertEquals((await readPartRecord(staging))?.bytes, CUT);
      const cut = { image, staging, server, events, run };
      await body(cut);
      assert(!Deno.readDirSync(join(cache, "demo")).some(isStaging));
    },
  });
}

for (const { name, meanwhile, answer, asked, resumed } of CASES) {
  testCut(name, (it, { image }) => answer(it, image), async (cut) => {
    const { image, staging, server, events, run } = cut;
    await meanwhile?.(staging);
    const placed = await run();
    assertEquals([placed.outcome, placed.bytes], ["downloaded", image.length]);
    assertEquals(server.requests.map(fromOf), asked);
    const starts = events.filter(({ type }) => type === "download_start");
    assertEquals(starts.map((it) => "resumed" in it && it.resumed), resumed);
    assertEquals(await Deno.readFile(placed.path), image);
  });
}

/** What a server may send once it is asked for all. */
const OTHERS: Record<string, { more: number; says: boolean }> = {
  "less, of no size": { more: -1, says: false },
  "less": { more: -1, says: true },
  "more": { more: 1, says: true },
};

for (const [name, { more, says }] of Object.entries(OTHERS)) {
  testCut(
    `kept bytes that are wrong do not come once more as ${name}`,
    async (it, { image }) => {
      if (it.number !== 3) return await ranges(it, image);
      const length = image.length + more;
      await it.head(200, says ? { "content-length": length } : {});
      const bytes = new Uint8Array(length);
      bytes.set(image.subarray(0, length));
      await it.body(bytes);
    },
    async ({ image, staging, run }) => {
      await spoil(staging);
      await failure("transfer_interrupted", run);
      assertEquals(await Deno.readFile((await run()).path), image);
    },
  );
}

testCut(
  "what is gone when the rest arrives is missed, and comes with the next",
  async (it, { image, staging }) => {
    if (it.number === 2) {
      await Deno.remove(join(staging, PART_RECORD));
      await Deno.remove(join(staging, PART_JOURNAL)).catch(() => {});
    }
    await ranges(it, image);
  },
  async ({ image, run }) => {
    await failure("transfer_interrupted", run);
    assertEquals(await Deno.readFile((await run()).path), image);
  },
);

function isStaging({ name }: Deno.DirEntry): boolean {
  return name.startsWith(".staging");
}
