import { assertEquals, assertRejects } from "@std/assert";
import { ToolsmithError } from "../../lib/errors.ts";
import type { BlobAnswer, BlobSource } from "../../lib/oci/_blob_source.ts";
import { RangesUnavailable } from "../../lib/oci/_ranges_unavailable.ts";
import { readBlob } from "../../lib/oci/_read_blob.ts";
import { openPart } from "../../lib/system/part_file.ts";
import type { Retry } from "../../lib/system/retry.ts";
import { BusyError } from "../../lib/system/retry_after.ts";
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
  const opening = Promise.withResolvers<void>();
  const disk = Promise.withResolvers<void>();
  const openWriter = file.openWriter.bind(file);
  file.openWriter = async () => {
    opening.resolve();
    await disk.promise;
    return await openWriter();
  };
  const source: BlobSource = {
    host: "reg.example",
    async open(from, to) {
      if (from === 0) return { kind: "range", body: body(to - from) };
      await opening.promise;
      throw new RangesUnavailable("no more");
    },
  };
  let ended = false;
  const reading = readBlob(source, file, OPTIONS)
    .finally(() => ended = true);
  reading.catch(() => {});
  await opening.promise;
  await aWhile();
  assertEquals(ended, false);
  disk.resolve();
  await assertRejects(() => reading, RangesUnavailable, "no more");
  await aWhile();
  assertEquals(file.bytes, 0, "what came when nobody wanted it any more");
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
    writer.write(0, new Uint8Array(10));
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

/** Reads with such answers to each request in turn; the last is for all others. */
async function readFrom(
  size: number,
  connections: number,
  answers: ((from: number, to: number) => Promise<BlobAnswer>)[],
) {
  await using opened = await part(size);
  const asked: [number, number][] = [];
  const retries: Retry[] = [];
  const source: BlobSource = {
    host: "reg.example",
    open(from, to) {
      const answer = answers[Math.min(asked.length, answers.length - 1)];
      asked.push([from, to]);
      return answer(from, to);
    },
  };
  const error = await readBlob(source, opened.file, {
    ...OPTIONS,
    connections,
    retries: 2,
    retryDelayMs: 1,
    onRetry: (retry) => retries.push(retry),
  }).catch((error) => error);
  return { asked, error, left: opened.file.gaps(), retries };
}

const right = (from: number, to: number): Promise<BlobAnswer> =>
  Promise.resolve({ kind: "range", body: body(to - from) });
const whole = (bytes: number) => (): Promise<BlobAnswer> =>
  Promise.resolve({ kind: "whole", body: body(bytes) });
const busy = () =>
  Promise.reject(new ToolsmithError("registry_unavailable", "down"));

Deno.test("a whole for the first answer is all that is asked for; a cut one is asked for again", async () => {
  const { asked, error, left, retries } = await readFrom(10, 4, [whole(10)]);
  assertEquals([error, left, retries], [undefined, [], []]);
  assertEquals(asked, [[0, 10]]);
  const cut = await readFrom(10, 4, [whole(4), right]);
  assertEquals([cut.error, cut.left], [undefined, []]);
  assertEquals(cut.asked, [[0, 10], [4, 10]]);
  assertEquals(cut.retries.map(({ error }) => error.code), [
    "transfer_interrupted",
  ]);
});

Deno.test("a whole among ranges is let go, told with its place, and the range asked for again", async () => {
  let cancelled = 0;
  const late = (): Promise<BlobAnswer> =>
    Promise.resolve({
      kind: "whole",
      body: new ReadableStream({
        type: "bytes",
        cancel: () => void cancelled++,
      }),
    });
  const { asked, error, left, retries } = await readFrom(
    8 * MIB,
    1,
    [right, late, right],
  );
  assertEquals([error, left, cancelled], [undefined, [], 1]);
  assertEquals(asked, [
    [0, 4 * MIB],
    [4 * MIB, 8 * MIB],
    [4 * MIB, 8 * MIB],
  ]);
  const [{ error: told }] = retries;
  assertEquals(
    [told.code, told.message],
    [
      "transfer_interrupted",
      "reg.example sent the whole image where bytes from 4194304 on were asked for",
    ],
  );
});

Deno.test("what fails at first is tried again if it may pass, and ends the read if not", async () => {
  const passes = await readFrom(10, 2, [busy, busy, right]);
  assertEquals([passes.error, passes.left], [undefined, []]);
  assertEquals(passes.retries.map(({ attempt }) => attempt), [2, 3]);
  const lasts = await readFrom(10, 2, [busy]);
  assertEquals([lasts.error.message, lasts.asked.length], ["down", 3]);
  const none = await readFrom(10, 2, [
    () => Promise.reject(new RangesUnavailable("no ranges")),
  ]);
  assertEquals([none.error.message, none.asked.length], ["no ranges", 1]);
  assertEquals(none.retries, []);
  // In the middle, too: the bytes before are kept.
  const middle = await readFrom(8 * MIB, 1, [right, busy]);
  assertEquals([middle.error.message, middle.asked.length], ["down", 4]);
  assertEquals(middle.left, [[4 * MIB, 8 * MIB]]);
});

Deno.test("as many connections read at the same time as may, and no more", async () => {
  for (const connections of [1, 2, 3]) {
    let open = 0;
    let peak = 0;
    const all = Promise.withResolvers<void>();
    const { error, left } = await readFrom(24 * MIB, connections, [
      (from, to) => {
        peak = Math.max(peak, ++open);
        if (open === connections) all.resolve();
        const bytes = body(to - from, all.promise);
        all.promise.then(() => open--);
        return Promise.resolve({ kind: "range", body: bytes });
      },
    ]);
    assertEquals([error, left], [undefined, []]);
    assertEquals(peak, connections);
  }
});
