/**
 * Updates from an HTTPS server with a chunk index beside the image.
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import {
  formatChunkIndex,
  readFileRecords,
} from "../../lib/delta/chunk_index.ts";
import { RECORD_BYTES } from "../../lib/delta/chunker.ts";
import {
  readFileChunks,
  sha256OfChunks,
  sha256ToDigest,
} from "../../lib/system/digest.ts";
import { sleep } from "../../lib/system/time.ts";
import { certificateOfFile } from "../support/certificates.ts";
import { temporaryDir } from "../support/directory.ts";
import { requires } from "../support/parts.ts";
import { replaceMethod } from "../support/replace_method.ts";
import { hydrateWorkspace } from "../support/registry_hydrate.ts";
import { startTlsServer, type TlsExchange } from "../support/tls_server.ts";
import { makeQcow2, workspace } from "../support/workspace.ts";

const { ignore } = requires("openssl", "qemuImg");
const certificate = certificateOfFile(ignore);
const MIB = 1024 * 1024;
const CHANGED = 200_000;

let older: string;
let newer: Uint8Array<ArrayBuffer>;
let sha256: string;
let records: Uint8Array<ArrayBuffer>;
let undo: AsyncDisposableStack;
Deno.test.beforeAll(async () => {
  undo = new AsyncDisposableStack();
  if (ignore) return;
  const { path: dir } = undo.use(await temporaryDir());
  older = join(dir, "older.qcow2");
  await makeQcow2(older, 64 * MIB);
  newer = await Deno.readFile(older);
  newer.fill(3, 40 * MIB, 40 * MIB + CHANGED);
  const path = join(dir, "newer.qcow2");
  await Deno.writeFile(path, newer);
  sha256 = await sha256OfChunks(readFileChunks(path));
  using file = await Deno.open(path);
  const all = await Array.fromAsync(readFileRecords(file, {}));
  records = await new Blob(all as BlobPart[]).bytes();
});
Deno.test.afterAll(() => undo.disposeAsync());

/** Sends the requested bytes of a file. */
async function sendRange(
  exchange: TlsExchange,
  file: Uint8Array<ArrayBuffer>,
) {
  const { length } = file;
  const [, from, last] =
    /^bytes=(\d+)-(\d*)$/.exec(exchange.headers.get("range") ?? "") ?? [];
  const start = Number(from ?? 0);
  const end = last ? Math.min(Number(last) + 1, length) : length;
  await exchange.head(from ? 206 : 200, {
    "content-length": end - start,
    ...from && { "content-range": `bytes ${from}-${end - 1}/${length}` },
  });
  await exchange.body(file.subarray(start, end));
}

interface Site {
  /** Answers a request for the image. @default {sendRange} */
  image?: (exchange: TlsExchange) => Promise<void>;
  /** What is beside the image. @default {undefined} 404 */
  index?: Uint8Array<ArrayBuffer>;
  /** Sends the index. @default {sendRange} */
  sendIndex?: typeof sendRange;
  stallTimeoutMs?: number;
}

/** Hydrates from a server with the older image as the base, and compares. */
async function update({ image, index, sendIndex, stallTimeoutMs }: Site) {
  await using server = await startTlsServer(certificate(), async (exchange) => {
    if (!exchange.path.startsWith("/a.qcow2.chunks?")) {
      return await (image ?? ((it) => sendRange(it, newer)))(exchange);
    }
    if (index) return await (sendIndex ?? sendRange)(exchange, index);
    await exchange.head(404, { "content-length": 0 });
  });
  await using work = await workspace();
  const qcow2 = `${server.url}/a.qcow2?sig=1`;
  await work.manifest({ qcow2, qcow2_sha256: sha256 });
  const { caFile } = certificate();
  const options = { base: older, caFile, stallTimeoutMs };
  const run = await hydrateWorkspace(work.dir, options);
  assertEquals(run.error, undefined);
  const chunks = readFileChunks(run.result!.path);
  assertEquals(await sha256OfChunks(chunks), sha256);
  return { ...run, requests: server.requests };
}

const goodIndex = () =>
  formatChunkIndex({
    ...{ size: newer.length, digest: sha256ToDigest(sha256), records },
  });

/** Has the first two chunks in the wrong order. */
const lyingIndex = () => {
  const lie = records.slice();
  lie.copyWithin(0, RECORD_BYTES, 2 * RECORD_BYTES);
  lie.set(records.subarray(0, RECORD_BYTES), RECORD_BYTES);
  const index = { size: newer.length, digest: sha256ToDigest(sha256) };
  return formatChunkIndex({ ...index, records: lie });
};

Deno.test({
  name: "hydrate updates an https image with the chunk index beside it",
  ignore,
  async fn() {
    const { of, requests } = await update({ index: await goodIndex() });
    const [{ bytes }] = of("update_start");
    assert(bytes >= CHANGED && bytes < CHANGED + 200_000, `${bytes}`);
    assertEquals(of("download_end")[0].bytes, bytes);
    // The default of four is for registries.
    assertEquals(of("download_start")[0].connections, 1);
    // The image's first bytes, the index, and one gap.
    assertEquals(requests.map(({ path }) => path), [
      "/a.qcow2?sig=1",
      "/a.qcow2.chunks?sig=1",
      "/a.qcow2?sig=1",
    ]);
  },
});

for (
  const [what, index] of [
    ["no file is", () => undefined],
    ["a web page is", () => new TextEncoder().encode("<!doctype html>\n")],
  ] as const
) {
  Deno.test({
    name: `hydrate downloads a whole https image if ${what} beside it`,
    ignore,
    async fn() {
      const { of } = await update({ index: index() });
      assertEquals(of("update_start"), []);
      assertEquals(of("update_declined").length, 1);
      assertEquals(of("download_end")[0].bytes, newer.length);
    },
  });
}

Deno.test({
  name:
    "hydrate downloads a whole https image if the chunk index arrives byte by byte",
  ignore,
  async fn() {
    const { of } = await update({
      index: await goodIndex(),
      stallTimeoutMs: 2000,
      async sendIndex(exchange, file) {
        await exchange.head(200, { "content-length": file.length });
        for (let at = 0; at < 80; at++) {
          await exchange.body(file.subarray(at, at + 1));
          await sleep(100);
        }
        await exchange.body(file.subarray(80));
      },
    });
    const [{ reason }] = of("update_declined");
    assertStringIncludes(reason, "no progress for 2 s");
  },
});

Deno.test({
  name:
    "hydrate downloads a whole https image after an update from a lying chunk index",
  ignore,
  async fn() {
    const { of } = await update({ index: await lyingIndex() });
    assertEquals(of("update_start").length, 1);
    const [{ reason }] = of("update_declined");
    assertStringIncludes(reason, "the bytes have the digest sha256:");
    assertEquals(of("download_start").map(({ resumed }) => resumed > 0), [
      true,
      false,
    ]);
  },
});

Deno.test({
  name:
    "hydrate downloads a whole https image after wrong bytes were copied and the base could not be read further",
  ignore,
  async fn() {
    const [first, second] = [0, RECORD_BYTES].map((at) =>
      records[at] * 256 + records[at + 1] + 1
    );
    const { prototype } = Deno.FsFile;
    const { seek } = prototype;
    let failures = 0;
    using _file = replaceMethod(prototype, {
      seek(this: Deno.FsFile, offset: number, whence: Deno.SeekMode) {
        if (offset !== first + second) return seek.call(this, offset, whence);
        failures++;
        return Promise.reject(new Error("Input/output error"));
      },
    });
    const { of } = await update({ index: await lyingIndex() });
    assertEquals(failures, 1);
    const reasons = of("update_declined").map(({ reason }) => reason);
    assertEquals(reasons, ["Input/output error"]);
    assertEquals(of("download_start").length, 2);
  },
});

Deno.test({
  name: "hydrate completes an update from an https server that ignores ranges",
  ignore,
  async fn() {
    const { of } = await update({
      index: await goodIndex(),
      async image(exchange) {
        await exchange.head(200, { "content-length": newer.length });
        await exchange.body(newer);
      },
    });
    assertEquals(of("update_start").length, 1);
    assertEquals(of("update_declined"), []);
  },
});
