/**
 * Checks the headers of an archive that planTar() writes;
 * tests/guest/tar_writer_test.ts unpacks archives with the system's tar.
 */
import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { planTar } from "../../lib/guest/_tar_writer.ts";
import { temporaryDir } from "../support/directory.ts";

function test(name: string, body: (dir: string) => Promise<void>) {
  Deno.test({
    name,
    ignore: Deno.build.os === "windows",
    async fn() {
      await using dir = await temporaryDir();
      await body(dir.path);
    },
  });
}

async function archive(dir: string) {
  const { archiveBytes, archiveChunks } = await planTar(dir);
  const content = await new Response(ReadableStream.from(archiveChunks()))
    .bytes();
  return { bytes: archiveBytes, content };
}

async function touched(path: string): Promise<void> {
  await Deno.writeTextFile(path, "");
}

/** Parses an archive's headers by the offsets that POSIX specifies. */
function headersOf(content: Uint8Array) {
  const headers: Record<string, string>[] = [];
  const text = (at: number, length: number) =>
    new TextDecoder("latin1").decode(content.subarray(at, at + length));
  for (let at = 0; content[at] !== 0;) {
    const field = (from: number, length: number) => text(at + from, length);
    const size = parseInt(field(124, 11), 8);
    headers.push({
      name: field(0, 100).replace(/\0.*$/s, ""),
      numbers: [[100, 8], [108, 8], [116, 8], [124, 12], [136, 12]]
        .map(([from, length]) => field(from, length)).join("|"),
      type: field(156, 1),
      target: field(157, 100).replace(/\0.*$/s, ""),
      magic: field(257, 8),
      content: text(at + 512, size),
    });
    at += 512 + Math.ceil(size / 512) * 512;
  }
  return headers;
}

test("planTar() writes POSIX ustar headers with root as owner", async (dir) => {
  const from = join(dir, "from");
  await Deno.mkdir(join(from, "d"), { recursive: true });
  await Deno.writeTextFile(join(from, "f"), "text");
  await Deno.symlink("f", join(from, "l"));
  await Deno.chmod(join(from, "f"), 0o6640);
  await Deno.chmod(join(from, "d"), 0o1755);
  for (const name of ["f", "d"]) await Deno.utime(join(from, name), 8, 8);
  const { content, bytes } = await archive(from);
  assertEquals(bytes, 4 * 512 + 1024);
  const [d, f, l] = headersOf(content);
  const owner = "0000000\0|0000000\0";
  const plain = { target: "", content: "", magic: "ustar\x0000" };
  assertEquals(d, {
    ...plain,
    name: "d/",
    type: "5",
    numbers: `0001755\0|${owner}|00000000000\0|00000000010\0`,
  });
  assertEquals(f, {
    ...plain,
    name: "f",
    type: "0",
    content: "text",
    numbers: `0000640\0|${owner}|00000000004\0|00000000010\0`,
  });
  assertEquals([l.name, l.type, l.target], ["l", "2", "f"]);
});

test("planTar() writes a pax header for a name that does not fit into the ustar header", async (dir) => {
  for (const length of [100, 101, 250]) {
    await touched(join(dir, "n".repeat(length)));
  }
  await touched(join(dir, "ü"));
  await Deno.symlink("t".repeat(101), join(dir, "link"));
  const { content } = await archive(dir);
  const found = headersOf(content);
  const records = found.filter(({ type }) => type === "x")
    .map(({ content }) => content);
  // Record lengths include their own digits.
  assertEquals(records, [
    `115 linkpath=${"t".repeat(101)}\n`,
    `111 path=${"n".repeat(101)}\n`,
    `260 path=${"n".repeat(250)}\n`,
    "11 path=\xc3\xbc\n",
  ]);
  assertEquals(found.filter(({ name }) => name === "long").length, 3);
  assertEquals(found.filter(({ name }) => name === "pax").length, 4);
  const [link] = found.filter(({ name }) => name === "link");
  assertEquals(link.target, "long");
});

test("archiveChunks() yields chunks of at least 64 KiB, except the last, and stops when aborted", async (dir) => {
  const files = { a: 200_000, b: 10, c: 65_024 };
  for (const [name, size] of Object.entries(files)) {
    await Deno.writeFile(join(dir, name), new Uint8Array(size));
  }
  const stop = new AbortController();
  const { signal } = stop;
  const plan = await planTar(dir, { signal });
  const sizes = (await Array.fromAsync(plan.archiveChunks())).map((it) =>
    it.length
  );
  assertEquals(sizes.slice(0, -1).filter((size) => size < 65_536), []);
  assertEquals(sizes.reduce((sum, size) => sum + size), plan.archiveBytes);
  assert(sizes.length >= 4, `${sizes}`);
  const stopped = await (async () => {
    for await (const _ of plan.archiveChunks()) stop.abort(new Error("enough"));
  })().catch((error) => error);
  assertEquals(stopped?.message, "enough");
  const planned = await planTar(dir, { signal }).catch((error) => error);
  assertEquals(planned.message, "enough");
});

test("planTar() stops after the entry that exceeds maxBytes; archiveChunks() fills a deleted file with zeros", async (dir) => {
  for (const name of ["a", "b", "c"]) await touched(join(dir, name));
  // The first entry beyond the limit is the last one planned.
  const plan = (limit: number) => planTar(dir, { maxBytes: limit });
  assertEquals((await plan(3 * 512 + 1024)).entryCount, 3);
  assertEquals((await plan(2 * 512 + 1024)).entryCount, 3);
  assertEquals((await plan(512 + 1024)).entryCount, 2);
  assertEquals((await plan(1024)).entryCount, 1);
  assertEquals((await plan(1023)).entryCount, 0);
  await Deno.writeTextFile(join(dir, "b"), "gone");
  const whole = await planTar(dir);
  await Deno.remove(join(dir, "b"));
  const content = await new Response(ReadableStream.from(whole.archiveChunks()))
    .bytes();
  assertEquals(content.length, whole.archiveBytes);
  assertEquals(headersOf(content)[1].content, "\0\0\0\0");
});

test("planTar() clamps a modification time to the range of a tar header", async (dir) => {
  const last = 8 ** 11 - 1;
  const times = { before: -5, first: 0, last, after: last + 1 };
  const expected = { before: 0, first: 0, last, after: last };
  for (const [name, time] of Object.entries(times)) {
    await touched(join(dir, name));
    await Deno.utime(join(dir, name), time, time);
  }
  for (const { name, numbers } of headersOf((await archive(dir)).content)) {
    const { mtime } = await Deno.stat(join(dir, name));
    const time = times[name as keyof typeof times];
    // Some file systems have limits of their own.
    if (mtime!.getTime() !== time * 1000) continue;
    const written = parseInt(numbers.split("|").at(-1)!, 8);
    assertEquals(written, expected[name as keyof typeof expected], name);
  }
});
