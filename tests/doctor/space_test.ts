/**
 * Tests doctor's checks of the cache's disk, and that they leave nothing behind.
 */
import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { doctor } from "../../lib/doctor/doctor.ts";
import { readFreeDiskBytes } from "../../lib/system/free_space.ts";
import { temporaryDir } from "../support/directory.ts";

/** Returns the findings about the cache and its free space. */
async function examine(cache: string) {
  await using dir = await temporaryDir();
  const env = new Map([
    ["TOOLSMITH_ORAS", "/none"],
    ["TOOLSMITH_QEMU", "/none"],
    ["TMPDIR", dir.path],
  ]);
  const findings = await doctor({ cwd: dir.path, env, cache });
  const find = (name: string) => findings.find(({ check }) => check === name);
  return { cache: find("cache")!, space: find("space") };
}

Deno.test({
  name: "doctor() warns of a full disk and hints at toolsmith cache prune",
  ignore: Deno.build.os !== "linux",
  async fn() {
    // A file system without blocks, writable for nobody.
    const { cache, space } = await examine("/proc/none/cache");
    assertEquals(space, {
      check: "space",
      level: "warn",
      found: "0.0 GiB free at /proc",
      hint: "remove old images: toolsmith cache prune",
    });
    assertEquals(cache.level, "fail");
  },
});

Deno.test("doctor() reports free space in GiB and warns below 1 GiB", async () => {
  await using dir = await temporaryDir();
  const freeGib = async () => (await readFreeDiskBytes(dir.path))! / 2 ** 30;
  let space, before, gib: number;
  // Other processes write at the same time: wait until they hardly do.
  do {
    before = await freeGib();
    ({ space } = await examine(dir.path));
    gib = await freeGib();
  } while (Math.abs(gib - before) > 0.01);
  const [, shown] = /^(\S+) GiB free at /.exec(space?.found ?? "") ?? [];
  assertEquals(Math.abs(Number(shown) - gib) < 0.15, true, `${shown}, ${gib}`);
  if (Math.abs(gib - 1) < 0.15) return;
  const warned = gib < 1;
  assertEquals(space?.level, warned ? "warn" : "ok");
  assertEquals(space?.hint !== undefined, warned);
});

Deno.test("doctor() removes the directories that its cache check created and keeps existing ones", async () => {
  await using dir = await temporaryDir();
  const cache = join(dir.path, "above", "cache");
  await Deno.mkdir(cache, { recursive: true });
  assertEquals((await examine(cache)).cache.level, "ok");
  assertEquals((await examine(join(cache, "a", "b"))).cache.level, "ok");
  assertEquals([...Deno.readDirSync(cache)], []);
  assertEquals((await Deno.stat(cache)).isDirectory, true);
});
