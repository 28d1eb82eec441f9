import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import {
  type ChunkIndex,
  findChunkIndex,
  formatChunkIndex,
} from "../../lib/delta/chunk_index.ts";
import type { ExpectedContent } from "../../lib/system/part_record.ts";
import { createChunker, RECORD_BYTES } from "../../lib/delta/chunker.ts";
import { assertLinear } from "../support/assert_linear.ts";
import { replaceMethod } from "../support/replace_method.ts";

const digest = `sha256:${"ab".repeat(32)}`;

async function indexOf(size: number) {
  const push = createChunker(Float64Array.of());
  const bytes = Uint8Array.from({ length: size }, (_, at) => at * at >> 7);
  const records = Uint8Array.from([
    ...await push(bytes),
    ...await push(undefined),
  ]);
  return { size, digest, records };
}

/** Parses one file; `undefined` if it is not the image's index. */
function parse(
  bytes: Uint8Array,
  image: ExpectedContent,
): Promise<ChunkIndex | undefined> {
  const files = ReadableStream.from([bytes]);
  return findChunkIndex(files, image).catch(({ message }) => {
    assertEquals(message, "no chunk index was found");
    return undefined;
  });
}

Deno.test("formatChunkIndex() writes the documented format, the same for the same image", async () => {
  const index = await indexOf(500_000);
  const bytes = await formatChunkIndex(index);
  assertEquals(bytes, await formatChunkIndex(await indexOf(500_000)));
  const end = bytes.indexOf(10);
  assertEquals(
    new TextDecoder().decode(bytes.subarray(0, end)),
    JSON.stringify({ version: 1, size: 500_000, digest }),
  );
  assertEquals(bytes.subarray(end + 1), index.records);
  assertEquals(await parse(bytes, { size: 500_000, digest }), index);
});

Deno.test("findChunkIndex() rejects an index that is malformed or of another image", async () => {
  const index = await indexOf(200_000);
  const good = await formatChunkIndex(index);
  const { size, records } = index;
  const expected = { size, digest };
  const header = (fields: Record<string, unknown>) => {
    const line = JSON.stringify({ version: 1, size, digest, ...fields });
    return new Uint8Array([
      ...new TextEncoder().encode(`${line}\n`),
      ...records,
    ]);
  };
  assert(await parse(header({}), expected));
  const html = new TextEncoder().encode("<!doctype html>\n<p>404</p>");
  for (
    const bytes of [
      new Uint8Array(),
      html,
      new Uint8Array([10]),
      new TextEncoder().encode("null\n"),
      new TextEncoder().encode("[]\n"),
      header({ version: 2 }),
      header({ version: "1" }),
      header({ size: size + 1 }),
      header({ digest: digest.replace("a", "c") }),
      header({ padding: " ".repeat(600) }),
      good.subarray(0, good.length - 1),
      good.subarray(0, good.length - RECORD_BYTES),
      new Uint8Array([...good, ...records.subarray(0, RECORD_BYTES)]),
    ]
  ) assertEquals(await parse(bytes, expected), undefined);
  assertEquals(await parse(good, { size: size + 1, digest }), undefined);
});

Deno.test("findChunkIndex() returns chunks that add up to the image, or nothing, for any bytes", async () => {
  await fc.assert(fc.asyncProperty(
    fc.uint8Array({ maxLength: 200 }),
    fc.nat(1_000_000),
    fc.boolean(),
    async (records, size, isHeaderRight) => {
      const line = isHeaderRight
        ? `${JSON.stringify({ version: 1, size, digest })}\n`
        : "";
      const text = new TextEncoder().encode(line);
      const bytes = new Uint8Array([...text, ...records]);
      const parsed = await parse(bytes, { size, digest });
      if (!parsed) return;
      let sum = 0;
      for (let at = 0; at < parsed.records.length; at += RECORD_BYTES) {
        sum += parsed.records[at] * 256 + parsed.records[at + 1] + 1;
      }
      assertEquals(sum, size);
    },
  ));
});

Deno.test("findChunkIndex() skips files that are not the image's index", async () => {
  const index = await indexOf(100_000);
  const other = await indexOf(100_001);
  const files = ReadableStream.from([
    new Uint8Array(),
    await formatChunkIndex(other),
    await formatChunkIndex(index),
  ]);
  assertEquals(await findChunkIndex(files, { size: 100_000, digest }), index);
});

Deno.test("findChunkIndex() parses at most 512 bytes as JSON", async () => {
  const parsed: number[] = [];
  const { parse: parseJson } = JSON;
  using _json = replaceMethod(JSON, {
    parse(text: string) {
      parsed.push(text.length);
      return parseJson(text);
    },
  });
  const text = `[${"{},".repeat(100_000)}0] `;
  const bytes = new TextEncoder().encode(text);
  assertEquals(await parse(bytes, { size: 1, digest }), undefined);
  assert(parsed.every((length) => length <= 512), `${parsed}`);
});

Deno.test("findChunkIndex() takes linear time", async () => {
  await assertLinear(
    "an index",
    (length) => {
      const records = new Uint8Array(length * RECORD_BYTES);
      return formatChunkIndex({ size: length, digest, records });
    },
    async (bytes) => await parse(await bytes, { size: 1, digest }),
    1_000_000,
  );
});
