/**
 * The exact limits of an export that is unpacked, and what is said beyond them;
 * tests/hostile/tar_test.ts holds what gets out of none.
 */
import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { type UnpackOptions, unpackTar } from "../../lib/guest/_untar.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { tar, type TarEntry } from "../support/tar.ts";

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

async function* once(bytes: Uint8Array) {
  yield bytes;
}

function unpack(
  dir: string,
  entries: TarEntry[],
  limits: UnpackOptions = MANY,
) {
  return unpackTar(once(tar(entries)), dir, limits);
}

/** The limit that is said to be passed. */
async function limitOf(work: () => Promise<unknown>): Promise<string> {
  const { message, hint } = await failure("guest_failed", work);
  assertEquals(
    hint,
    "export less: a guest whose kernel has 9p has no such limit",
  );
  return message.replace(/^The guest exports more than /, "");
}

/** An entry with a name that does not fit into its header. */
function long(name: string, entry: Partial<TarEntry> = {}): TarEntry[] {
  return [
    { name: "long", type: "L", content: `${name}\0` },
    { name: "short", ...entry },
  ];
}

test("files may have as many bytes as are allowed, all together, and not one more", async (dir) => {
  const entries = ["a", "b"].map((name) => ({ name, content: "12345" }));
  const done = await unpack(dir, entries, { ...MANY, maxBytes: 10 });
  assertEquals(done, { entries: 2, refused: { count: 0, names: [] } });
  assertEquals(await Deno.readTextFile(join(dir, "b")), "12345");
  const less = { ...MANY, maxBytes: 9 };
  assertEquals(await limitOf(() => unpack(dir, entries, less)), "9 bytes");
});

test("entries, and directories that they imply, may be as many as are allowed", async (dir) => {
  const entries = [{ name: "a/b/file", content: "x" }, { name: "file" }];
  await unpack(dir, entries, { ...MANY, maxEntries: 4 });
  // The directories are there now, and are no entries any more.
  await unpack(dir, entries, { ...MANY, maxEntries: 2 });
  const less = { ...MANY, maxEntries: 1 };
  assertEquals(await limitOf(() => unpack(dir, entries, less)), "1 entries");
  await Deno.remove(join(dir, "a"), { recursive: true });
  const few = { ...MANY, maxEntries: 3 };
  assertEquals(await limitOf(() => unpack(dir, entries, few)), "3 entries");
});

test("what is no file's has a limit, too: 32 KiB an entry", async (dir) => {
  const archive = new Uint8Array(32 * 1024 + 10);
  archive.set(tar([{ name: "a", content: "12345" }]));
  const limits = { maxBytes: 10, maxEntries: 1 };
  assertEquals((await unpackTar(once(archive), dir, limits)).entries, 1);
  const more = new Uint8Array([...archive, 0]);
  const limit = await limitOf(() => unpackTar(once(more), dir, limits));
  assertEquals(limit, "32778 bytes");
});

test("names that are kept to the end have a limit in all", async (dir) => {
  // 8192 bytes of names, with its own; refused, as it leads out.
  const link = tar([
    { name: "long", type: "K", content: `/${"t".repeat(8190)}` },
    { name: "n", linkTo: "" },
  ]).subarray(0, -1024);
  const most = 64 * 1024 * 1024 / 8192;
  async function* links() {
    for (let count = 0; count < most; count++) yield link;
    yield tar([{ name: "file" }]).subarray(0, -1024);
    yield link;
  }
  const limits = { maxBytes: 0, maxEntries: most + 3 };
  const limit = await limitOf(() => unpackTar(links(), dir, limits));
  assertEquals(limit, "67108864 bytes of names");
  // The last one was too much, and none before.
  assertEquals((await Deno.stat(join(dir, "file"))).size, 0);
});

test("a path may be as deep and as long as systems allow", async (dir) => {
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
  const { refused } = await unpack(dir, names.flatMap((name) => long(name)));
  assertEquals(refused.names, names.filter((_, index) => index % 2 === 1));
  const links = [4095, 4096].map((length) => [
    { name: "long", type: "K", content: "a/".repeat(2048).slice(0, length) },
    { name: `link${length}`, linkTo: "" },
  ]);
  const { entries, refused: other } = await unpack(dir, links.flat());
  assertEquals([entries, other.names], [1, ["link4096"]]);
});

test("a name that this system cannot have is refused", async (dir) => {
  const bad = ["\u{fffd}", "a\u{fffd}/b", "c/..", ""];
  const { refused } = await unpack(dir, [
    ...bad.map((name) => ({ name, content: "x" })),
    { name: "ok", content: "x" },
    { name: ".", linkTo: "x" },
    { name: "l", linkTo: "a/\u{fffd}" },
  ]);
  assertEquals(refused.names, [
    ...bad.filter((name) => name !== ""),
    "",
    ".",
    "l",
  ]);
  assertEquals(Array.from(Deno.readDirSync(dir), ({ name }) => name), ["ok"]);
});

test("a hard link leads to a file that is there, and not to itself", async (dir) => {
  await Deno.writeTextFile(join(dir, "old"), "old");
  const { entries, refused } = await unpack(dir, [
    { name: "a/file", content: "text" },
    { name: "a/twin", hardLinkTo: "a/file" },
    { name: "a/file", hardLinkTo: "a/file" },
    { name: "old", hardLinkTo: "./a//file" },
    { name: "missing", hardLinkTo: "a/none" },
    { name: "dir", hardLinkTo: "a" },
    { name: "a", hardLinkTo: "old" },
    { name: "nowhere", hardLinkTo: "none/file" },
  ]);
  assertEquals(refused.names, ["a/file", "missing", "dir", "a", "nowhere"]);
  assertEquals(entries, 3);
  const inode = (name: string) => Deno.statSync(join(dir, name)).ino;
  assertEquals(inode("a/twin"), inode("a/file"));
  assertEquals(inode("old"), inode("a/file"));
});

test("a link may go up as far as the top of the export, and then down", async (dir) => {
  const { refused } = await unpack(dir, [
    { name: "a/b/", type: "5" },
    { name: "a/b/top", linkTo: "../.." },
    { name: "a/b/beside", linkTo: "../../other" },
    { name: "a/b/out", linkTo: "../../.." },
    { name: "a/here", linkTo: "." },
    { name: "here", linkTo: "./a" },
    { name: "up", linkTo: ".." },
  ]);
  assertEquals(refused.names, ["a/b/out", "up"]);
  assertEquals(await Deno.readLink(join(dir, "a/b/beside")), "../../other");
});

test("directories keep their modes and stay open to their owner, files their times", async (dir) => {
  await unpack(dir, [
    { name: "dir", type: "5", mode: 0o55 },
    { name: "dir/file", content: "x", mode: 0o640 },
    { name: "implied/file", content: "x", mode: 0o400 },
  ]);
  const stat = (name: string) => Deno.statSync(join(dir, name));
  const names = ["dir", "dir/file", "implied", "implied/file"];
  assertEquals(names.map((name) => stat(name).mode! & 0o7777), [
    0o755,
    0o640,
    0o755,
    0o400,
  ]);
  assertEquals(stat("dir/file").mtime!.getTime(), 0);
});

test("unpackTar() stops between two entries, and between two links, when it is cancelled", async (dir) => {
  const stop = new AbortController();
  const links = ["a", "b"].map((name) => ({ name, linkTo: "x" }));
  const bytes = tar([{ name: "x", content: "x" }, ...links]);
  async function* untilRead() {
    yield bytes;
    stop.abort(new Error("enough"));
  }
  const limits = { ...MANY, signal: stop.signal };
  const error = await unpackTar(untilRead(), dir, limits)
    .catch((error) => error);
  assertEquals(error.message, "enough");
  const made = Array.from(Deno.readDirSync(dir), ({ name }) => name);
  assertEquals(made, ["x"]);
});
