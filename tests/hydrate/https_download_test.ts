import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { createEmitter } from "../../lib/events.ts";
import type { FetchJob } from "../../lib/hydrate/_fetch_job.ts";
import { downloadHttpsImage } from "../../lib/hydrate/_https_download.ts";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import { readFileIdentity } from "../../lib/system/files.ts";
import { openPartFile } from "../../lib/system/part_file.ts";
import {
  DURABLE_EXTENTS_FILE,
  PART_FILE_NAME,
  readPartRecord,
  WRITTEN_EXTENTS_FILE,
} from "../../lib/system/part_record.ts";
import { certificateOfFile } from "../support/certificates.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { type FetchSetup, setUpFetch } from "../support/fetch_setup.ts";
import { requires } from "../support/parts.ts";
import { installMovingClock } from "../support/timers.ts";
import {
  rangeStart,
  startTlsServer,
  type TlsExchange,
  type TlsServer,
} from "../support/tls_server.ts";

const IMAGE = crypto.getRandomValues(new Uint8Array(60_000));
const SHA256 = new Uint8Array(await crypto.subtle.digest("SHA-256", IMAGE))
  .toHex();
const SIZE = IMAGE.length;
const { ignore } = requires("openssl");
const certificate = certificateOfFile(ignore);

/** Serves the requested range of the image. */
async function right(it: TlsExchange) {
  const from = rangeStart(it);
  await it.head(from > 0 ? 206 : 200, {
    "content-length": SIZE - from,
    ...from > 0 ? { "content-range": `bytes ${from}-${SIZE - 1}/${SIZE}` } : {},
  });
  await it.body(IMAGE.subarray(from));
}

/** What each test gets. */
interface Bench {
  dir: string;
  server: TlsServer;
  /** The first byte of each request. */
  asked: () => number[];
  /** Downloads the image into the directory. */
  download: (
    more?: Partial<FetchJob> & {
      path?: string;
      /** @default {SHA256} */
      sha256?: string;
    },
  ) => Promise<
    FetchSetup & { fetched: Awaited<ReturnType<typeof downloadHttpsImage>> }
  >;
}

/** Runs a test with a server and a directory of its own. */
function test(
  name: string,
  answer: (exchange: TlsExchange, dir: string) => Promise<void>,
  body: (bench: Bench) => Promise<void>,
) {
  Deno.test({
    name,
    ignore,
    async fn() {
      await using dir = await temporaryDir();
      await using server = await startTlsServer(
        certificate(),
        (exchange) => answer(exchange, dir.path),
      );
      await body({
        dir: dir.path,
        server,
        asked: () => server.requests.map(rangeStart),
        async download(
          { path = "/a.img?sig=x", ...more } = {},
        ) {
          const url = new URL(path, server.url);
          const image = {
            source: { kind: "https" as const, url },
            sha256: "sha256" in more ? more.sha256 : SHA256,
          };
          const { caFile } = certificate();
          const all = setUpFetch(image, dir.path, { caFile, ...more });
          const fetched = await downloadHttpsImage(all.job, url);
          return { ...all, fetched };
        },
      });
    },
  });
}

/** Leaves a partial download, as an interrupted run does. */
async function leave(
  dir: string,
  bytes: Uint8Array,
  { at = 0, size = SIZE, digest = `sha256:${SHA256}` } = {},
) {
  await using part = await openPartFile(dir, { size, digest });
  using writer = await part.openWriter();
  writer.write(at, bytes);
}

test(
  "downloadHttpsImage() renames .img to .qcow2, and returns path, size and digest",
  right,
  async ({ dir, download, server }) => {
    const { fetched, eventsOfType } = await download();
    const path = join(dir, PART_FILE_NAME);
    assertEquals(fetched, {
      path,
      fileName: "a.qcow2",
      bytes: SIZE,
      sha256: SHA256,
      hashedFile: (await readFileIdentity(path))!,
      update: undefined,
    });
    assertEquals(await Deno.readFile(path), IMAGE);
    // The part record is removed on completion.
    assertEquals(await readPartRecord(dir), undefined);
    const source = `${server.url}/a.img`;
    assertEquals(eventsOfType("download_start"), [
      { image: "demo", source, bytes: SIZE, resumed: 0, connections: 1 },
    ]);
    assertEquals(eventsOfType("download_end").map(({ bytes }) => bytes), [
      SIZE,
    ]);
  },
);

test(
  "downloadHttpsImage() falls back to image.qcow2 for an unusable file name",
  right,
  async ({ download }) => {
    const cases = [
      ["/dir/b.QCOW2", "b.QCOW2"],
      ["/dir/", "image.qcow2"],
      ["/c.raw", "image.qcow2"],
      [`/${"d".repeat(200)}.qcow2`, `${"d".repeat(200)}.qcow2`],
      [`/${"d".repeat(201)}.qcow2`, "image.qcow2"],
    ];
    for (const [path, name] of cases) {
      assertEquals((await download({ path })).fetched.fileName, name);
    }
  },
);

test(
  "downloadHttpsImage() resumes a partial download with a range request",
  right,
  async ({ dir, download, asked }) => {
    await leave(dir, IMAGE.subarray(0, 25_000));
    const { fetched, eventsOfType } = await download();
    assertEquals([fetched.sha256, asked()], [SHA256, [25_000]]);
    assertEquals(eventsOfType("download_start")[0].resumed, 25_000);
    assertEquals(eventsOfType("download_end")[0].bytes, SIZE - 25_000);
  },
);

test(
  "downloadHttpsImage() counts the kept bytes as progress, and only the new ones at the end",
  right,
  async ({ dir, download }) => {
    const kept = SIZE - 10_000;
    await leave(dir, IMAGE.subarray(0, kept));
    using clock = installMovingClock();
    const reports: { bytes: number; total: number | null }[] = [];
    const ends: number[] = [];
    await download({
      emit(event) {
        if (event.type === "download_start") clock.pass(1000);
        if (event.type === "download_progress") reports.push(event);
        if (event.type === "download_end") ends.push(event.bytes);
      },
    });
    const [{ bytes, total }] = reports;
    assert(bytes > kept && bytes <= SIZE, `${bytes} bytes`);
    assertEquals([total, ends], [SIZE, [SIZE - kept]]);
  },
);

test(
  "downloadHttpsImage() requests only the last byte when the part file is complete",
  right,
  async ({ dir, download, asked }) => {
    await leave(dir, IMAGE);
    const { fetched } = await download();
    assertEquals([fetched.sha256, asked()], [SHA256, [SIZE - 1]]);
  },
);

test(
  "downloadHttpsImage() requests from byte 0, and keeps an extent in the middle of the part file",
  right,
  async ({ dir, download, asked }) => {
    await leave(dir, IMAGE.subarray(20_000, 30_000), { at: 20_000 });
    const { fetched, eventsOfType } = await download();
    assertEquals([fetched.sha256, asked()], [SHA256, [0]]);
    assertEquals(eventsOfType("download_start")[0].resumed, 10_000);
    assertEquals(await Deno.readFile(fetched.path), IMAGE);
  },
);

test(
  "downloadHttpsImage() downloads the gaps between several kept extents",
  right,
  async ({ dir, download, asked }) => {
    await leave(dir, IMAGE.subarray(0, 10_000));
    await leave(dir, IMAGE.subarray(20_000, 30_000), { at: 20_000 });
    const { fetched, eventsOfType } = await download();
    assertEquals([fetched.sha256, asked()], [SHA256, [10_000]]);
    assertEquals(eventsOfType("download_start")[0].resumed, 20_000);
    assertEquals(await Deno.readFile(fetched.path), IMAGE);
  },
);

test(
  "downloadHttpsImage() downloads everything when the part records vanish before the response",
  async (it, dir) => {
    for (const name of [DURABLE_EXTENTS_FILE, WRITTEN_EXTENTS_FILE]) {
      await Deno.remove(join(dir, name)).catch(() => {});
    }
    await right(it);
  },
  async ({ dir, download, asked }) => {
    await leave(dir, IMAGE.subarray(0, 10_000));
    const { fetched } = await download();
    assertEquals([fetched.sha256, asked()], [SHA256, [10_000, 0]]);
  },
);

test(
  "downloadHttpsImage() discards a partial download of another image",
  right,
  async ({ dir, download, asked }) => {
    const digest = `sha256:${"0".repeat(64)}`;
    await leave(dir, new Uint8Array(25_000), { digest });
    const { fetched, eventsOfType } = await download();
    assertEquals([fetched.sha256, asked()], [SHA256, [0]]);
    assertEquals(eventsOfType("download_start")[0].resumed, 0);
  },
);

test(
  "downloadHttpsImage() neither resumes nor keeps a partial download without a known digest",
  async (it) => {
    await it.head(200, { "content-length": SIZE });
    await it.body(IMAGE.subarray(0, it.number === 1 ? 10_000 : SIZE));
  },
  async ({ dir, download, asked }) => {
    await expectFailure(
      "transfer_interrupted",
      () => download({ sha256: undefined }),
    );
    assertEquals(await readPartRecord(dir), undefined);
    await Deno.remove(join(dir, "a.qcow2"));
    const { fetched, eventsOfType } = await download({ sha256: undefined });
    assertEquals(fetched.path, join(dir, "a.qcow2"));
    assertEquals([fetched.sha256, asked()], [SHA256, [0, 0]]);
    assertEquals(eventsOfType("download_start")[0].bytes, SIZE);
  },
);

test("downloadHttpsImage() downloads an image of unknown size", async (it) => {
  await it.head(200, {});
  await it.body(IMAGE);
}, async ({ dir, download }) => {
  const { fetched, eventsOfType } = await download();
  const path = join(dir, "a.qcow2");
  const hashedFile = (await readFileIdentity(path))!;
  const all = {
    path,
    fileName: "a.qcow2",
    bytes: SIZE,
    sha256: SHA256,
    hashedFile,
  };
  assertEquals(fetched, all);
  assertEquals(eventsOfType("download_start")[0].bytes, null);
  assertEquals(await sha256OfChunks(readFileChunks(path)), SHA256);
});

test(
  "downloadHttpsImage() returns the actual digest of a wrong image after one request",
  right,
  async ({ download, asked }) => {
    const { fetched } = await download({ sha256: "0".repeat(64) });
    assertEquals([fetched.sha256, asked()], [SHA256, [0]]);
  },
);

test(
  "downloadHttpsImage() restarts once without the kept bytes when the digest differs",
  right,
  async ({ dir, download, asked }) => {
    for (const count of [25_000, 1]) {
      const wrong = IMAGE.slice(0, count);
      wrong[0] ^= 1;
      await leave(dir, wrong);
      const { fetched, eventsOfType } = await download();
      assertEquals(fetched.sha256, SHA256);
      assertEquals(asked().splice(-2), [count, 0]);
      const resumed = eventsOfType("download_start").map(({ resumed }) =>
        resumed
      );
      assertEquals(resumed, [count, 0]);
      assertEquals(await Deno.readFile(fetched.path), IMAGE);
      assertEquals(await readPartRecord(dir), undefined);
    }
  },
);

test(
  "downloadHttpsImage() keeps the bytes of an interrupted transfer for the next run",
  async (it) => {
    if (it.number > 1) return await right(it);
    await it.head(200, { "content-length": SIZE });
    await it.body(IMAGE.subarray(0, 10_000));
  },
  async ({ dir, download, asked }) => {
    await expectFailure("transfer_interrupted", () => download());
    assertEquals((await readPartRecord(dir))?.bytes, 10_000);
    const { fetched } = await download();
    assertEquals([fetched.sha256, asked()], [SHA256, [0, 10_000]]);
  },
);

test(
  "downloadHttpsImage() reports that the image on the server changed its size",
  async (it) => {
    // Each response has another size than the one before.
    const size = SIZE - it.number + 1;
    await it.head(200, { "content-length": size });
    await it.body(IMAGE.subarray(0, size));
  },
  async ({ dir, download, server }) => {
    await leave(dir, new Uint8Array(25_000));
    const { message, hint } = await expectFailure(
      "transfer_interrupted",
      () => download(),
    );
    assertEquals(
      message,
      `Cannot download ${server.url}/a.img: the file on the server changed its size during the transfer`,
    );
    assertEquals(hint, "try again");
  },
);

test(
  "downloadHttpsImage() rejects with the abort reason and keeps the downloaded bytes",
  async (it) => {
    await it.head(200, { "content-length": SIZE });
    await it.body(IMAGE.subarray(0, 30_000));
    await it.stall();
  },
  async ({ dir, download }) => {
    const stop = new AbortController();
    const { signal } = stop;
    const reading = download({ signal });
    const kept = async () => (await readPartRecord(dir))?.bytes ?? 0;
    while (await kept() < 30_000) await new Promise((go) => setTimeout(go, 5));
    stop.abort(new Error("enough"));
    await assertRejects(() => reading, Error, "enough");
    assertEquals(await kept(), 30_000);
  },
);

test(
  "downloadHttpsImage() rejects with the abort reason when it is aborted while it hashes a complete part file",
  right,
  async ({ dir, download }) => {
    await leave(dir, IMAGE);
    const stop = new AbortController();
    const { signal } = stop;
    const emit = createEmitter(({ type }) => {
      if (type === "download_start") stop.abort(new Error("enough"));
    });
    await assertRejects(() => download({ signal, emit }), Error, "enough");
  },
);
