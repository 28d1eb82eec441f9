import { assert, assertEquals } from "@std/assert";
import { snapshotStore } from "../../lib/cache/snapshots.ts";
import { runProcess } from "../../lib/system/process.ts";
import {
  OTHER_SNAPSHOT_KEY,
  saveSnapshot,
  SNAPSHOT_KEY,
  snapshotFile,
  testWithSnapshots,
} from "../support/snapshots.ts";

/** Copies all files with their times into another directory. */
async function copied(dir: string, to: string) {
  const { code, stderr } = await runProcess("cp", { args: ["-a", dir, to] });
  assertEquals(code, 0, stderr);
  return snapshotStore(to);
}

testWithSnapshots(
  "adoptCopiedSnapshots() makes copied snapshots restorable",
  async (dir) => {
    await saveSnapshot(dir);
    await saveSnapshot(dir, OTHER_SNAPSHOT_KEY);
    const store = await copied(dir, `${dir}-copied`);
    assertEquals(await store.find(SNAPSHOT_KEY), "damaged");
    const adopted = await store.adoptCopiedSnapshots();
    assertEquals(adopted.map(({ key }) => key), [
      SNAPSHOT_KEY,
      OTHER_SNAPSHOT_KEY,
    ]);
    assertEquals([
      await store.find(SNAPSHOT_KEY),
      await store.find(OTHER_SNAPSHOT_KEY),
    ], adopted);
    assertEquals(adopted[0].disk, snapshotFile(store.dir, "qcow2"));
    assertEquals(adopted[0].memory, snapshotFile(store.dir, "memory"));
    // Snapshots that are valid already are not adopted.
    assertEquals(await store.adoptCopiedSnapshots(), []);
    assertEquals(await snapshotStore(dir).adoptCopiedSnapshots(), []);
  },
);

testWithSnapshots(
  "adoptCopiedSnapshots() skips snapshots with missing, truncated, newer or writable files",
  async (dir) => {
    await saveSnapshot(dir);
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
        await spoil(snapshotFile(to, part));
        assertEquals(
          await store.adoptCopiedSnapshots(),
          [],
          `${part} is ${what}`,
        );
        assert(
          typeof await store.find(SNAPSHOT_KEY) !== "object",
          `${part} is ${what}`,
        );
      }
    }
    const store = await copied(dir, `${dir}-saving`);
    await using _staging = await store.createStaging(OTHER_SNAPSHOT_KEY);
    assertEquals((await store.adoptCopiedSnapshots()).length, 1);
  },
);
