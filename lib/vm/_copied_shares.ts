/**
 * Copies of host directories in a guest that cannot mount them, and the sync of copied
 * exports after each command.
 */
import type { Emit } from "../events.ts";
import {
  copyFromGuest,
  copyIntoGuest,
  type CopyIntoGuestOptions,
  type RefusedEntries,
} from "../guest/share_copy.ts";
import { join } from "../path.ts";
import type { GuestShare } from "../qemu/args.ts";
import { VM_FILES } from "../qemu/vm_dir.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { acquireFileLock } from "../system/lock.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import { WORKSPACE_TAG } from "./shares.ts";

/** Copies directories into a guest and warns why. */
export async function copySharesIntoGuest(
  monitor: Monitor,
  shares: GuestShare[],
  { emit, why, ...options }: CopyIntoGuestOptions & { emit: Emit; why: string },
): Promise<GuestShare[]> {
  for (const share of shares) {
    // The cache holds the image itself.
    const exclude = [join(share.path, ".toolsmith", "cache")];
    const how = { ...options, exclude };
    const copied = await copyIntoGuest(monitor, share, how);
    const { archiveBytes, entryCount, skippedPaths } = copied;
    const isWorkspace = share.tag === WORKSPACE_TAG;
    const what = isWorkspace ? "The workspace" : `The export ${share.tag}`;
    const mebibytes = (archiveBytes / 2 ** 20).toFixed(1);
    const message =
      `${what} was copied into the guest's memory instead of mounted (${entryCount} entries, ${mebibytes} MiB): ${why}` +
      skippedSuffix({ count: skippedPaths.length, firstNames: skippedPaths });
    emit({ type: "warning", message });
  }
  return shares.map((share) => ({ ...share, copied: true }));
}

/** Syncs copied exports: downloads what the guest has written to its copies. */
export async function syncCopiedExports(
  monitor: Monitor,
  shares: GuestShare[],
  { emit, signal }: { emit: Emit; signal: AbortSignal },
): Promise<void> {
  const copies = shares.filter((it) => it.copied && it.writable);
  if (copies.length === 0) return;
  const { dir } = monitor;
  // Commands that end at the same time, also of other processes, take turns.
  using _lock = await acquireFileLock(join(dir, VM_FILES.syncLock), { signal });
  for (const share of copies) {
    const how = { stagingDir: dir, signal };
    const { refused, changeMessage } = await copyFromGuest(
      monitor,
      share,
      how,
    );
    const warn = (what: string) =>
      emit({ type: "warning", message: `The export ${share.tag} ${what}` });
    if (changeMessage) warn(`changed while it was synced: ${changeMessage}`);
    if (refused.count === 0) continue;
    warn(`contains entries that are unsafe on a host${skippedSuffix(refused)}`);
  }
}

function skippedSuffix({ count, firstNames }: RefusedEntries): string {
  return count === 0
    ? ""
    : `; skipped ${count}, such as ${sanitizeLine(firstNames[0], 80)}`;
}
