/**
 * The exact limits of unpacking an export, and their messages;
 * tests/hostile/tar_test.ts tests that nothing leaves the directory.
 */
import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import type { TarLimits } from "../../lib/guest/_tar_reader.ts";
import { unpackTar } from "../../lib/guest/_untar.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import {
  makeTar,
  openArchive,
  type TarEntry,
  unpackBytes,
} from "../support/tar.ts";
import { asRoot } from "../support/users.ts";
import { runProcess } from "../../lib/system/process.ts";
import { writeAll } from "../../lib/system/write_all.ts";

const MANY = { maxBytes: 2 ** 20, maxEntries: 1000 };

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

function unpack(
  dir: string,
  entries: TarEntry[],
  limits: TarLimits = MANY,
) {
  return unpackBytes(makeTar(entries), dir, limits);
}

/** The limit that the error message names. */
async function limitOf(work: () => Promise<unknown>): Promise<string> {
  const { message, hint } = await expectFailure("guest_failed", work);
  assertEquals(
    hint,
    "write less into the exports, or use an image with 9p (no limit)",
  );
  return message.replace(
    /^Cannot sync an export from the guest: it holds more than /,
    "",
  );
}

/** An entry whose name does not fit into its header. */
function long(name: string, entry: Partial<TarEntry> = {}): TarEntry[] {
  return [
    { name: "long", type: "L", content: `${name}\0` },
    { name: "short", ...entry },
  ];
}

test("unpackTar() accepts maxBytes in all files together and rejects one byte more", async (dir) => {
  const entries = ["a", "b"].map((name) => ({ name, content: "12345" }));
  const done = await unpack(dir, entries, { ...MANY, maxBytes: 10 });
  assertEquals(done, { refused: [] });
  assertEquals(await Deno.readTextFile(join(dir, "b")), "12345");
  const less = { ...MANY, maxBytes: 9 };
  assertEquals(await limitOf(() => unpack(dir, entries, less)), "9 bytes");
});

test("unpackTar() accepts maxEntries and rejects one more, whatever they are", async (dir) => {
  const entries = [{ name: "a", type: "5" }, { name: "b", linkTo: "a" }];
  await unpack(dir, entries, { ...MANY, maxEntries: 2 });
  const less = { ...MANY, maxEntries: 1 };
  assertEquals(await limitOf(() => unpack(dir, entries, less)), "1 entries");
  const odd = [...entries, { name: "odd", type: "9" }];
  const limits = { ...MANY, maxEntries: 2 };
  assertEquals(await limitOf(() => unpack(dir, odd, limits)), "2 entries");
});

test("unpackTar() limits the names of all entries to 64 Mi characters in total", async (dir) => {
  // 8192 characters; the link is refused, as it leads out.
  const link = makeTar([
    { name: "long", type: "K", content: `/${"t".repeat(8190)}` },
    { name: "n", linkTo: "" },
  ]).subarray(0, -1024);
  const most = 64 * 1024 * 1024 / 8192;
  using archive = await openArchive(new Uint8Array());
  for (let count = 0; count < most; count++) await writeAll(archive, link);
  await writeAll(archive, makeTar([]));
  const limits = { maxBytes: 0, maxEntries: most + 3 };
  const refused = await unpackTar(archive, dir, limits);
  assertEquals(refused.length, most);
  await archive.seek(-1024, Deno.SeekMode.End);
  await writeAll(archive, makeTar([{ name: "f" }]));
  const limit = await limitOf(() => unpackTar(archive, dir, limits));
  assertEquals(limit, "67108864 characters of names");
  assertEquals([...Deno.readDirSync(dir)], []);
});

test("unpackTar() accepts paths up to the limits for depth and length", async (dir) => {
  const deep = (depth: number) => `${"d/".repeat(depth - 1)}f`;
  const full = (length: number) => {
    const room = length - dir.length;
    const parts = Math.floor(room / 201);
    return "/".concat(`${"p".repeat(200)}/`.repeat(parts - 1))
      .padEnd(room, "f").slice(1);
  };
  const names = [
    deep(128),
    deep(129),
    "n".repeat(255),
    "n".repeat(256),
    "ü".repeat(127),
    "ü".repeat(128),
    full(4095),
    full(4096),
  ];
  const parents = names.flatMap((name) => {
    const parts = name.split("/");
    return parts.slice(1).map((_, index) =>
      long(parts.slice(0, index + 1).join("/"), { type: "5" })
    ).flat();
  });
  const files = names.flatMap((name) => long(name));
  const { refused } = await unpack(dir, [...parents, ...files]);
  assertEquals(refused, names.filter((_, index) => index % 2 === 1));
  const links = [4095, 4096].map((length) => [
    { name: "long", type: "K", content: "a/".repeat(2048).slice(0, length) },
    { name: `link${length}`, linkTo: "" },
  ]);
  const { refused: other } = await unpack(dir, links.flat());
  assertEquals(other, ["link4096"]);
  assertEquals((await Deno.lstat(join(dir, "link4095"))).isSymlink, true);
});

test("unpackTar() refuses names that are invalid on this system", async (dir) => {
  const bad = ["\u{fffd}", "a\u{fffd}/b", "c/..", ""];
  const { refused } = await unpack(dir, [
    ...bad.map((name) => ({ name, content: "x" })),
    { name: "ok", content: "x" },
    { name: ".", linkTo: "x" },
    { name: "l", linkTo: "a/\u{fffd}" },
  ]);
  assertEquals(refused, [
    ...bad.filter((name) => name !== ""),
    "",
    ".",
    "l",
  ]);
  assertEquals(Array.from(Deno.readDirSync(dir), ({ name }) => name), ["ok"]);
});

test("unpackTar() creates a hard link only to another file that exists", async (dir) => {
  await Deno.writeTextFile(join(dir, "old"), "old");
  const { refused } = await unpack(dir, [
    { name: "a", type: "5", mode: 0o755 },
    { name: "a/file", content: "text" },
    { name: "a/twin", hardLinkTo: "a/file" },
    // Both are one file already.
    { name: "a/twin", hardLinkTo: "a/file" },
    { name: "a/file", hardLinkTo: "a/file" },
    { name: "old", hardLinkTo: "./a//file" },
    { name: "missing", hardLinkTo: "a/none" },
    { name: "dir", hardLinkTo: "a" },
    { name: "a", hardLinkTo: "old" },
    { name: "nowhere", hardLinkTo: "none/file" },
  ]);
  assertEquals(refused, [
    "a/file",
    "missing",
    "dir",
    "a",
    "nowhere",
  ]);
  const left = (dir: string) =>
    Array.from(Deno.readDirSync(dir), ({ name }) => name).sort();
  assertEquals([left(dir), left(join(dir, "a"))], [
    ["a", "old"],
    ["file", "twin"],
  ]);
  const inode = (name: string) => Deno.statSync(join(dir, name)).ino;
  assertEquals(inode("a/twin"), inode("a/file"));
  assertEquals(inode("old"), inode("a/file"));
});

test("unpackTar() refuses a symbolic link that leads out of the export", async (dir) => {
  const { refused } = await unpack(dir, [
    { name: "a/", type: "5" },
    { name: "a/b/", type: "5" },
    { name: "a/b/top", linkTo: "../.." },
    { name: "a/b/beside", linkTo: "../../other" },
    { name: "a/b/out", linkTo: "../../.." },
    { name: "a/here", linkTo: "." },
    { name: "here", linkTo: "./a" },
    { name: "up", linkTo: ".." },
  ]);
  assertEquals(refused, ["a/b/out", "up"]);
  assertEquals(await Deno.readLink(join(dir, "a/b/beside")), "../../other");
});

test("unpackTar() restores file times and directory modes, with owner access to directories", async (dir) => {
  await unpack(dir, [
    { name: "dir", type: "5", mode: 0o55 },
    { name: "dir/file", content: "x", mode: 0o640 },
    { name: "shared", content: "x", mode: 0o666 },
  ]);
  const stat = (name: string) => Deno.statSync(join(dir, name));
  const names = ["dir", "dir/file", "shared"];
  assertEquals(names.map((name) => stat(name).mode! & 0o7777), [
    0o755,
    0o640,
    0o666,
  ]);
  assertEquals(stat("dir/file").mtime!.getTime(), 0);
});

test("unpackTar() keeps the mode of an existing directory, and refuses entries without their directory", async (dir) => {
  await Deno.mkdir(join(dir, "there"), { mode: 0o700 });
  const { refused } = await unpack(dir, [
    { name: "there", type: "5", mode: 0o755 },
    { name: "there/file", content: "x" },
    { name: "missing/file", content: "x" },
  ]);
  assertEquals(refused, ["missing/file"]);
  const { mode } = await Deno.stat(join(dir, "there"));
  assertEquals(mode! & 0o777, 0o700);
});

test("unpackTar() writes no further entry after an abort", async (dir) => {
  const stop = new AbortController();
  const bytes = makeTar(
    ["a", "b"].map((name) => ({ name, content: "x".repeat(100_000) })),
  );
  using archive = await openArchive(bytes);
  const seek = archive.seek.bind(archive);
  archive.seek = (offset, whence) => {
    // The content of the first file, once all headers have been read.
    if (offset === 512) stop.abort(new Error("enough"));
    return seek(offset, whence);
  };
  const limits = { ...MANY, signal: stop.signal };
  const error = await unpackTar(archive, dir, limits).catch((error) => error);
  assertEquals(error.message, "enough");
  const made = Array.from(Deno.readDirSync(dir), ({ name }) => name);
  assertEquals(made, ["a"]);
});

asRoot(
  "unpackTar() leaves no part of a file that does not fit on the disk",
  async () => {
    await using dir = await temporaryDir();
    const mount = ["-t", "tmpfs", "-o", "size=64k", "tmpfs", dir.path];
    assertEquals((await runProcess("mount", { args: mount })).code, 0);
    try {
      await Deno.writeTextFile(join(dir.path, "big"), "old");
      const entries = [{ name: "big", content: "x".repeat(200_000) }];
      const error = await unpack(dir.path, entries).catch((error) => error);
      assertEquals(error instanceof Error, true);
      assertEquals([...Deno.readDirSync(dir.path)].length, 1);
      assertEquals(await Deno.readTextFile(join(dir.path, "big")), "old");
    } finally {
      await runProcess("umount", { args: [dir.path] });
    }
  },
);
