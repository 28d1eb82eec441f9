import { assertEquals } from "@std/assert";
import { byteReader } from "../../lib/guest/_byte_reader.ts";
import { entriesOf, type TarEntry } from "../../lib/guest/_tar_entries.ts";
import { failure } from "../support/failure.ts";

const BLOCK = 512;
const END = new Uint8Array(2 * BLOCK);

/** What stands at a place of a header. */
type Fields = Record<number, string | Uint8Array>;

const SIZE = 124;
const MTIME = 136;
const TYPE = 156;
const LINK = 157;
const MAGIC = 257;
const PREFIX = 345;

/** A header, whose checksum is right whatever else is not, and bytes after it. */
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
  // The length counts its own digits.
  while (bytes + `${length}`.length > length) length++;
  return `${length}${rest}`;
}

const extended = (...texts: string[]) =>
  entry({ 0: "pax", [TYPE]: "x" }, texts.map(record).join(""));

const named = (type: "L" | "K", name: string) =>
  entry({ 0: "long", [TYPE]: type }, name);

/** Reads an archive; of each file so many bytes are taken. */
async function read(archive: Uint8Array, take = 0): Promise<TarEntry[]> {
  async function* chunks() {
    for (let at = 0; at < archive.length; at += 333) {
      yield archive.subarray(at, at + 333);
    }
  }
  const reader = byteReader(chunks(), () => {});
  const found: TarEntry[] = [];
  for await (const entry of entriesOf(reader)) {
    await Array.fromAsync(reader.take(Math.min(take, entry.size)));
    found.push(entry);
  }
  assertEquals(reader.position, archive.length, "bytes after the end are left");
  return found;
}

async function namesIn(...parts: Uint8Array[]): Promise<string[]> {
  return (await read(joined(...parts, END))).map(({ name }) => name);
}

/** Why an archive is refused. */
async function refusal(...parts: Uint8Array[]): Promise<string> {
  const { message, hint } = await failure(
    "guest_failed",
    () => read(joined(...parts)),
  );
  assertEquals(hint, "it needs a tar that writes the usual format");
  const start = "What the guest exports is no tar archive: ";
  assertEquals(message.slice(0, start.length), start);
  return message.slice(start.length);
}

Deno.test("an entry is what its header says, field by field", async () => {
  const full = entry({
    0: "n".repeat(100),
    100: " 06751 \0",
    // What is no file has no bytes, whatever its size says.
    [SIZE]: "00000001000",
    [MTIME]: "7346545000 ",
    [TYPE]: "2",
    [LINK]: "t".repeat(100),
    [MAGIC]: "ustar\x0000",
    [PREFIX]: "p".repeat(155),
    500: "x",
  });
  // Fields may be full: nothing ends them but the next.
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
      target: "t".repeat(100),
      type: "2",
      mode: 0o751,
      mtime: 0o7346545000,
      size: 0,
    },
    { ...plain, name: "n".repeat(100), mtime: 0o7346545000, size: 2 },
    { ...plain, name: "old", type: "\0", size: 4 },
    { ...plain, name: "a", size: 3 },
    { ...plain, name: "b", mode: 0 },
  ]);
});

const plain = { target: "", type: "0", mode: 0o644, mtime: 0, size: 0 };

Deno.test("entries follow each other, whatever their sizes, and however much is read of them", async () => {
  const sizes = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK];
  const files = sizes.map((size) => entry({ 0: `${size}` }, "x".repeat(size)));
  const archive = joined(...files, END, new Uint8Array(5000).fill(1));
  for (const take of [0, 1, BLOCK, Infinity]) {
    const found = await read(archive, take);
    assertEquals(found.map(({ name, size }) => [name, size]), [
      ...sizes.map((size): [string, number] => [`${size}`, size]),
    ]);
  }
});

Deno.test("headers before an entry name it, and no other", async () => {
  const [first, second, third, fourth, fifth] = await read(joined(
    extended("path=ü/long", "comment=a=b", "mtime=12.5", "size=3"),
    entry({ 0: "short", [SIZE]: "00000000000" }, "abc"),
    entry({ 0: "second" }, "x"),
    // GNU's end with a zero, and what is after it does not count.
    named("K", "to/far\0rest"),
    named("L", "third\0"),
    extended("linkpath=to/here", "mtime=never"),
    entry({ 0: "short", [TYPE]: "2", [MTIME]: "00000000007" }),
    named("L", "two\nlines"),
    entry({ 0: "short", [MAGIC]: "ustar\x0000", [PREFIX]: "p" }),
    // It is said of all entries, and none of them.
    entry({ 0: "all", [TYPE]: "g" }, record("path=x")),
    entry({ 0: "fifth" }),
    END,
  ));
  assertEquals(first, { ...plain, name: "ü/long", mtime: 12.5, size: 3 });
  assertEquals(second, { ...plain, name: "second", size: 1 });
  assertEquals(third, {
    ...plain,
    name: "third",
    target: "to/here",
    type: "2",
    mtime: 7,
  });
  assertEquals([fourth.name, fifth.name], ["two\nlines", "fifth"]);
});

Deno.test("a name that is no text has a character that no name has", async () => {
  const marked = entry({ 0: "\ufeffa" });
  const broken = entry({ 0: new Uint8Array([0x62, 0xff]) });
  assertEquals(await namesIn(marked, broken), ["\ufeffa", "b\ufffd"]);
});

Deno.test("a name may have 8 KiB, and no byte more", async () => {
  const name = "n".repeat(8 * 1024);
  assertEquals(await namesIn(named("L", name), entry({})), [name]);
  const why = await refusal(named("L", `${name}n`), entry({}), END);
  assertEquals(why, "a name is too long");
});

Deno.test("an archive that ends before its end is cut off, wherever that is", async () => {
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
    assertEquals(await refusal(cut), "it is cut off");
  }
  // One block of zeros is end enough.
  assertEquals((await read(joined(file, END.subarray(0, BLOCK)))).length, 1);
});

Deno.test("a header that cannot be right is refused", async () => {
  const wrong = entry({ 0: "a" });
  wrong[0]++;
  assertEquals(await refusal(wrong, END), "a checksum is wrong");
  for (const size of ["-1", "8", "0x10", "1 1"]) {
    const sized = entry({ [SIZE]: size.padEnd(11) });
    assertEquals(await refusal(sized, END), "a size is wrong", size);
  }
  for (const size of ["-1", "1.5", "x", "1e30", "9007199254740992"]) {
    const said = extended(`size=${size}`);
    assertEquals(await refusal(said, entry({}), END), "a size is wrong", size);
  }
});

Deno.test("an extended header whose lengths do not fit is refused", async () => {
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
      "an extended header is wrong",
      text,
    );
  }
  // Words that are no record say nothing.
  const odd = entry({ [TYPE]: "x" }, "10 path=a\n9 path:b\n");
  assertEquals(await namesIn(odd, entry({ 0: "b" })), ["a"]);
});
