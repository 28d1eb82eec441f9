import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { pruneCache } from "../../lib/cache/maintenance.ts";
import { runProcess } from "../../lib/system/process.ts";
import { jsonLines, testWithImage } from "../support/workspace.ts";

testWithImage(
  "hydrate replaces whatever lies at an image's path in the cache",
  async (it) => {
    const { work, dir, image: qcow2, sha256: qcow2_sha256 } = it;
    await work.manifest({ qcow2, qcow2_sha256 });
    const entry = join(dir, ".toolsmith/cache/demo", qcow2_sha256);
    const image = join(entry, "image.qcow2");
    const record = join(entry, "verified.json");
    const hydrate = async () => {
      const { code, stdout, stderr } = await work.toolsmith(["hydrate"]);
      assertEquals([code, stdout], [0, `${image}\n`], stderr);
      assert((await Deno.lstat(image)).isFile);
      assertEquals(await Deno.readFile(image), await Deno.readFile(qcow2));
    };
    const spoils: (() => Promise<unknown>)[] = [
      () => Deno.remove(entry, { recursive: true }),
      () => Deno.mkdir(image),
      () => Deno.symlink(qcow2, image),
      () => runProcess("mkfifo", { args: [image] }),
      async () => {
        const text = await Deno.readTextFile(record);
        const up = text.replace('"image.qcow2"', '".."');
        await Deno.writeTextFile(record, up);
      },
    ];
    for (const spoil of spoils) {
      await hydrate();
      await Deno.remove(image);
      await spoil();
      await hydrate();
    }
    await Deno.remove(entry, { recursive: true });
    await Deno.writeTextFile(entry, "a file");
    await hydrate();
  },
);

testWithImage(
  "hydrate uses a valid image of a read-only cache",
  async (it) => {
    const { work, dir, image: qcow2, sha256: qcow2_sha256 } = it;
    await work.manifest({ qcow2, qcow2_sha256 });
    const cache = join(dir, ".toolsmith/cache/demo");
    const { stdout: path } = await work.toolsmith(["hydrate"]);
    // Not even root can take the lock, and the file's time differs from the record's.
    const lock = join(cache, `.${qcow2_sha256}.lock`);
    await Deno.remove(lock);
    await Deno.symlink(join(qcow2, "none"), lock);
    await Deno.utime(path.trimEnd(), 1, 1);

    const again = await work.toolsmith(["hydrate", "--json"]);
    assertEquals(again.code, 0, again.stdout);
    assertEquals(jsonLines(again.stdout).last.outcome, "cached");
    assertMatch(again.stdout, /"checksum_verified"/);

    await Deno.chmod(path.trimEnd(), 0o644);
    await Deno.writeTextFile(path.trimEnd(), "x", { append: true });
    const spoiled = await work.toolsmith(["hydrate"]);
    assertEquals([spoiled.code, spoiled.stdout], [51, ""], spoiled.stderr);
  },
);

testWithImage(
  "hydrate reports a file at the path of the cache directory",
  async (it) => {
    const { work, dir, image: qcow2, sha256: qcow2_sha256 } = it;
    await work.manifest({ qcow2, qcow2_sha256 });
    await Deno.writeTextFile(join(dir, ".toolsmith/cache"), "");
    const { code, stderr } = await work.toolsmith(["hydrate"]);
    assertEquals(code, 51);
    assertMatch(stderr, /\[cache_unwritable\]/);
  },
);

testWithImage(
  "cache prune succeeds in two processes at once",
  async (it) => {
    const { work, dir, image: qcow2, sha256: qcow2_sha256 } = it;
    const cache = join(dir, ".toolsmith/cache");
    const names = Array.from({ length: 12 }, (_, at) => `demo${at}`);
    for (const name of names) {
      await work.manifest({ name, qcow2, qcow2_sha256 });
      await work.toolsmith(["hydrate"]);
    }
    const pruned = await Promise.all(
      [1, 2, 3].map(() => pruneCache(cache, { keep: 0 })),
    );
    const removed = pruned.flatMap(({ removed }) => removed);
    assertEquals(removed.map(({ image }) => image).sort(), names.toSorted());
    assertEquals(
      (await work.cached()).filter((path) => path.endsWith(".qcow2")),
      [],
    );
  },
);
