/**
 * What a hostile guest may send as an export: nothing of it gets out of the
 * directory, or is more than it should be.
 */
import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import fc from "fast-check";
import { ToolsmithError } from "../../lib/errors.ts";
import { run } from "../../lib/system/process.ts";
import { planTar } from "../../lib/guest/_tar.ts";
import { unpackTar } from "../../lib/guest/_untar.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { tar, type TarEntry } from "../support/tar.ts";

const LIMITS = { maxBytes: 2 ** 20, maxEntries: 1000 };

interface Bench {
  /** The export. */
  out: string;
  /** A directory beside it, which must stay as it is. */
  outside: string;
  /** Unpacks entries, in chunks of an odd size. */
  take(entries: TarEntry[] | Uint8Array): ReturnType<typeof unpackTar>;
}

function test(name: string, body: (bench: Bench) => Promise<void>) {
  Deno.test({
    name,
    ignore: Deno.build.os === "windows",
    async fn() {
      await using dir = await temporaryDir();
      const out = join(dir.path, "out");
      const outside = join(dir.path, "outside");
      await Deno.mkdir(out);
      await Deno.mkdir(outside);
      await Deno.writeTextFile(join(outside, "secret"), "secret");
      await body({
        out,
        outside,
        take: (entries) =>
          unpackTar(
            pieces(Array.isArray(entries) ? tar(entries) : entries),
            out,
            LIMITS,
          ),
      });
      assertEquals(namesIn(outside), ["secret"]);
      const kept = await Deno.readTextFile(join(outside, "secret"));
      assertEquals(kept, "secret");
      assertEquals(namesIn(dir.path), ["out", "outside"]);
    },
  });
}

async function* pieces(bytes: Uint8Array) {
  for (let at = 0; at < bytes.length; at += 777) {
    yield bytes.subarray(at, at + 777);
  }
}

async function* again(bytes: Uint8Array) {
  for (;;) yield bytes;
}

function namesIn(dir: string): string[] {
  return [...Deno.readDirSync(dir)].map(({ name }) => name).sort();
}

test("an export takes no name that leads out of it", async ({ out, outside, take }) => {
  const names = [
    "../outside/secret",
    "a/../../outside/secret",
    `${outside}/secret`,
    "..",
    "a/..",
    "./../x",
  ];
  const entries = names.map((name) => ({ name, content: "evil" }));
  const { entries: taken, refused } = await take(entries);
  assertEquals([taken, refused.count], [0, names.length]);
  assertEquals(namesIn(out), []);
});

test("an export writes nothing through a link, its own or one that was there", async ({ out, outside, take }) => {
  await Deno.symlink(outside, join(out, "there"));
  await Deno.symlink(join(outside, "secret"), join(out, "file"));
  const { refused } = await take([
    { name: "there/secret", content: "evil" },
    { name: "there/new", content: "evil" },
    { name: "own", linkTo: "../outside" },
    { name: "own/secret", content: "evil" },
    { name: "file", content: "replaced" },
    { name: "hard", hardLinkTo: "there/secret" },
    { name: "hard2", hardLinkTo: "../outside/secret" },
    { name: "there", type: "5" },
  ]);
  assertEquals(refused.names, [
    "there/secret",
    "there/new",
    "hard",
    "hard2",
    "there",
    "own",
  ]);
  // A link in the place of a file is replaced, not followed.
  assertEquals(await Deno.readTextFile(join(out, "file")), "replaced");
  assert(!(await Deno.lstat(join(out, "file"))).isSymlink);
});

test("a hard link to a file that was replaced does not write to the old one", async ({ out, outside, take }) => {
  await Deno.link(join(outside, "secret"), join(out, "twin"));
  await take([{ name: "twin", content: "evil" }]);
  assertEquals(await Deno.readTextFile(join(out, "twin")), "evil");
});

test("links stay inside, however they are put together", async ({ out, take }) => {
  const { refused } = await take([
    { name: "a/b/c/", type: "5", mode: 0o755 },
    { name: "good", linkTo: "a/b" },
    { name: "a/b/up", linkTo: "../.." },
    { name: "a/b/c/good", linkTo: "../../../good" },
    { name: "absolute", linkTo: "/etc/passwd" },
    { name: "out", linkTo: "../x" },
    { name: "a/out", linkTo: "../../x" },
    // Through `a/b/up` this would be above the export.
    { name: "through", linkTo: "a/b/up/../x" },
    { name: "empty", linkTo: "" },
  ]);
  assertEquals(refused.names, ["absolute", "out", "a/out", "through", "empty"]);
  assertEquals(await Deno.readLink(join(out, "a/b/c/good")), "../../../good");
});

test("an export has no device, no pipe and no set-user-ID bit", async ({ out, take }) => {
  await Deno.chmod(out, 0o700);
  const { refused } = await take([
    { name: "char", type: "3" },
    { name: "block", type: "4" },
    { name: "pipe", type: "6" },
    { name: "strange", type: "Z" },
    { name: "setuid", mode: 0o6755, content: "#!/bin/sh" },
    { name: "./", type: "5", mode: 0o777 },
    { name: "dir", type: "5", mode: 0o7000 },
    { name: "dir/inside", content: "text" },
  ]);
  assertEquals(refused.names, ["char", "block", "pipe", "strange"]);
  const mode = (name: string) => Deno.statSync(join(out, name)).mode! & 0o7777;
  assertEquals(mode("setuid"), 0o755);
  assertEquals(mode("dir"), 0o700);
  assertEquals(mode("."), 0o700);
  assertEquals(namesIn(out), ["dir", "setuid"]);
});

test("a directory is replaced by nothing else", async ({ out, take }) => {
  await Deno.mkdir(join(out, "dir"));
  await Deno.writeTextFile(join(out, "dir", "kept"), "kept");
  const { refused } = await take([
    { name: "dir", content: "file" },
    { name: "dir", linkTo: "x" },
    { name: "file", content: "file" },
    { name: "file/below", content: "below" },
  ]);
  assertEquals(refused.names, ["dir", "file/below", "dir"]);
  assertEquals(await Deno.readTextFile(join(out, "dir", "kept")), "kept");
});

test("an export has limits in size and in count", async ({ out, take }) => {
  const big = { name: "big", size: 2 ** 30, content: "x" };
  await failure("guest_failed", () => take([big]));
  const half = { name: "half", content: "x".repeat(600_000) };
  await failure("guest_failed", () => take([half, { ...half, name: "more" }]));
  const many = Array.from({ length: 1001 }, (_, n) => ({ name: `n${n}` }));
  await failure("guest_failed", () => take(many));
  assert(!namesIn(out).includes("big"));
});

test("what an archive says costs no more memory or time than its limits", async ({ out, take }) => {
  const long = { name: "long", type: "L", content: `${"n".repeat(4000)}\0` };
  // Each is let go as soon as it is refused: but for the names of a few.
  const odd = Array.from(
    { length: 500 },
    () => [long, { name: "odd", type: "9" }],
  );
  const { refused } = await take(odd.flat());
  assertEquals([refused.count, refused.names.length], [500, 20]);
  const tooLong = { ...long, content: "n".repeat(10_000) };
  await failure("guest_failed", () => take([tooLong]));
  // Neither headers without an entry nor what follows the end come for ever.
  for (const type of ["g", "L"]) {
    const header = tar([{ name: "x", type, content: "x=y" }]).subarray(0, 1024);
    const endless = again(header);
    await failure("guest_failed", () => unpackTar(endless, out, LIMITS));
  }
  const zeros = again(new Uint8Array(2 ** 20));
  await failure("guest_failed", () => unpackTar(zeros, out, LIMITS));
  assert((await zeros.next()).done, "the sender was not stopped");
});

test("directories that an entry implies count, and have a limited depth", async ({ out, take }) => {
  const deep = (top: string, depth: number) => ({
    name: "long",
    type: "L",
    content: `${top}/${"d/".repeat(depth)}f\0`,
  });
  const file = { name: "f", content: "x" };
  const { refused } = await take([deep("a", 200), file]);
  assertEquals([refused.count, namesIn(out)], [1, []]);
  const many = Array.from({ length: 20 }, (_, n) => [deep(`t${n}`, 90), file]);
  await failure("guest_failed", () => take(many.flat()));
});

test("what is refused leaves nothing behind, and nothing else is refused for it", async ({ out, take }) => {
  const linkpath = "t".repeat(5000);
  const { refused, entries } = await take([
    { name: "hard", hardLinkTo: "q/w/e/r" },
    { name: "deep/odd", type: "9" },
    { name: "long", type: "K", content: `${linkpath}\0` },
    { name: "long", linkTo: "x" },
    { name: "good", linkTo: "x" },
  ]);
  assertEquals(refused.names, ["hard", "deep/odd", "long"]);
  assertEquals([entries, namesIn(out)], [1, ["good"]]);
});

test("an archive that is cut off or damaged is refused", async ({ take }) => {
  const whole = tar([{ name: "a", content: "x".repeat(2000) }]);
  for (const length of [0, 100, 512, 1000, 2048]) {
    await failure("guest_failed", () => take(whole.slice(0, length)));
  }
  const bad = whole.slice();
  bad[0] ^= 1;
  await failure("guest_failed", () => take(bad));
  const endless = { name: "pax", type: "x", size: 2 ** 33 - 1 };
  await failure("guest_failed", () => take([endless]));
});

test("names in extended headers are held to the same", async ({ out, take }) => {
  const pax = (text: string): TarEntry => ({
    name: "pax",
    type: "x",
    content: `${text.length + 3} ${text}`,
  });
  const { refused } = await take([
    pax("path=../outside/x\n"),
    { name: "a", content: "evil" },
    { name: "././@LongLink", type: "L", content: "../outside/y\0" },
    { name: "b", content: "evil" },
    pax("linkpath=/etc/shadow\n"),
    { name: "c", linkTo: "ok" },
    { name: "././@LongLink", type: "L", content: `${"d".repeat(120)}\0` },
    { name: "d", content: "good" },
  ]);
  assertEquals(refused.names, ["../outside/x", "../outside/y", "c"]);
  assertEquals(namesIn(out), ["d".repeat(120)]);
});

test("any bytes are unpacked, or refused with a typed error", async ({ take }) => {
  const entry = fc.record({
    name: fc.oneof(
      fc.constantFrom("a", "a/b", "../x", "/x"),
      fc.string({ maxLength: 90 }),
    ),
    linkTo: fc.option(fc.constantFrom("a", "..", "/", "a/../.."), {
      nil: undefined,
    }),
    content: fc.string({ maxLength: 600 }),
    type: fc.option(fc.constantFrom(..."0123456xLKg\0"), { nil: undefined }),
    mode: fc.nat(0o7777),
  });
  const damage = fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 3 });
  await fc.assert(
    fc.asyncProperty(
      fc.array(entry, { maxLength: 8 }),
      damage,
      async (entries, damage) => {
        const bytes = tar(entries.map((it) => ({
          ...it,
          name: ascii(it.name),
          content: ascii(it.content),
        })));
        for (const [at, value] of damage) bytes[at % bytes.length] = value;
        await take(bytes).catch((error) => {
          if (!(error instanceof ToolsmithError)) throw error;
          assertEquals(error.code, "guest_failed");
        });
      },
    ),
    { numRuns: 200 },
  );
});

function ascii(text: string): string {
  return text.replace(/[^\x20-\x7e]/g, "_");
}

test("what this program, GNU tar and others write is unpacked as it was", async ({ out, outside }) => {
  const from = join(outside, "from");
  const long = join("d".repeat(80), "e".repeat(80));
  await Deno.mkdir(join(from, long), { recursive: true });
  await Deno.writeTextFile(join(from, long, "ümlaut"), "text\n");
  await Deno.writeTextFile(join(from, "tool"), "x".repeat(5000));
  await Deno.chmod(join(from, "tool"), 0o751);
  await Deno.utime(join(from, "tool"), 1e9, 1e9);
  await Deno.symlink(join(long, "ümlaut"), join(from, "link"));
  await Deno.link(join(from, "tool"), join(from, "twin"));
  const plan = await planTar(from);
  const archives = [
    await new Response(ReadableStream.from(plan.chunks())).bytes(),
  ];
  for (const format of ["gnu", "pax"]) {
    const file = join(outside, "a.tar");
    const args = ["-cf", file, `--format=${format}`, "-C", from, "."];
    const { code, stderr } = await run("tar", { args });
    assertEquals(code, 0, stderr);
    archives.push(await Deno.readFile(file));
    await Deno.remove(file);
  }
  await Deno.remove(from, { recursive: true });
  for (const [index, bytes] of archives.entries()) {
    const to = join(out, `${index}`);
    await Deno.mkdir(to);
    const { refused } = await unpackTar(pieces(bytes), to, LIMITS);
    assertEquals(refused.count, 0);
    const text = await Deno.readTextFile(join(to, "link"));
    assertEquals(text, "text\n");
    const { mode, mtime, size } = await Deno.stat(join(to, "tool"));
    assertEquals([mode! & 0o7777, mtime!.getTime(), size], [0o751, 1e12, 5000]);
    assertEquals((await Deno.stat(join(to, "twin"))).size, 5000);
  }
});
