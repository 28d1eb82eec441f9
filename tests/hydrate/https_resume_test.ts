import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { hydrate, type HydrateResult } from "../../lib/hydrate/hydrate.ts";
import { parseManifest } from "../../lib/manifest/manifest.ts";
import {
  DURABLE_EXTENTS_FILE,
  PART_FILE_NAME,
  readPartRecord,
  WRITTEN_EXTENTS_FILE,
} from "../../lib/system/part_record.ts";
import { issueCertificate } from "../support/certificates.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { requires } from "../support/parts.ts";
import {
  rangeStart,
  startTlsServer,
  type TlsExchange,
  type TlsServer,
} from "../support/tls_server.ts";
import { makeQcow2 } from "../support/workspace.ts";

const { ignore } = requires("openssl", "qemuImg");
const CUT = 700_000;
const FILLED = 300_000;

/** The second run's response and the expected requests. */
interface Case {
  name: string;
  /** Changes files between the runs. @default nothing */
  meanwhile?: (staging: string) => Promise<void>;
  /** Answers the requests after the interruption. */
  answer: (exchange: TlsExchange, image: Uint8Array) => Promise<void>;
  /** The first byte of each request. */
  asked: number[];
  /** The resumed bytes of each transfer in the second run. */
  resumed: number[];
}

async function ranges(exchange: TlsExchange, image: Uint8Array) {
  const from = rangeStart(exchange);
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

/** Overwrites the first kept bytes. */
async function spoil(staging: string) {
  using file = await Deno.open(join(staging, PART_FILE_NAME), { write: true });
  await file.write(new Uint8Array(10).fill(9));
}

/** As after a killed `oras pull`: the record names the file that oras wrote. */
async function nameFilled(staging: string) {
  const bytes = await Deno.readFile(join(staging, PART_FILE_NAME));
  await Deno.writeFile(join(staging, "filled"), bytes.subarray(0, FILLED));
  const path = join(staging, DURABLE_EXTENTS_FILE);
  const record = JSON.parse(await Deno.readTextFile(path));
  record.filled = "filled";
  await Deno.writeTextFile(path, JSON.stringify(record));
}

async function whole(exchange: TlsExchange, image: Uint8Array) {
  await exchange.head(200, { "content-length": image.length });
  await exchange.body(image);
}

const CASES: Case[] = [
  {
    name: "requests only the missing bytes when the server supports ranges",
    answer: ranges,
    asked: [0, CUT],
    resumed: [CUT],
  },
  {
    name: "duplicates no bytes when the server ignores the range",
    answer: whole,
    asked: [0, CUT],
    resumed: [CUT],
  },
  {
    name: "requests the whole file after 416 Range Not Satisfiable",
    answer: (exchange, image) =>
      rangeStart(exchange) > 0
        ? exchange.head(416, { "content-length": 0 })
        : whole(exchange, image),
    asked: [0, CUT, 0],
    resumed: [CUT],
  },
  {
    name: "downloads the whole image again when the part file is damaged",
    meanwhile: spoil,
    answer: ranges,
    asked: [0, CUT, 0],
    resumed: [CUT, 0],
  },
  {
    name: "restarts when the range belongs to a file of another size",
    async answer(exchange, image) {
      const from = rangeStart(exchange);
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
    name: "continues from the file that a killed oras wrote",
    meanwhile: nameFilled,
    answer: ranges,
    asked: [0, FILLED],
    resumed: [FILLED],
  },
];

/** An interrupted download. */
interface CutDownload {
  image: Uint8Array<ArrayBuffer>;
  /** The staging directory with the partial download. */
  staging: string;
  server: TlsServer;
  /** The events of the last run. */
  events: ToolsmithEvent[];
  /** Runs hydrate again. */
  run: () => Promise<HydrateResult>;
}

/** Runs a test after a first run that was interrupted. */
function testCut(
  name: string,
  answer: (exchange: TlsExchange, cut: CutDownload) => Promise<void>,
  body: (cut: CutDownload) => Promise<void>,
) {
  Deno.test({
    name: `hydrate, resuming an interrupted download, ${name}`,
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
      await expectFailure("transfer_interrupted", run);
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
    assertEquals(server.requests.map(rangeStart), asked);
    const starts = events.filter(({ type }) => type === "download_start");
    assertEquals(starts.map((it) => "resumed" in it && it.resumed), resumed);
    assertEquals(await Deno.readFile(placed.path), image);
  });
}

/** Bodies that differ in length from the first response. */
const OTHERS: Record<string, { more: number; says: boolean }> = {
  "fewer bytes and no Content-Length": { more: -1, says: false },
  "fewer bytes": { more: -1, says: true },
  "more bytes": { more: 1, says: true },
};

for (const [name, { more, says }] of Object.entries(OTHERS)) {
  testCut(
    `rejects a second response with ${name} after discarding wrong kept bytes`,
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
      await expectFailure("transfer_interrupted", run);
      assertEquals(await Deno.readFile((await run()).path), image);
    },
  );
}

testCut(
  "keeps what a second response sent before it broke off, after discarding wrong kept bytes",
  async (it, { image }) => {
    if (it.number !== 3) return await ranges(it, image);
    await it.head(200, { "content-length": image.length });
    await it.body(image.subarray(0, FILLED));
  },
  async ({ image, staging, run, server }) => {
    await spoil(staging);
    await expectFailure("transfer_interrupted", run);
    assertEquals((await readPartRecord(staging))?.bytes, FILLED);
    assertEquals(await Deno.readFile((await run()).path), image);
    assertEquals(server.requests.map(rangeStart), [0, CUT, 0, FILLED]);
  },
);

testCut(
  "starts again after a server that states no size has broken off, too",
  async (it, { image }) => {
    await it.head(200, { "transfer-encoding": "chunked" });
    const text = (line: string) => new TextEncoder().encode(`${line}\r\n`);
    await it.body(text(image.length.toString(16)));
    if (it.number === 2) return await it.body(image.subarray(0, CUT));
    await it.body(image);
    await it.body(text("\r\n0\r\n"));
  },
  async ({ image, run }) => {
    await expectFailure("transfer_interrupted", run);
    assertEquals(await Deno.readFile((await run()).path), image);
    // Removes the partial download of the first run.
    assertEquals((await run()).outcome, "cached");
  },
);

testCut(
  "downloads everything when the part records vanish before the response",
  async (it, { image, staging }) => {
    if (it.number === 2) {
      await Deno.remove(join(staging, DURABLE_EXTENTS_FILE));
      await Deno.remove(join(staging, WRITTEN_EXTENTS_FILE)).catch(() => {});
    }
    await ranges(it, image);
  },
  async ({ image, run, server }) => {
    assertEquals(await Deno.readFile((await run()).path), image);
    assertEquals(server.requests.map(rangeStart), [0, CUT, 0]);
  },
);

function isStaging({ name }: Deno.DirEntry): boolean {
  return name.startsWith(".staging");
}
