import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { keepStream } from "../../lib/mcp/_kept_stream.ts";

const KIB = 1024;
const encode = (text: string) => new TextEncoder().encode(text);

/** Keeps bytes that arrive in chunks of odd sizes. */
function kept(bytes: Uint8Array, chunk = 8_191) {
  const stream = keepStream({ id: "7", stream: "stdout" });
  for (let at = 0; at < bytes.length; at += chunk) {
    stream.push(bytes.subarray(at, at + chunk));
  }
  return stream;
}

/** Reads a stream from an offset to its end, as an agent does. */
function readAll(stream: ReturnType<typeof keepStream>, from = 0) {
  const pieces: ReturnType<typeof stream.read>[] = [];
  for (let next: number | null = from; next !== null;) {
    const piece = stream.read(next);
    assert(piece.nextOffset === null || piece.nextOffset > next);
    pieces.push(piece);
    next = piece.nextOffset;
  }
  return pieces;
}

Deno.test("kept stream: shows up to 64 KiB as they are", () => {
  for (const text of ["", "a\n", "ü".repeat(32 * KIB), "\uFEFFbom"]) {
    assertEquals(kept(encode(text)).shown(), { text, truncated: false });
  }
});

Deno.test("kept stream: shows the first and the last 32 KiB of a longer text", () => {
  const text = "a".repeat(32 * KIB) + "b".repeat(1000) + "c".repeat(32 * KIB);
  const { text: shown, truncated } = kept(encode(text)).shown();
  assert(truncated);
  const note =
    '[1000 bytes left out: read_output {"id":"7","stream":"stdout","offset":32768}]';
  assertEquals(shown, text.replace(/b+/, `\n${note}\n`));
});

Deno.test("kept stream: never cuts a character", () => {
  for (const shift of [0, 1, 2, 3]) {
    const text = "x".repeat(shift) + "🎈".repeat(20_000);
    const stream = kept(encode(text));
    const { text: shown } = stream.shown();
    assertEquals(/[^x🎈]/u.exec(shown.replace(/\n\[.*\]\n/, "")), null);
    const [, left, offset] = /(\d+) bytes left out.*"offset":(\d+)/.exec(
      shown,
    )!;
    const [head, tail] = shown.split(/\n\[.*\]\n/).map((it) =>
      encode(it).length
    );
    assertEquals(head, Number(offset));
    assertEquals(head + Number(left) + tail, encode(text).length);
  }
});

Deno.test("kept stream: read_output returns a long text whole", () => {
  const text = Array.from({ length: 60_000 }, (_, at) => `${at} ünï\n`).join(
    "",
  );
  const stream = kept(encode(text));
  const pieces = readAll(stream);
  assert(pieces.every(({ encoding }) => encoding === "utf-8"));
  assertEquals(pieces.map(({ data }) => data).join(""), text);
  assertEquals(pieces[0].totalBytes, encode(text).length);
});

Deno.test("kept stream: bytes that are not UTF-8 are marked, and read as base64", () => {
  const bytes = crypto.getRandomValues(new Uint8Array(50_000));
  // A byte that UTF-8 never has, at both ends.
  bytes[0] = bytes[bytes.length - 1] = 0xff;
  const stream = kept(bytes);
  const { text, truncated } = stream.shown();
  assert(truncated);
  assertStringIncludes(text, "50000 bytes, not UTF-8: read_output");
  const [{ encoding, data, nextOffset }] = readAll(stream);
  assertEquals([encoding, nextOffset], ["base64", null]);
  assertEquals(Uint8Array.fromBase64(data), bytes);
});

Deno.test("kept stream: a text that ends within a character is not UTF-8", () => {
  const stream = kept(encode("aü").subarray(0, 2));
  assertStringIncludes(stream.shown().text, "2 bytes, not UTF-8");
  const [{ encoding, data }] = readAll(stream);
  assertEquals([encoding, Uint8Array.fromBase64(data).length], ["base64", 2]);
});

Deno.test("kept stream: a long text whose end is not UTF-8 is read from its start", () => {
  const bytes = encode("a".repeat(100_000) + "ü");
  const stream = kept(bytes.subarray(0, -1));
  assertEquals(
    stream.shown().text,
    '[100001 bytes, not UTF-8: read_output {"id":"7","stream":"stdout","offset":0}]',
  );
});

Deno.test("kept stream: keeps all of 4 MiB and 32 KiB", () => {
  const size = 4 * KIB * KIB + 32 * KIB;
  const bytes = Uint8Array.from({ length: size }, (_, at) => 97 + at % 17);
  const text = readAll(kept(bytes)).map(({ data }) => data).join("");
  assert(text === new TextDecoder().decode(bytes));
});

Deno.test("kept stream: drops what is between the start and the last 4 MiB", () => {
  const size = 6 * KIB * KIB;
  const bytes = Uint8Array.from({ length: size }, (_, at) => 97 + at % 17);
  const stream = kept(bytes);
  assertStringIncludes(
    stream.shown().text,
    `${size - 64 * KIB} bytes left out`,
  );
  let expected = 0;
  for (const { data, offset, nextOffset } of readAll(stream)) {
    if (expected === 32 * KIB) expected = size - 4 * KIB * KIB;
    assertEquals(offset, expected);
    expected = nextOffset ?? size;
    assertEquals(encode(data), bytes.subarray(offset, expected));
  }
  assertEquals(expected, size);
});

Deno.test("kept stream: reads whole characters before and after what it drops", () => {
  // The length of the pattern does not divide that of what is kept.
  const text = "x" + "🎈🎉🎊".repeat(512 * KIB);
  const [start, ...rest] = readAll(kept(encode(text)));
  assertEquals(start.data, text.slice(0, 1 + 2 * 8 * KIB));
  assert(rest.every(({ encoding }) => encoding === "utf-8"));
  const end = rest.map(({ data }) => data).join("");
  assert(text.endsWith(end) && end.length > 2 * (KIB * KIB - 2));
});

Deno.test("kept stream: reading beyond the end returns nothing", () => {
  for (const offset of [5, 40_000]) {
    const { data, nextOffset } = kept(encode("abc")).read(offset);
    assertEquals([data, nextOffset], ["", null]);
  }
});
