/**
 * Archives that a malicious guest may send as an export: nothing is written outside
 * the directory or beyond the limits.
 */
import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import fc from "fast-check";
import { ToolsmithError } from "../../lib/errors.ts";
import { runProcess } from "../../lib/system/process.ts";
import { planTar } from "../../lib/guest/_tar_writer.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { makeTar, type TarEntry, unpackBytes } from "../support/tar.ts";

const LIMITS = { maxBytes: 2 ** 20, maxEntries: 1000 };

interface Bench {
  /** The directory of the export. */
  out: string;
  /** A directory beside `out`, which must not change. */
  outside: string;
  /** Unpacks entries. */
  take(entries: TarEntry[] | Uint8Array): Promise<{ refused: string[] }>;
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
          unpackBytes(
            Array.isArray(entries) ? makeTar(entries) : entries,
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

function namesIn(dir: string): string[] {
  return [...Deno.readDirSync(dir)].map(({ name }) => name).sort();
}

test("unpackTar() rejects entry names that lead out of the export", async ({ out, outside, take }) => {
  const names = [
    "../outside/secret",
    "a/../../outside/secret",
    `${outside}/secret`,
    "..",
    "a/..",
    "./../x",
  ];
  const entries = names.map((name) => ({ name, content: "evil" }));
  const { refused } = await take(entries);
  assertEquals(refused, names);
  assertEquals(namesIn(out), []);
});

test("unpackTar() writes through no symbolic link, from the archive or on disk", async ({ out, outside, take }) => {
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
  assertEquals(refused, [
    "there/secret",
    "there/new",
    "own/secret",
    "hard",
    "hard2",
    "there",
    "own",
  ]);
  // An existing symbolic link is replaced, not followed.
  assertEquals(await Deno.readTextFile(join(out, "file")), "replaced");
  assert(!(await Deno.lstat(join(out, "file"))).isSymlink);
});

test("unpackTar() replaces a hard-linked file without writing to the other name", async ({ out, outside, take }) => {
  await Deno.link(join(outside, "secret"), join(out, "twin"));
  await take([{ name: "twin", content: "evil" }]);
  assertEquals(await Deno.readTextFile(join(out, "twin")), "evil");
});

test("unpackTar() rejects symbolic links that lead out of the export", async ({ out, take }) => {
  const dirs = ["a/", "a/b/", "a/b/c/"];
  const { refused } = await take([
    ...dirs.map((name) => ({ name, type: "5", mode: 0o755 })),
    { name: "good", linkTo: "a/b" },
    { name: "a/b/up", linkTo: "../.." },
    { name: "a/b/c/good", linkTo: "../../../good" },
    { name: "absolute", linkTo: "/etc/passwd" },
    { name: "out", linkTo: "../x" },
    { name: "a/out", linkTo: "../../x" },
    // Resolved through `a/b/up`, this is outside the export.
    { name: "through", linkTo: "a/b/up/../x" },
    { name: "empty", linkTo: "" },
  ]);
  assertEquals(refused, [
    "absolute",
    "out",
    "a/out",
    "through",
    "empty",
  ]);
  assertEquals(await Deno.readLink(join(out, "a/b/c/good")), "../../../good");
});

test("unpackTar() rejects devices and pipes, and clears set-user-ID bits", async ({ out, take }) => {
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
  assertEquals(refused, ["char", "block", "pipe", "strange"]);
  const mode = (name: string) => Deno.statSync(join(out, name)).mode! & 0o7777;
  assertEquals(mode("setuid"), 0o755);
  assertEquals(mode("dir"), 0o700);
  assertEquals(mode("."), 0o700);
  assertEquals(namesIn(out), ["dir", "setuid"]);
});

test("unpackTar() does not replace a directory with a file or link", async ({ out, take }) => {
  await Deno.mkdir(join(out, "dir"));
  await Deno.writeTextFile(join(out, "dir", "kept"), "kept");
  const { refused } = await take([
    { name: "dir", content: "file" },
    { name: "dir", linkTo: "x" },
    { name: "file", content: "file" },
    { name: "file/below", content: "below" },
  ]);
  assertEquals(refused, ["dir", "file/below", "dir"]);
  assertEquals(await Deno.readTextFile(join(out, "dir", "kept")), "kept");
});

test("unpackTar() throws guest_failed above maxBytes or maxEntries", async ({ out, take }) => {
  const big = { name: "big", size: 2 ** 30, content: "x" };
  await expectFailure("guest_failed", () => take([big]));
  const half = { name: "half", content: "x".repeat(600_000) };
  await expectFailure(
    "guest_failed",
    () => take([half, { ...half, name: "more" }]),
  );
  const many = Array.from({ length: 1001 }, (_, n) => ({ name: `n${n}` }));
  await expectFailure("guest_failed", () => take(many));
  assert(!namesIn(out).includes("big"));
});

test("unpackTar() limits memory and time for malicious headers", async ({ out, take }) => {
  const long = { name: "long", type: "L", content: `${"n".repeat(4000)}\0` };
  const odd = Array.from(
    { length: 500 },
    () => [long, { name: "odd", type: "9" }],
  );
  const { refused } = await take(odd.flat());
  assertEquals(refused.length, 500);
  const tooLong = { ...long, content: "n".repeat(10_000) };
  await expectFailure("guest_failed", () => take([tooLong]));
  // An archive of headers alone ends without entries.
  for (const type of ["g", "L"]) {
    const header = makeTar([{ name: "x", type, content: "x=y" }])
      .subarray(0, 1024);
    const many = Array.from({ length: 2000 }, () => [...header]).flat();
    const bytes = new Uint8Array([...many, ...new Uint8Array(512)]);
    assertEquals(await take(bytes), { refused: [] });
    assertEquals(namesIn(out), []);
  }
});

test("unpackTar() limits the depth of paths", async ({ out, take }) => {
  const deep = {
    name: "long",
    type: "L",
    content: `a/${"d/".repeat(200)}f\0`,
  };
  const { refused } = await take([deep, { name: "f", content: "x" }]);
  assertEquals([refused.length, namesIn(out)], [1, []]);
});

test("unpackTar() leaves no files for a rejected entry and unpacks the others", async ({ out, take }) => {
  const linkpath = "t".repeat(5000);
  const { refused } = await take([
    { name: "hard", hardLinkTo: "q/w/e/r" },
    { name: "deep/odd", type: "9" },
    { name: "long", type: "K", content: `${linkpath}\0` },
    { name: "long", linkTo: "x" },
    { name: "good", linkTo: "x" },
  ]);
  assertEquals(refused, ["hard", "deep/odd", "long"]);
  assertEquals(namesIn(out), ["good"]);
});

test("unpackTar() throws guest_failed for a truncated or damaged archive", async ({ take }) => {
  const whole = makeTar([{ name: "a", content: "x".repeat(2000) }]);
  for (const length of [0, 100, 512, 1000, 2048]) {
    await expectFailure("guest_failed", () => take(whole.slice(0, length)));
  }
  const bad = whole.slice();
  bad[0] ^= 1;
  await expectFailure("guest_failed", () => take(bad));
  const endless = { name: "pax", type: "x", size: 2 ** 33 - 1 };
  await expectFailure("guest_failed", () => take([endless]));
});

test("unpackTar() applies the path rules to names in pax and GNU headers", async ({ out, take }) => {
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
  assertEquals(refused, ["../outside/x", "../outside/y", "c"]);
  assertEquals(namesIn(out), ["d".repeat(120)]);
});

test("unpackTar() unpacks or throws guest_failed, for any bytes", async ({ take }) => {
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
        const bytes = makeTar(entries.map((it) => ({
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

test("unpackTar() restores archives of planTar() and GNU tar with modes, times and links", async ({ out, outside }) => {
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
    await new Response(ReadableStream.from(plan.archiveChunks())).bytes(),
  ];
  for (const format of ["gnu", "pax"]) {
    const file = join(outside, "a.tar");
    const args = ["-cf", file, `--format=${format}`, "-C", from, "."];
    const { code, stderr } = await runProcess("tar", { args });
    assertEquals(code, 0, stderr);
    archives.push(await Deno.readFile(file));
    await Deno.remove(file);
  }
  await Deno.remove(from, { recursive: true });
  for (const [index, bytes] of archives.entries()) {
    const to = join(out, `${index}`);
    await Deno.mkdir(to);
    const { refused } = await unpackBytes(bytes, to, LIMITS);
    assertEquals(refused, []);
    const text = await Deno.readTextFile(join(to, "link"));
    assertEquals(text, "text\n");
    const { mode, mtime, size } = await Deno.stat(join(to, "tool"));
    assertEquals([mode! & 0o7777, mtime!.getTime(), size], [0o751, 1e12, 5000]);
    assertEquals((await Deno.stat(join(to, "twin"))).size, 5000);
  }
});
