import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import fc from "fast-check";
import { runProcess } from "../../lib/system/process.ts";
import { planTar, type PlanTarOptions } from "../../lib/guest/_tar_writer.ts";
import { PROJECT_ROOT, withImportMap } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";

const ignore = Deno.build.os === "windows";

async function archive(dir: string, options: PlanTarOptions = {}) {
  const plan = await planTar(dir, options);
  const bytes = await new Response(ReadableStream.from(plan.archiveChunks()))
    .bytes();
  return { ...plan, content: bytes };
}

async function must(program: string, ...args: string[]) {
  const { code, stdout, stderr } = await runProcess(program, { args });
  assertEquals(code, 0, stderr);
  return stdout;
}

/** Unpacks an archive with the system's tar into a new directory. */
async function unpack(content: Uint8Array<ArrayBuffer>, into: string) {
  const file = `${into}.tar`;
  await Deno.writeFile(file, content);
  await Deno.mkdir(into);
  await must("tar", "-xpf", file, "-C", into);
}

/** Lists a directory tree for comparison. */
async function tree(dir: string, below = ""): Promise<string[]> {
  const lines: string[] = [];
  for await (const { name } of Deno.readDir(join(dir, below))) {
    const path = join(below, name);
    const stat = await Deno.lstat(join(dir, path));
    const time = Math.floor(stat.mtime!.getTime() / 1000);
    const about = stat.isSymlink
      ? `-> ${await Deno.readLink(join(dir, path))}`
      : stat.isFile
      ? `${stat.mode! & 0o7777} ${time} ${await Deno.readTextFile(
        join(dir, path),
      )}`
      : `${stat.mode! & 0o7777}`;
    lines.push(`${path} ${about}`);
    if (stat.isDirectory) lines.push(...await tree(dir, path));
  }
  return lines.sort();
}

function test(name: string, body: (dir: string) => Promise<void>) {
  Deno.test({
    name,
    ignore,
    async fn() {
      await using dir = await temporaryDir();
      await body(dir.path);
    },
  });
}

test("planTar() preserves modes, times and links when the system's tar unpacks the archive", async (dir) => {
  const from = join(dir, "from");
  const deep = join(from, "a", "d".repeat(90), "e".repeat(90));
  await Deno.mkdir(deep, { recursive: true });
  await Deno.writeTextFile(join(deep, "ümlaut ".repeat(20)), "long name\n");
  await Deno.writeTextFile(join(from, "empty"), "");
  await Deno.writeTextFile(join(from, "tool"), "x".repeat(100_000));
  await Deno.chmod(join(from, "tool"), 0o751);
  await Deno.utime(join(from, "tool"), 1e9, 1e9);
  await Deno.symlink("tool", join(from, "link"));
  await Deno.symlink(`/${"far/".repeat(60)}`, join(from, "far"));
  await Deno.chmod(join(from, "a"), 0o700);
  const { content, archiveBytes, skippedPaths } = await archive(
    from,
  );
  assertEquals(content.length, archiveBytes);
  assertEquals(skippedPaths, []);
  await unpack(content, join(dir, "to"));
  assertEquals(await tree(join(dir, "to")), await tree(from));
});

test("planTar() preserves random file names and contents", async (dir) => {
  const name = fc.string({ unit: "grapheme", minLength: 1, maxLength: 60 })
    .map((text) => text.toWellFormed().replace(/[/\0]/g, "_"))
    .filter((text) => text !== "." && text !== ".." && encoded(text) < 255);
  const files = fc.dictionary(name, fc.string(), { maxKeys: 6 });
  let round = 0;
  await fc.assert(
    fc.asyncProperty(files, async (files) => {
      const from = join(dir, `from${++round}`);
      await Deno.mkdir(from);
      for (const [name, text] of Object.entries(files)) {
        await Deno.writeTextFile(join(from, name), text);
      }
      const to = join(dir, `to${round}`);
      await unpack((await archive(from)).content, to);
      assertEquals(await tree(to), await tree(from));
    }),
    { numRuns: 20 },
  );
});

function encoded(text: string): number {
  return new TextEncoder().encode(text).length;
}

test("planTar() lists pipes, sockets and non-UTF-8 names as skipped, without opening them", async (dir) => {
  await must("mkfifo", join(dir, "pipe"));
  await Deno.writeTextFile(join(dir, "kept"), "");
  await Deno.writeTextFile(join(dir, "setuid"), "");
  await Deno.chmod(join(dir, "setuid"), 0o4755);
  // A name that is not UTF-8.
  await must("sh", "-c", `: >"$(printf '%s/\\377' "$1")"`, "sh", dir);
  using _socket = Deno.listen({
    transport: "unix",
    path: join(dir, "socket"),
  });
  const { content, entryCount, skippedPaths } = await archive(
    dir,
  );
  assertEquals(entryCount, 2);
  assertEquals(skippedPaths.length, 3);
  assert(skippedPaths.includes("pipe") && skippedPaths.includes("socket"));
  await unpack(content, `${dir}.out`);
  try {
    const modes = (await tree(`${dir}.out`)).map((it) =>
      it.split(" ").slice(0, 2)
    );
    assertEquals(modes[1], ["setuid", `${0o755}`]);
  } finally {
    await Deno.remove(`${dir}.out`, { recursive: true });
    await Deno.remove(`${dir}.out.tar`);
  }
});

test("planTar() stops reading a directory once maxBytes is exceeded", async (dir) => {
  await Deno.truncate(await touched(join(dir, "huge")), 5 * 2 ** 30);
  const plan = await planTar(dir, { maxBytes: 2 ** 20 });
  assert(plan.archiveBytes > 5 * 2 ** 30);
  const many = join(dir, "many");
  await Deno.mkdir(many);
  for (let i = 0; i < 1000; i++) await touched(join(many, `${i}`));
  await Deno.remove(join(dir, "huge"));
  // 512 bytes each, though the files are empty.
  const { entryCount, archiveBytes } = await planTar(dir, {
    maxBytes: 100_000,
  });
  assert(
    entryCount < 210 && archiveBytes > 100_000,
    `${entryCount}, ${archiveBytes}`,
  );
});

async function touched(path: string): Promise<string> {
  await Deno.writeTextFile(path, "");
  return path;
}

test("archiveChunks() keeps the planned size of a file that grows or shrinks", async (dir) => {
  for (const size of [10, 300_000]) {
    await Deno.writeTextFile(join(dir, "a"), "x".repeat(100_000));
    await Deno.writeTextFile(join(dir, "b"), "after\n");
    const plan = await planTar(dir);
    await Deno.writeTextFile(join(dir, "a"), "y".repeat(size));
    const bytes = await new Response(ReadableStream.from(plan.archiveChunks()))
      .bytes();
    assertEquals(bytes.length, plan.archiveBytes);
    const to = `${dir}-${size}`;
    await unpack(bytes, to);
    assertEquals((await Deno.stat(join(to, "a"))).size, 100_000);
    assertEquals(await Deno.readTextFile(join(to, "b")), "after\n");
    await Deno.remove(to, { recursive: true });
    await Deno.remove(`${to}.tar`);
  }
});

test("planTar() omits excluded paths and does not list them as skipped", async (dir) => {
  await Deno.mkdir(join(dir, "cache", "deep"), { recursive: true });
  await touched(join(dir, "kept"));
  const { entryCount, skippedPaths } = await archive(dir, {
    exclude: [join(dir, "cache")],
  });
  assertEquals([entryCount, skippedPaths], [1, []]);
});

test("planTar() lists unreadable files and directories as skipped", async (dir) => {
  const from = join(dir, "from");
  await Deno.mkdir(join(from, "closed"), { recursive: true });
  await Deno.writeTextFile(join(from, "open"), "text");
  await Deno.writeTextFile(join(from, "secret"), "secret");
  await Deno.chmod(join(from, "secret"), 0);
  await Deno.chmod(join(from, "closed"), 0);
  const script = join(dir, "plan.ts");
  await Deno.writeTextFile(
    script,
    `import { planTar } from "${PROJECT_ROOT}/lib/guest/_tar_writer.ts";
     const { entryCount: entries, skippedPaths: skipped } = await planTar(${
      JSON.stringify(from)
    });
     console.log(JSON.stringify({ entries, skipped }));`,
  );
  // Root can read anything unless it drops that capability.
  const rootless = Deno.uid() === 0
    ? ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"]
    : ["env"];
  const command = [...rootless, Deno.execPath()];
  const printed = await must(
    ...command as [string, ...string[]],
    ...await withImportMap(["run", "-A", script]),
  );
  // Restore the mode, or cleanup fails.
  await Deno.chmod(join(from, "closed"), 0o700);
  assertEquals(JSON.parse(printed), {
    entries: 2,
    skipped: ["secret", "closed"],
  });
});

Deno.test({
  name: "archiveChunks() sends zeros for a file replaced by a symbolic link",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    const [work, secret] = ["work", "secret"].map((it) => join(dir.path, it));
    await Deno.mkdir(work);
    await Deno.writeTextFile(secret, "secret!!");
    await Deno.writeTextFile(join(work, "file"), "harmless");
    const plan = await planTar(work);
    await Deno.remove(join(work, "file"));
    await Deno.symlink(secret, join(work, "file"));
    const bytes = await new Response(ReadableStream.from(plan.archiveChunks()))
      .bytes();
    assertEquals(bytes.subarray(512, 520), new Uint8Array(8));
  },
});
