import { assert, assertEquals } from "@std/assert";
import { snapshotStore } from "../../lib/cache/snapshots.ts";
import { run } from "../../lib/system/process.ts";
import { fileOf, KEY, OTHER, save, test } from "../support/snapshots.ts";

/** Copies all files as archives keep them, into another directory. */
async function copied(dir: string, to: string) {
  const { code, stderr } = await run("cp", { args: ["-a", dir, to] });
  assertEquals(code, 0, stderr);
  return snapshotStore(to);
}

test("copied snapshots are restored once they are adopted", async (dir) => {
  await save(dir, KEY, "memory");
  await save(dir, OTHER);
  const store = await copied(dir, `${dir}-copied`);
  assertEquals(await store.find(KEY), "damaged");
  const adopted = await store.adopt();
  assertEquals(adopted.map(({ key }) => key), [KEY, OTHER]);
  assertEquals([await store.find(KEY), await store.find(OTHER)], adopted);
  assertEquals(adopted[0].disk, fileOf(store.dir, "qcow2"));
  assertEquals(adopted[0].memory, fileOf(store.dir, "memory"));
  // Nothing is left to be adopted, and what was saved here is not.
  assertEquals(await store.adopt(), []);
  assertEquals(await snapshotStore(dir).adopt(), []);
});

test("a copy that is not whole, or of another time, is not adopted", async (dir) => {
  await save(dir, KEY, "memory");
  const spoils: Record<string, (path: string) => Promise<void>> = {
    shorter: (path) => Deno.truncate(path, 2),
    missing: (path) => Deno.remove(path),
    newer: (path) => Deno.utime(path, new Date(), new Date()),
    "of others": (path) => Deno.chmod(path, 0o666),
  };
  for (const [what, spoil] of Object.entries(spoils)) {
    for (const part of ["state", "memory", "qcow2"]) {
      const to = `${dir}-${what}-${part}`;
      const store = await copied(dir, to);
      await spoil(fileOf(to, part));
      assertEquals(await store.adopt(), [], `${part} is ${what}`);
      assert(typeof await store.find(KEY) !== "object", `${part} is ${what}`);
    }
  }
  const store = await copied(dir, `${dir}-saving`);
  await using _staging = await store.stage(OTHER);
  assertEquals((await store.adopt()).length, 1);
});
