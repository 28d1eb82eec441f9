import { assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import type { FetchContext } from "../../lib/hydrate/_context.ts";
import { downloadImage } from "../../lib/hydrate/_download.ts";
import { fileChunks, sha256 } from "../../lib/system/digest.ts";
import { fingerprint } from "../../lib/system/files.ts";
import { openPart } from "../../lib/system/part_file.ts";
import {
  PART,
  PART_JOURNAL,
  PART_RECORD,
  readPartRecord,
} from "../../lib/system/part_record.ts";
import { certificateOfFile } from "../support/certificates.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { type Fetching, fetching } from "../support/fetching.ts";
import { needs } from "../support/parts.ts";
import {
  type Exchange,
  fromOf,
  startTlsServer,
  type TlsServer,
} from "../support/tls_server.ts";

const IMAGE = crypto.getRandomValues(new Uint8Array(60_000));
const SHA256 = new Uint8Array(await crypto.subtle.digest("SHA-256", IMAGE))
  .toHex();
const SIZE = IMAGE.length;
const { ignore } = needs("openssl");
const certificate = certificateOfFile(ignore);

/** Serves the image as it is asked for. */
async function right(it: Exchange) {
  const from = fromOf(it);
  await it.head(from > 0 ? 206 : 200, {
    "content-length": SIZE - from,
    ...from > 0 ? { "content-range": `bytes ${from}-${SIZE - 1}/${SIZE}` } : {},
  });
  await it.body(IMAGE.subarray(from));
}

/** What a test has at hand. */
interface Bench {
  dir: string;
  server: TlsServer;
  /** Where requests began. */
  asked: () => number[];
  /** Downloads the image into the directory. */
  download: (
    more?: Partial<FetchContext> & { path?: string; sha256?: string },
  ) => Promise<
    Fetching & { fetched: Awaited<ReturnType<typeof downloadImage>> }
  >;
}

/** Runs a test with a server and a directory of its own. */
function test(
  name: string,
  answer: (exchange: Exchange, dir: string) => Promise<void>,
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
        asked: () => server.requests.map(fromOf),
        async download(
          { path = "/a.img?sig=x", sha256 = SHA256, ...more } = {},
        ) {
          const url = new URL(path, server.url);
          const image = { source: { kind: "https" as const, url }, sha256 };
          const { caFile } = certificate();
          const registry = { caFile };
          const all = fetching(image, dir.path, { registry, ...more });
          const fetched = await downloadImage(all.context, url);
          return { ...all, fetched };
        },
      });
    },
  });
}

/** Leaves the first bytes of a file as a run that was cut does. */
async function leave(
  dir: string,
  bytes: Uint8Array,
  { at = 0, size = SIZE, digest = `sha256:${SHA256}` } = {},
) {
  await using part = await openPart(dir, { size, digest });
  using writer = await part.openWriter();
  writer.write(at, bytes);
}

test(
  "an image arrives under the name that a cache knows, and is described",
  right,
  async ({ dir, download, server }) => {
    const { fetched, told } = await download();
    const path = join(dir, PART);
    assertEquals(fetched, {
      path,
      name: "a.qcow2",
      bytes: SIZE,
      actual: SHA256,
      hashed: (await fingerprint(path))!,
    });
    assertEquals(await Deno.readFile(path), IMAGE);
    // There is nothing to go on with any more.
    assertEquals(await readPartRecord(dir), undefined);
    const source = `${server.url}/a.img`;
    assertEquals(told("download_start"), [
      { image: "demo", source, bytes: SIZE, resumed: 0, connections: 1 },
    ]);
    assertEquals(told("download_end").map(({ bytes }) => bytes), [SIZE]);
  },
);

test(
  "a name that no cache takes becomes a plain one",
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
      assertEquals((await download({ path })).fetched.name, name);
    }
  },
);

test(
  "what is there is not asked for again",
  right,
  async ({ dir, download, asked }) => {
    await leave(dir, IMAGE.subarray(0, 25_000));
    const { fetched, told } = await download();
    assertEquals([fetched.actual, asked()], [SHA256, [25_000]]);
    assertEquals(told("download_start")[0].resumed, 25_000);
    assertEquals(told("download_end")[0].bytes, SIZE - 25_000);
  },
);

test(
  "where all is there, one byte is asked for",
  right,
  async ({ dir, download, asked }) => {
    await leave(dir, IMAGE);
    const { fetched } = await download();
    assertEquals([fetched.actual, asked()], [SHA256, [SIZE - 1]]);
  },
);

test(
  "what is there, but not from the start, is kept where it is",
  right,
  async ({ dir, download, asked }) => {
    await leave(dir, IMAGE.subarray(20_000, 30_000), { at: 20_000 });
    const { fetched, told } = await download();
    assertEquals([fetched.actual, asked()], [SHA256, [0]]);
    assertEquals(told("download_start")[0].resumed, 10_000);
    assertEquals(await Deno.readFile(fetched.path), IMAGE);
  },
);

test(
  "what is there in several pieces is filled up between them",
  right,
  async ({ dir, download, asked }) => {
    await leave(dir, IMAGE.subarray(0, 10_000));
    await leave(dir, IMAGE.subarray(20_000, 30_000), { at: 20_000 });
    const { fetched, told } = await download();
    assertEquals([fetched.actual, asked()], [SHA256, [10_000]]);
    assertEquals(told("download_start")[0].resumed, 20_000);
    assertEquals(await Deno.readFile(fetched.path), IMAGE);
  },
);

test("what is gone when the rest arrives is missed", async (it, dir) => {
  for (const name of [PART_RECORD, PART_JOURNAL]) {
    await Deno.remove(join(dir, name)).catch(() => {});
  }
  await right(it);
}, async ({ dir, download }) => {
  await leave(dir, IMAGE.subarray(0, 10_000));
  await failure("transfer_interrupted", () => download());
});

test(
  "what is there of another image is dropped",
  right,
  async ({ dir, download, asked }) => {
    const digest = `sha256:${"0".repeat(64)}`;
    await leave(dir, new Uint8Array(25_000), { digest });
    const { fetched, told } = await download();
    assertEquals([fetched.actual, asked()], [SHA256, [0]]);
    assertEquals(told("download_start")[0].resumed, 0);
  },
);

test(
  "an image without a known digest is not gone on with, and nothing of it kept",
  async (it) => {
    await it.head(200, { "content-length": SIZE });
    await it.body(IMAGE.subarray(0, it.number === 1 ? 10_000 : SIZE));
  },
  async ({ dir, download, asked }) => {
    await failure("transfer_interrupted", () => download({ pinned: false }));
    assertEquals(await readPartRecord(dir), undefined);
    await Deno.remove(join(dir, "a.qcow2"));
    const { fetched, told } = await download({ pinned: false });
    assertEquals(fetched.path, join(dir, "a.qcow2"));
    assertEquals([fetched.actual, asked()], [SHA256, [0, 0]]);
    assertEquals(told("download_start")[0].bytes, SIZE);
  },
);

test("an image of a size that nobody tells arrives whole", async (it) => {
  await it.head(200, {});
  await it.body(IMAGE);
}, async ({ dir, download }) => {
  const { fetched, told } = await download();
  const path = join(dir, "a.qcow2");
  const hashed = (await fingerprint(path))!;
  const all = { path, name: "a.qcow2", bytes: SIZE, actual: SHA256, hashed };
  assertEquals(fetched, all);
  assertEquals(told("download_start")[0].bytes, null);
  assertEquals(await sha256(fileChunks(path)), SHA256);
});

test(
  "another image than the one that is wanted is returned with its digest, and asked for once",
  right,
  async ({ download, asked }) => {
    const { fetched } = await download({ sha256: "0".repeat(64) });
    assertEquals([fetched.actual, asked()], [SHA256, [0]]);
  },
);

test(
  "kept bytes that are wrong come once more, and then count as they are",
  right,
  async ({ dir, download, asked }) => {
    for (const count of [25_000, 1]) {
      const wrong = IMAGE.slice(0, count);
      wrong[0] ^= 1;
      await leave(dir, wrong);
      const { fetched, told } = await download();
      assertEquals(fetched.actual, SHA256);
      assertEquals(asked().splice(-2), [count, 0]);
      const resumed = told("download_start").map(({ resumed }) => resumed);
      assertEquals(resumed, [count, 0]);
      assertEquals(await Deno.readFile(fetched.path), IMAGE);
      assertEquals(await readPartRecord(dir), undefined);
    }
  },
);

test(
  "a transfer that is cut is kept as far as it came, for the next",
  async (it) => {
    if (it.number > 1) return await right(it);
    await it.head(200, { "content-length": SIZE });
    await it.body(IMAGE.subarray(0, 10_000));
  },
  async ({ dir, download, asked }) => {
    await failure("transfer_interrupted", () => download());
    assertEquals((await readPartRecord(dir))?.bytes, 10_000);
    const { fetched } = await download();
    assertEquals([fetched.actual, asked()], [SHA256, [0, 10_000]]);
  },
);

test(
  "a server whose image has another size by now is told as such",
  async (it) => {
    // All of it is sent, where the size of what was kept is another.
    const size = SIZE - it.number + 1;
    await it.head(200, { "content-length": size });
    await it.body(IMAGE.subarray(0, size));
  },
  async ({ dir, download, server }) => {
    await leave(dir, new Uint8Array(25_000));
    const { message, hint } = await failure(
      "transfer_interrupted",
      () => download(),
    );
    assertEquals(
      message,
      `Cannot go on with ${server.url}/a.img: it is not what it was when the transfer began`,
    );
    assertEquals(hint, "try again");
  },
);

test(
  "who stops a download gets the reason, and keeps what is there",
  async (it) => {
    await it.head(200, { "content-length": SIZE });
    await it.body(IMAGE.subarray(0, 30_000));
    await it.stall();
  },
  async ({ dir, download }) => {
    const stop = new AbortController();
    const { signal } = stop;
    const reading = download({ retries: { retries: 0, signal } });
    const kept = async () => (await readPartRecord(dir))?.bytes ?? 0;
    while (await kept() < 30_000) await new Promise((go) => setTimeout(go, 5));
    stop.abort(new Error("enough"));
    await assertRejects(() => reading, Error, "enough");
    assertEquals(await kept(), 30_000);
  },
);
