/**
 * What doctor says of the cache's disk, and what it leaves there.
 */
import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { doctor } from "../../lib/doctor/doctor.ts";
import { freeBytes } from "../../lib/system/free_space.ts";
import { temporaryDir } from "../support/directory.ts";

/** The findings of the cache and its space, of a host with nothing else. */
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
  name: "a disk without room is warned of, with what to do",
  ignore: Deno.build.os !== "linux",
  async fn() {
    // It is writable for nobody, and has no blocks.
    const { cache, space } = await examine("/proc/none/cache");
    assertEquals(space, {
      check: "space",
      level: "warn",
      found: "0.0 GiB free at /proc",
      hint: "toolsmith cache prune",
    });
    assertEquals(cache.level, "fail");
  },
});

Deno.test("free space is told in GiB, and from one on nothing is to be done", async () => {
  await using dir = await temporaryDir();
  const { space } = await examine(dir.path);
  const gib = (await freeBytes(dir.path))! / 2 ** 30;
  const [, shown] = /^(\S+) GiB free at /.exec(space?.found ?? "") ?? [];
  // Others write at the same time.
  assertEquals(Math.abs(Number(shown) - gib) < 0.15, true, `${shown}, ${gib}`);
  if (Math.abs(gib - 1) < 0.15) return;
  const warned = gib < 1;
  assertEquals(space?.level, warned ? "warn" : "ok");
  assertEquals(space?.hint !== undefined, warned);
});

Deno.test("what is there stays, be it empty, and what was made to look goes", async () => {
  await using dir = await temporaryDir();
  const cache = join(dir.path, "above", "cache");
  await Deno.mkdir(cache, { recursive: true });
  assertEquals((await examine(cache)).cache.level, "ok");
  assertEquals((await examine(join(cache, "a", "b"))).cache.level, "ok");
  assertEquals([...Deno.readDirSync(cache)], []);
  assertEquals((await Deno.stat(cache)).isDirectory, true);
});
