import { assertEquals } from "@std/assert";
import { archiveReader, readTarEntries } from "../../lib/guest/_tar_reader.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { openArchive } from "../support/tar.ts";

const BLOCK = 512;
const END = new Uint8Array(2 * BLOCK);

/** Header fields by offset. */
type Fields = Record<number, string | Uint8Array>;

const SIZE = 124;
const MTIME = 136;
const TYPE = 156;
const LINK = 157;
const MAGIC = 257;
const PREFIX = 345;

/** A header with a valid checksum, and content after it. */
function entry(fields: Fields, content = ""): Uint8Array {
  const block = new Uint8Array(BLOCK);
  const put = (field: string | Uint8Array, at: number) =>
    block.set(typeof field === "string" ? encode(field) : field, at);
  const octal = (value: number, digits: number) =>
    value.toString(8).padStart(digits, "0");
  const data = encode(content);
  put("000644\0", 100);
  put(octal(data.length, 11), SIZE);
  put("0", TYPE);
  for (const [at, field] of Object.entries(fields)) put(field, Number(at));
  put(" ".repeat(8), 148);
  put(`${octal(block.reduce((sum, byte) => sum + byte, 0), 6)}\0 `, 148);
  const padded = new Uint8Array(Math.ceil(data.length / BLOCK) * BLOCK);
  padded.set(data);
  return joined(block, padded);
}

function encode(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

function joined(...parts: Uint8Array[]): Uint8Array {
  return new Uint8Array(parts.flatMap((part) => [...part]));
}

/** One record of an extended header (POSIX, "pax Extended Header"). */
function record(text: string): string {
  const rest = ` ${text}\n`;
  const bytes = encode(rest).length;
  let length = bytes + 1;
  // The length includes its own digits.
  while (bytes + `${length}`.length > length) length++;
  return `${length}${rest}`;
}

const extended = (...texts: string[]) =>
  entry({ 0: "pax", [TYPE]: "x" }, texts.map(record).join(""));

const named = (typeFlag: "L" | "K", name: string) =>
  entry({ 0: "long", [TYPE]: typeFlag }, name);

const LIMITS = { maxBytes: 2 ** 53, maxEntries: 100 };

/** Reads an archive's entries, and the content of each, without its offset. */
async function read(bytes: Uint8Array) {
  using file = await openArchive(bytes);
  const read = archiveReader(file);
  const entries = await readTarEntries(read, LIMITS);
  const found = [];
  for (const { offset, ...entry } of entries) {
    const content = await read(offset, entry.size);
    found.push({ ...entry, content: new TextDecoder().decode(content) });
  }
  return found;
}

async function namesIn(...parts: Uint8Array[]): Promise<string[]> {
  return (await read(joined(...parts, END))).map(({ name }) => name);
}

/** The reason for which an archive is rejected. */
async function refusal(...parts: Uint8Array[]): Promise<string> {
  const { message, hint } = await expectFailure(
    "guest_failed",
    () => read(joined(...parts)),
  );
  assertEquals(hint, "use an image whose tar writes POSIX or GNU archives");
  const start = "Malformed tar archive from the guest: ";
  assertEquals(message.slice(0, start.length), start);
  return message.slice(start.length);
}

Deno.test("readTarEntries() parses each header field", async () => {
  const full = entry({
    0: "n".repeat(100),
    100: " 06751 \0",
    // Only regular files have content, whatever the size field says.
    [SIZE]: "00000001000",
    [MTIME]: "7346545000 ",
    [TYPE]: "2",
    [LINK]: "t".repeat(100),
    [MAGIC]: "ustar\x0000",
    [PREFIX]: "p".repeat(155),
    500: "x",
  });
  // A full field has no terminator.
  const exact = entry({
    0: "n".repeat(100),
    100: "70000644",
    108: "7",
    [SIZE]: "000000000002",
    [MTIME]: "007346545000",
  }, "ab");
  const old = entry({ 0: "old", [TYPE]: "\0", [PREFIX]: "p" }, "text");
  const sized = entry({ 0: "a", [SIZE]: " 3 \0", [MTIME]: "x" }, "abc");
  const blank = entry({ 0: "b", 100: "      ", [SIZE]: "\0", [MTIME]: "\0" });
  assertEquals(await read(joined(full, exact, old, sized, blank, END)), [
    {
      name: `${"p".repeat(155)}/${"n".repeat(100)}`,
      linkTarget: "t".repeat(100),
      typeFlag: "2",
      mode: 0o751,
      mtime: 0o7346545000,
      size: 0,
      content: "",
    },
    {
      ...plain,
      ...{ name: "n".repeat(100), mtime: 0o7346545000 },
      ...{ size: 2, content: "ab" },
    },
    { ...plain, name: "old", typeFlag: "\0", size: 4, content: "text" },
    { ...plain, name: "a", size: 3, content: "abc" },
    { ...plain, name: "b", mode: 0 },
  ]);
});

const plain = {
  ...{ linkTarget: "", typeFlag: "0", mode: 0o644, mtime: 0, size: 0 },
  content: "",
};

Deno.test("readTarEntries() finds the next entry for any entry size", async () => {
  const sizes = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 100_000, 3 * BLOCK, 65_536];
  const texts = sizes.map((size, index) => `${index}`.repeat(size));
  const files = texts.map((text, index) => entry({ 0: `${index}` }, text));
  const archive = joined(...files, END, new Uint8Array(5000).fill(1));
  const found = await read(archive);
  assertEquals(found.map(({ name, size }) => [name, size]), [
    ...sizes.map((size, index): [string, number] => [`${index}`, size]),
  ]);
  assertEquals(found.map(({ content }) => content), texts);
});

Deno.test("readTarEntries() applies a pax or GNU header to the next entry only", async () => {
  const [first, second, third, fourth, fifth] = await read(joined(
    extended("path=ü/long", "comment=a=b", "mtime=12.5", "size=3"),
    entry({ 0: "short", [SIZE]: "00000000000" }, "abc"),
    entry({ 0: "second" }, "x"),
    // GNU headers end at the first zero.
    named("K", "to/far\0rest"),
    named("L", "third\0"),
    extended("linkpath=to/here", "mtime=never"),
    entry({ 0: "short", [TYPE]: "2", [MTIME]: "00000000007" }),
    named("L", "two\nlines"),
    entry({ 0: "short", [MAGIC]: "ustar\x0000", [PREFIX]: "p" }),
    // A global pax header is ignored.
    entry({ 0: "all", [TYPE]: "g" }, record("path=x")),
    entry({ 0: "fifth" }),
    END,
  ));
  const [abc, x] = ["abc", "x"].map((content) => ({ ...plain, content }));
  assertEquals(first, { ...abc, name: "ü/long", mtime: 12.5, size: 3 });
  assertEquals(second, { ...x, name: "second", size: 1 });
  assertEquals(third, {
    ...plain,
    name: "third",
    linkTarget: "to/here",
    typeFlag: "2",
    mtime: 7,
  });
  assertEquals([fourth.name, fifth.name], ["two\nlines", "fifth"]);
});

Deno.test("readTarEntries() decodes invalid UTF-8 in a name as U+FFFD", async () => {
  const marked = entry({ 0: "\ufeffa" });
  const broken = entry({ 0: new Uint8Array([0x62, 0xff]) });
  assertEquals(await namesIn(marked, broken), ["\ufeffa", "b\ufffd"]);
});

Deno.test("readTarEntries() rejects a name longer than 8 KiB", async () => {
  const name = "n".repeat(8 * 1024);
  assertEquals(await namesIn(named("L", name), entry({})), [name]);
  const why = await refusal(named("L", `${name}n`), entry({}), END);
  assertEquals(why, "a name is longer than 8 KiB");
});

Deno.test("readTarEntries() rejects a truncated archive", async () => {
  const file = entry({ 0: "a" }, "x".repeat(BLOCK + 1));
  const long = named("L", "n".repeat(BLOCK));
  for (
    const cut of [
      new Uint8Array(),
      END.subarray(0, BLOCK - 1),
      file,
      file.subarray(0, -1),
      long.subarray(0, -1),
    ]
  ) {
    assertEquals(await refusal(cut), "truncated");
  }
  // One zero block is accepted as the end.
  assertEquals((await read(joined(file, END.subarray(0, BLOCK)))).length, 1);
});

Deno.test("readTarEntries() rejects a wrong checksum or size", async () => {
  const wrong = entry({ 0: "a" });
  wrong[0]++;
  assertEquals(await refusal(wrong, END), "wrong header checksum");
  for (const size of ["-1", "8", "0x10", "1 1"]) {
    const sized = entry({ [SIZE]: size.padEnd(11) });
    assertEquals(await refusal(sized, END), "invalid size", size);
  }
  for (const size of ["-1", "1.5", "x", "1e30", "9007199254740992"]) {
    const said = extended(`size=${size}`);
    assertEquals(await refusal(said, entry({}), END), "invalid size", size);
  }
});

Deno.test("readTarEntries() rejects a pax header with wrong record lengths", async () => {
  for (
    const text of [
      "12path=a\n",
      "3 path=a\n",
      "2 path=a\n",
      "0 a",
      "x a",
      "99 path=a\n",
      "11 path=a\n",
    ]
  ) {
    const pax = entry({ [TYPE]: "x" }, text);
    assertEquals(
      await refusal(pax, entry({}), END),
      "invalid pax header",
      text,
    );
  }
  // Text that is not a record is ignored.
  const odd = entry({ [TYPE]: "x" }, "10 path=a\n9 path:b\n");
  assertEquals(await namesIn(odd, entry({ 0: "b" })), ["a"]);
});
