import { assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { moveTree } from "../../lib/guest/_move_tree.ts";
import { run } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { asRoot } from "../support/users.ts";

/** Makes a tree: text is a file, `{ to }` a link, anything else a directory. */
async function make(dir: string, tree: Record<string, unknown>) {
  await Deno.mkdir(dir, { recursive: true });
  for (const [name, what] of Object.entries(tree)) {
    const path = join(dir, name);
    if (typeof what === "string") await Deno.writeTextFile(path, what);
    else if (typeof (what as { to?: string }).to === "string") {
      await Deno.symlink((what as { to: string }).to, path);
    } else await make(path, what as Record<string, unknown>);
  }
}

/** Reads it back. */
async function read(dir: string): Promise<Record<string, unknown>> {
  const tree: Record<string, unknown> = {};
  for await (const { name, isDirectory, isSymlink } of Deno.readDir(dir)) {
    const path = join(dir, name);
    tree[name] = isDirectory
      ? await read(path)
      : isSymlink
      ? { to: await Deno.readLink(path) }
      : await Deno.readTextFile(path);
  }
  return tree;
}

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

test("moveTree() replaces files and links, and joins directories", async (dir) => {
  const [from, to] = [join(dir, "from"), join(dir, "to")];
  await make(to, { a: "old", kept: "kept", deep: { b: "old", c: "kept" } });
  const tree = { a: { to: "kept" }, deep: { b: "new", d: { e: "new" } } };
  await make(from, tree);
  await Deno.chmod(join(from, "deep/b"), 0o600);
  assertEquals(await moveTree(from, to), []);
  assertEquals(await read(to), {
    a: { to: "kept" },
    kept: "kept",
    deep: { b: "new", c: "kept", d: { e: "new" } },
  });
  assertEquals((await Deno.stat(join(to, "deep/b"))).mode! & 0o777, 0o600);
});

test("moveTree() follows no link in its target, and replaces no directory", async (dir) => {
  const [from, to] = [join(dir, "from"), join(dir, "to")];
  await make(join(dir, "outside"), { file: "mine" });
  const links = { dir: { to: "../outside" }, file: { to: "../outside/file" } };
  await make(to, { ...links, taken: { inside: "kept" } });
  await make(from, { dir: { file: "evil" }, file: "new", taken: "file" });
  assertEquals((await moveTree(from, to)).sort(), ["dir", "taken"]);
  assertEquals(await read(join(dir, "outside")), { file: "mine" });
  assertEquals(await read(to), {
    dir: links.dir,
    file: "new",
    taken: { inside: "kept" },
  });
});

test("moveTree() stops when it is cancelled", async (dir) => {
  await make(join(dir, "from"), { a: "a" });
  await make(join(dir, "to"), {});
  const signal = AbortSignal.abort(new Error("enough"));
  const moving = moveTree(join(dir, "from"), join(dir, "to"), signal);
  await assertRejects(() => moving, Error, "enough");
  assertEquals(await read(join(dir, "to")), {});
});

asRoot(
  "moveTree() copies to another filesystem, with modes and times",
  async () => {
    await using dir = await temporaryDir();
    const [from, to] = [join(dir.path, "from"), join(dir.path, "to")];
    await make(from, { file: "new", link: { to: "file" }, deep: { a: "a" } });
    await Deno.chmod(join(from, "file"), 0o640);
    await Deno.utime(join(from, "file"), 1000, 1000);
    await Deno.mkdir(to);
    const mount = ["-t", "tmpfs", "-o", "size=1m", "tmpfs", to];
    assertEquals((await run("mount", { args: mount })).code, 0);
    // There is no room for two of them.
    await Deno.writeFile(join(from, "large"), new Uint8Array(700 * 1024));
    await Deno.link(join(from, "large"), join(from, "deep", "again"));
    try {
      await make(to, { file: "old" });
      assertEquals(await moveTree(from, to), []);
      assertEquals((await Deno.stat(join(to, "large"))).nlink, 2);
      await Deno.remove(join(to, "large"));
      await Deno.remove(join(to, "deep", "again"));
      assertEquals(await read(to), {
        file: "new",
        link: { to: "file" },
        deep: { a: "a" },
      });
      const { mode, mtime } = await Deno.stat(join(to, "file"));
      assertEquals([mode! & 0o777, mtime?.getTime()], [0o640, 1_000_000]);
    } finally {
      await run("umount", { args: [to] });
    }
  },
);
