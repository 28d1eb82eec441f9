/**
 * Snapshots of machines, without the machines.
 *
 * @module
 */
import { join } from "@std/path";
import { type Snapshot, snapshotStore } from "../../lib/cache/snapshots.ts";
import { temporaryDir } from "./directory.ts";

/** The key of a snapshot. */
export const KEY = "a".repeat(64);
/** The key of another one. */
export const OTHER = "b".repeat(64);
/** What the state's file holds. */
export const STATE = "memory and devices";

/** Runs a test with a directory of snapshots, which is not there yet. */
export function test(
  name: string,
  body: (dir: string) => Promise<void>,
) {
  Deno.test({
    name,
    // Modes, and the length of a path, are others there.
    ignore: Deno.build.os === "windows",
    async fn() {
      await using dir = await temporaryDir();
      await body(join(dir.path, "machines"));
    },
  });
}

/** Saves a machine: its state, its disk, and its memory where that is mapped. */
export async function save(
  dir: string,
  key = KEY,
  memory?: string,
): Promise<Snapshot> {
  await using staging = await snapshotStore(dir).stage(key);
  const mode = 0o600;
  if (memory) await Deno.writeTextFile(staging!.memory, memory, { mode });
  await Deno.writeTextFile(staging!.state, STATE, { mode });
  await Deno.writeTextFile(staging!.disk, "disk", { mode });
  return await staging!.place();
}

/** A file of a snapshot, by its ending. */
export function fileOf(dir: string, ending: string, key = KEY): string {
  return join(dir, `${key}.${ending}`);
}

/** Names of all files but locks, which stay behind, with `a` and `b` for the keys. */
export async function names(dir: string): Promise<string[]> {
  const found = await Array.fromAsync(Deno.readDir(dir));
  return found.map(({ name }) => name.replace(KEY, "a").replace(OTHER, "b"))
    .filter((name) => !name.endsWith(".lock")).sort();
}
