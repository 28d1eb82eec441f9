/** Writes fake VM snapshots. */
import { join } from "@std/path";
import {
  type Snapshot,
  type SnapshotStaging,
  snapshotStore,
} from "../../lib/cache/snapshots.ts";
import { temporaryDir } from "./directory.ts";

/** The key of a snapshot. */
export const SNAPSHOT_KEY = "a".repeat(64);
/** The key of another snapshot. */
export const OTHER_SNAPSHOT_KEY = "b".repeat(64);
/** The content of the device state file. */
export const DEVICE_STATE = "all devices";
/** Size of all files of a snapshot. */
export const SNAPSHOT_BYTES = `${DEVICE_STATE}memorydisk`.length;

/** Runs a test with a snapshot directory that does not exist yet. */
export function testWithSnapshots(
  name: string,
  body: (dir: string) => Promise<void>,
) {
  Deno.test({
    name,
    // File modes and path lengths differ on Windows.
    ignore: Deno.build.os === "windows",
    async fn() {
      await using dir = await temporaryDir();
      await body(join(dir.path, "machines"));
    },
  });
}

/** Saves a fake snapshot: devices, memory, disk. */
export async function saveSnapshot(
  dir: string,
  key = SNAPSHOT_KEY,
): Promise<Snapshot> {
  await using staging = await snapshotStore(dir).createStaging(key);
  return await fillSnapshot(staging!);
}

/** Writes a snapshot's files and moves them into place. */
export async function fillSnapshot(
  staging: SnapshotStaging,
  { state = DEVICE_STATE, memory = "memory", disk = "disk" } = {},
): Promise<Snapshot> {
  const mode = 0o600;
  await Deno.writeTextFile(staging.state, state, { mode });
  await Deno.writeTextFile(staging.memory, memory, { mode });
  await Deno.writeTextFile(staging.disk, disk, { mode });
  return await staging.commit();
}

/** Returns the path of a snapshot's file by its ending. */
export function snapshotFile(
  dir: string,
  ending: string,
  key = SNAPSHOT_KEY,
): string {
  return join(dir, `${key}.${ending}`);
}

/** Returns the names of all files except locks, with the keys shortened to `a` and `b`. */
export async function snapshotFileNames(dir: string): Promise<string[]> {
  const found = await Array.fromAsync(Deno.readDir(dir));
  return found.map(({ name }) =>
    name.replace(SNAPSHOT_KEY, "a").replace(OTHER_SNAPSHOT_KEY, "b")
  )
    .filter((name) => !name.endsWith(".lock")).sort();
}
