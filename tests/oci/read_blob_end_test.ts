import { assertEquals, assertRejects } from "@std/assert";
import { ToolsmithError } from "../../lib/errors.ts";
import { type BlobSource, BusyError } from "../../lib/oci/_blob_source.ts";
import { RangesUnavailable } from "../../lib/oci/_ranges_unavailable.ts";
import { readBlob } from "../../lib/oci/_read_blob.ts";
import { openPart } from "../../lib/system/part_file.ts";
import { temporaryDir } from "../support/directory.ts";

const MIB = 1024 * 1024;

/** A body of so many bytes, which come when something has happened. */
function body(
  bytes: number,
  after?: Promise<void>,
): ReadableStream<Uint8Array<ArrayBuffer>> {
  return new ReadableStream({
    type: "bytes",
    async start(controller) {
      await after;
      controller.enqueue(new Uint8Array(bytes));
      controller.close();
    },
  });
}

/** A file for a blob of that size, which is new. */
async function part(size: number) {
  await using undo = new AsyncDisposableStack();
  const dir = undo.use(await temporaryDir());
  const digest = `sha256:${"0".repeat(64)}`;
  const file = undo.use(await openPart(dir.path, { size, digest }));
  const all = undo.move();
  return { file, [Symbol.asyncDispose]: () => all.disposeAsync() };
}

/** Enough for whatever needs no more than its turn. */
async function aWhile() {
  for (let turn = 0; turn < 20; turn++) {
    await new Promise((done) => setTimeout(done));
  }
}

const OPTIONS = { connections: 2, stallMs: 60_000, onBytes: () => {} };

Deno.test("a read that fails ends when nothing is written any more", async () => {
  await using opened = await part(8 * MIB);
  const { file } = opened;
  const writing = Promise.withResolvers<void>();
  const disk = Promise.withResolvers<void>();
  const openWriter = file.openWriter.bind(file);
  file.openWriter = async () => {
    const writer = await openWriter();
    return {
      async write(position, bytes) {
        writing.resolve();
        await disk.promise;
        await writer.write(position, bytes);
      },
      [Symbol.dispose]: () => writer[Symbol.dispose](),
    };
  };
  const source: BlobSource = {
    host: "reg.example",
    async open(from, to) {
      if (from === 0) return { kind: "range", body: body(to - from) };
      await writing.promise;
      throw new RangesUnavailable("no more");
    },
  };
  let ended = false;
  const reading = readBlob(source, file, OPTIONS)
    .finally(() => ended = true);
  reading.catch(() => {});
  await writing.promise;
  await aWhile();
  assertEquals(ended, false);
  disk.resolve();
  await assertRejects(() => reading, RangesUnavailable, "no more");
  assertEquals(file.bytes, MIB, "what was being written");
});

Deno.test("a pause that one connection is asked for is kept by those that are done, too", async () => {
  await using opened = await part(12 * MIB);
  const { file } = opened;
  const paused = Promise.withResolvers<void>();
  const asked: number[] = [];
  const source: BlobSource = {
    host: "reg.example",
    open(from, to) {
      asked.push(from);
      if (from > 0) {
        const busy = new ToolsmithError("rate_limited", "slowly");
        return Promise.reject(new BusyError(busy, 60_000));
      }
      const bytes = body(to - from, paused.promise);
      return Promise.resolve({ kind: "range", body: bytes });
    },
  };
  const cancel = new AbortController();
  const done = Promise.withResolvers<void>();
  const reading = readBlob(source, file, {
    ...OPTIONS,
    signal: cancel.signal,
    onRetry: () => paused.resolve(),
    onBytes: () => file.bytes === 4 * MIB && done.resolve(),
  });
  reading.catch(() => {});
  await done.promise;
  await aWhile();
  assertEquals(asked, [0, 4 * MIB]);
  cancel.abort(new Error("enough"));
  await assertRejects(() => reading, Error, "enough");
});

Deno.test("a file that has all of its bytes is not asked for", async () => {
  await using opened = await part(10);
  const { file } = opened;
  {
    using writer = await file.openWriter();
    await writer.write(0, new Uint8Array(10));
  }
  const source: BlobSource = {
    host: "reg.example",
    open: () => Promise.reject(new Error("asked")),
  };
  await readBlob(source, file, OPTIONS);
});

Deno.test("one connection is opened for one piece, however many there may be", async () => {
  await using opened = await part(10);
  const asked: [number, number][] = [];
  const source: BlobSource = {
    host: "reg.example",
    open(from, to) {
      asked.push([from, to]);
      return Promise.resolve({ kind: "range", body: body(to - from) });
    },
  };
  await readBlob(source, opened.file, { ...OPTIONS, connections: 9 });
  assertEquals(asked, [[0, 10]]);
  assertEquals(opened.file.gaps(), []);
});
