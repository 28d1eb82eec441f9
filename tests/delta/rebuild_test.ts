/**
 * Property tests: rebuilds files from older ones, whatever both contain.
 */
import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import fc from "fast-check";
import { readFileRecords } from "../../lib/delta/chunk_index.ts";
import {
  createChunker,
  MAX_PUSH_BYTES,
  RECORD_BYTES,
} from "../../lib/delta/chunker.ts";
import {
  countCopyBytes,
  createChunkMatcher,
  readRuns,
} from "../../lib/delta/update_plan.ts";
import { assertLinear } from "../support/assert_linear.ts";
import { replaceMethod } from "../support/replace_method.ts";

const KIB = 1024;
const DIGEST = `sha256:${"0".repeat(64)}`;

/** Parts of a file: the same seed gives the same bytes; seed 0 gives zeros. */
const parts = fc.array(
  fc.record({
    seed: fc.integer({ min: 0, max: 5 }),
    length: fc.integer({ min: 0, max: 300 * KIB }),
  }),
  { maxLength: 6 },
);

function bytesOf(
  list: { seed: number; length: number }[],
): Uint8Array<ArrayBuffer> {
  const all = list.map(({ seed, length }) => {
    const bytes = new Uint8Array(length);
    let state = seed;
    for (let at = 0; seed > 0 && at < length; at++) {
      state = Math.imul(state, 1664525) + 1013904223 | 0;
      bytes[at] = state >>> 24;
    }
    return bytes;
  });
  const joined = new Uint8Array(
    all.reduce((sum, { length }) => sum + length, 0),
  );
  let at = 0;
  for (const bytes of all) {
    joined.set(bytes, at);
    at += bytes.length;
  }
  return joined;
}

/** Chunks bytes that are pushed in pieces. */
async function recordsOf(
  bytes: Uint8Array,
  { piece = MAX_PUSH_BYTES, clusters = Float64Array.of() } = {},
) {
  const push = createChunker(clusters);
  const found: number[] = [];
  for (let at = 0; at < bytes.length; at += piece) {
    found.push(...await push(bytes.subarray(at, at + piece)));
  }
  return Uint8Array.from([...found, ...await push(undefined)]);
}

/** Copies what an older file holds, and returns what that leaves to download. */
async function rebuild(
  older: Uint8Array<ArrayBuffer>,
  target: Uint8Array<ArrayBuffer>,
  onDisk = older,
) {
  const { length: size } = target;
  const records = await recordsOf(target);
  const matcher = createChunkMatcher({ size, digest: DIGEST, records });
  matcher.add(await recordsOf(older));
  const runs = matcher.plan();
  const downloadBytes = size - countCopyBytes(runs);
  const dir = await Deno.makeTempDir();
  try {
    const path = join(dir, "older");
    await Deno.writeFile(path, onDisk);
    using file = await Deno.open(path);
    const built = target.map((byte) => byte ^ 0xff);
    let written = 0;
    for await (const { at, bytes } of readRuns(file, runs)) {
      built.set(bytes, at);
      written += bytes.length;
    }
    return { built, written, downloadBytes };
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

Deno.test("readRuns() yields only bytes of the new file, for any two files", async () => {
  await fc.assert(
    fc.asyncProperty(parts, parts, async (before, after) => {
      const [older, target] = [bytesOf(before), bytesOf(after)];
      const { built, written, downloadBytes } = await rebuild(older, target);
      let right = 0;
      built.forEach((byte, at) => right += byte === target[at] ? 1 : 0);
      assertEquals(right, written, "a wrong byte was written");
      assertEquals(written, target.length - downloadBytes);
    }),
    { numRuns: 40 },
  );
});

Deno.test("a chunk plan for an unchanged file downloads nothing", async () => {
  await fc.assert(
    fc.asyncProperty(parts, async (before) => {
      const older = bytesOf(before);
      fc.pre(older.length >= 64 * KIB);
      assertEquals((await rebuild(older, older)).downloadBytes, 0);
    }),
    { numRuns: 20 },
  );
});

Deno.test("a chunk plan downloads little after an insertion and a deletion", async () => {
  const older = bytesOf([{ seed: 1, length: 4096 * KIB }]);
  const target = new Uint8Array([
    ...older.subarray(0, 1000 * KIB),
    ...bytesOf([{ seed: 9, length: 100 }]),
    ...older.subarray(1000 * KIB, 2000 * KIB),
    ...older.subarray(2000 * KIB + 777),
  ]);
  const { built, downloadBytes } = await rebuild(older, target);
  assert(downloadBytes <= 2 * 128 * KIB, `${downloadBytes} bytes`);
  const wrong = built.filter((byte, at) => byte !== target[at]).length;
  assertEquals(wrong, downloadBytes);
});

/** Plans for a file of 64 KiB chunks, of which some changed. */
function planForChunks(count: number, isChanged: (nth: number) => boolean) {
  const records = new Uint8Array(count * RECORD_BYTES).fill(255);
  const view = new DataView(records.buffer);
  const older = records.slice();
  let changed = 0;
  for (let nth = 0; nth < count; nth++) {
    const at = nth * RECORD_BYTES + 4;
    view.setUint32(at, nth);
    if (isChanged(nth)) changed += 64 * KIB;
    else older.set(records.subarray(at, at + 4), at);
  }
  const size = count * 64 * KIB;
  const matcher = createChunkMatcher({ size, digest: DIGEST, records });
  matcher.add(older);
  const runs = matcher.plan();
  return { runs: runs.length, extra: size - countCopyBytes(runs) - changed };
}

Deno.test("a chunk plan leaves stretches of less than 16 KiB to the download", () => {
  const lengths = [32, 15, 32, 8, 8, 32].map((kib) => kib * KIB);
  const records = new Uint8Array(lengths.length * RECORD_BYTES);
  const view = new DataView(records.buffer);
  lengths.forEach((length, nth) => {
    view.setUint16(nth * RECORD_BYTES, length - 1);
    view.setUint32(nth * RECORD_BYTES + 2, nth);
  });
  const size = lengths.reduce((sum, length) => sum + length, 0);
  const matcher = createChunkMatcher({ size, digest: DIGEST, records });
  const chunk = (nth: number) =>
    records.subarray(nth * RECORD_BYTES, (nth + 1) * RECORD_BYTES);
  for (const nth of [4, 1, 3]) matcher.add(chunk(nth));
  assertEquals(matcher.plan(), [
    { at: 79 * KIB, from: 23 * KIB, length: 8 * KIB },
    { at: 87 * KIB, from: 0, length: 8 * KIB },
  ]);
});

Deno.test("a chunk plan joins gaps beyond 24 for at most half a percent more bytes, and beyond 16,000 in any case", () => {
  // Stretches of one chunk are cheap to download, too.
  const paired = (nth: number) => nth % 500 === 0 || nth % 500 === 2;
  assertEquals(planForChunks(10 * 500, paired), { runs: 20, extra: 0 });
  for (const pairs of [13, 40]) {
    const extra = pairs * 64 * KIB;
    const plan = planForChunks(pairs * 500, paired);
    assertEquals(plan, { runs: pairs, extra });
  }
  // Here one stretch already costs more than half a percent.
  const spread = planForChunks(70 * 500, (nth) => nth % 500 === 0);
  assertEquals(spread, { runs: 70, extra: 0 });
  const many = planForChunks(60_000, (nth) => nth % 2 === 0);
  assert(many.runs <= 16_000, `${many.runs}`);
});

Deno.test("chunks do not depend on how many bytes are pushed at once", async () => {
  await fc.assert(
    fc.asyncProperty(
      parts,
      fc.integer({ min: 1000, max: MAX_PUSH_BYTES }),
      fc.array(fc.integer({ min: 0, max: 900 * KIB }), { maxLength: 30 }),
      async (list, piece, offsets) => {
        const bytes = bytesOf(list);
        const clusters = Float64Array.from(offsets).sort();
        assertEquals(
          await recordsOf(bytes, { piece, clusters }),
          await recordsOf(bytes, { clusters }),
        );
      },
    ),
    { numRuns: 30 },
  );
});

Deno.test("a compressed cluster of up to 64 KiB is one chunk, wherever it is", async () => {
  const bytes = bytesOf([{ seed: 3, length: 200 * KIB }]);
  const clusters = Float64Array.of(10_000, 10_100, 70_000, 70_000, 150_000);
  const records = await recordsOf(bytes, { clusters });
  const view = new DataView(records.buffer);
  const starts = new Set([0]);
  let at = 0;
  for (let nth = 0; nth < records.length; nth += RECORD_BYTES) {
    starts.add(at += view.getUint16(nth) + 1);
  }
  assertEquals(at, bytes.length);
  for (const cluster of clusters) assert(starts.has(cluster));
  const within = [...starts].filter((at) => at > 10_000 && at < 70_000);
  assertEquals(within, [10_100]);
});

for (
  const [how, onDisk] of [
    ["truncated", (bytes: Uint8Array) => bytes.slice(0, bytes.length / 3)],
    ["emptied", () => new Uint8Array()],
  ] as const
) {
  Deno.test(`readRuns() leaves out what the older file lacks after it is ${how}`, async () => {
    const older = bytesOf([{ seed: 1, length: 3000 * KIB }]);
    const target = older.slice(10);
    const left = onDisk(older) as Uint8Array<ArrayBuffer>;
    const { built, written } = await rebuild(older, target, left);
    const wrong = built.filter((byte, at) => byte !== target[at]).length;
    assertEquals(wrong, target.length - written);
    assert(written <= left.length);
  });
}

Deno.test("readFileRecords() yields the records of a file that is not QCOW2", async () => {
  const path = await Deno.makeTempFile();
  try {
    const bytes = bytesOf([{ seed: 4, length: 2500 * KIB }]);
    await Deno.writeFile(path, bytes);
    using file = await Deno.open(path);
    const found = await Array.fromAsync(readFileRecords(file, {}));
    const all = found.flatMap((records) => [...records]);
    assertEquals(Uint8Array.from(all), await recordsOf(bytes));
  } finally {
    await Deno.remove(path);
  }
});

/** Indexes whose chunks have much in common. */
const similarChunks: [string, (view: DataView, nth: number) => void][] = [
  ["are equal", () => {}],
  [
    "have one hash and each length",
    (view, nth) => view.setUint16(nth * RECORD_BYTES, nth),
  ],
];
for (const [what, fill] of similarChunks) {
  Deno.test(`a chunk plan takes linear time if all chunks ${what}`, async () => {
    const input = (length: number) => {
      const records = new Uint8Array(length * RECORD_BYTES);
      const view = new DataView(records.buffer);
      for (let nth = 0; nth < length; nth++) fill(view, nth);
      return records;
    };
    await assertLinear(what, input, (records) => {
      const size = records.length / RECORD_BYTES;
      const matcher = createChunkMatcher({ size, digest: DIGEST, records });
      matcher.add(records);
      matcher.plan();
    }, 32_000);
  });
}

Deno.test("a chunker hashes few chunks at once, however small they are", async () => {
  const { subtle } = crypto;
  const digest = subtle.digest.bind(subtle);
  let [running, most] = [0, 0];
  using _digest = replaceMethod(subtle, {
    async digest(name: string, bytes: BufferSource) {
      most = Math.max(most, ++running);
      const hash = await digest(name, bytes);
      running--;
      return hash;
    },
  });
  const clusters = Float64Array.from({ length: 5000 }, (_, at) => at);
  const bytes = bytesOf([{ seed: 1, length: 5000 }]);
  const records = await recordsOf(bytes, { clusters });
  assertEquals(records.length, 5000 * RECORD_BYTES);
  assert(most < 1000, `${most}`);
  const last = new Uint8Array(await digest("SHA-256", bytes.subarray(-1)));
  assertEquals(records.slice(-8), last.slice(0, 8));
});

Deno.test("readFileRecords() stops while it reads the tables of a QCOW2", async () => {
  const path = await Deno.makeTempFile();
  try {
    using file = await Deno.open(path);
    file.stat = () => new Promise(() => {});
    const stop = new AbortController();
    const records = readFileRecords(file, { signal: stop.signal }).next();
    const reason = new Error("stop");
    stop.abort(reason);
    const failure = records.then(() => undefined, (error) => error);
    assertEquals(await failure, reason);
  } finally {
    await Deno.remove(path);
  }
});
