/**
 * Copies host directories into the memory of a guest that cannot mount them, and syncs
 * copied exports back after each command.
 */
import { ToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
import { join } from "../path.ts";
import type { GuestShare } from "../qemu/args.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { VM_FILES } from "../qemu/vm_dir.ts";
import { limitExceededError } from "./_tar_reader.ts";
import { planTar, type TarPlan } from "./_tar_writer.ts";
import { unpackTar } from "./_untar.ts";
import { assertFreeSpace } from "../system/free_space.ts";
import { acquireFileLock } from "../system/lock.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import { startDeadline } from "../system/time.ts";
import { writeAll } from "../system/write_all.ts";
import { execInGuest } from "./exec.ts";

export interface CopyIntoGuestOptions {
  /** Limit for the copy's size, in MiB. @default {128} */
  copyLimit?: number;
  signal?: AbortSignal;
}

const DEFAULT_COPY_LIMIT_MIB = 128;
const MEBIBYTE = 2 ** 20;

/** Timeout of a copy without bytes, in milliseconds. */
const BASE_COPY_TIMEOUT_MS = 120_000;
/** Lowest expected throughput of a guest without KVM. */
const MIN_COPY_BYTES_PER_MS = 1000;

const SYNC_LIMITS = { maxBytes: 2 ** 30, maxEntries: 100_000 };
/** With 4 KiB for the headers and the padding of each entry. */
const MAX_ARCHIVE_BYTES = SYNC_LIMITS.maxBytes + SYNC_LIMITS.maxEntries * 4096;

/** GNU tar's exit status when a file changed while it was read. */
const TAR_FILE_CHANGED_STATUS = 1;

/**
 * Arguments: the mount point, and `ro` or `rw`. Standard input is the tar archive.
 */
const UNPACK_COPY_SCRIPT = `
[ -d "$1" ] || mkdir -p "$1" || exit 1
mount -t tmpfs -o mode=755 toolsmith "$1" || exit 1
said=$(tar -xpf - -C "$1" 2>&1) || {
  echo "$said" | tail -n 1 >&2
  exit 1
}
mount -o "remount,$2" "$1"
`;

/**
 * Copies a directory to `/mnt/<tag>` of a guest. Throws `usage` above the copy limit,
 * and `timeout` when copying takes minutes.
 */
export async function copyIntoGuest(
  monitor: Monitor,
  { path, tag, writable }: GuestShare,
  options: CopyIntoGuestOptions = {},
): Promise<TarPlan> {
  const { copyLimit = DEFAULT_COPY_LIMIT_MIB, signal } = options;
  const limit = copyLimit * MEBIBYTE;
  // The cache holds the image itself.
  const exclude = [join(path, ".toolsmith", "cache")];
  const plan = await planTar(path, { exclude, maxBytes: limit, signal });
  if (plan.archiveBytes > limit) {
    throw new ToolsmithError(
      "usage",
      `Cannot copy ${path} into the guest: larger than the copy limit of ${copyLimit} MiB`,
      { hint: "raise the limits: --copy-limit SIZE and --memory SIZE" },
    );
  }
  const copyMs = BASE_COPY_TIMEOUT_MS +
    Math.ceil(plan.archiveBytes / MIN_COPY_BYTES_PER_MS);
  using time = startDeadline(copyMs, `Copying ${path} into the guest`, signal);
  const mode = writable ? "rw" : "ro";
  const { code, stderr } = await execInGuest(monitor, "/bin/sh", {
    args: ["-c", UNPACK_COPY_SCRIPT, "sh", `/mnt/${tag}`, mode],
    stdin: ReadableStream.from(plan.archiveChunks()),
    cwd: "/",
    signal: time.signal,
  });
  if (code === 0) return plan;
  const reason = sanitizeLine(stderr) || `status ${code}`;
  throw new ToolsmithError(
    "guest_failed",
    `Cannot copy ${path} into the guest: ${reason}`,
    { hint: "use an image with tar, or add guest memory: --memory SIZE" },
  );
}

/**
 * Syncs the guest's copy of a directory back to the host: downloads all of it, then
 * writes the files. Files deleted in the guest stay on the host. Links out of the
 * directory and devices are refused, set-ID bits are dropped. A malformed archive, one
 * with more than 1 GiB or 100,000 entries, or a full disk leaves the directory
 * unchanged. Returns the names of refused entries, and `tar`'s message about files that
 * changed meanwhile.
 */
export async function copyFromGuest(
  monitor: Monitor,
  { path, tag }: GuestShare,
  signal?: AbortSignal,
): Promise<{ refused: string[]; changeMessage: string }> {
  // The VM's directory is private to this user.
  const archivePath = join(monitor.dir, `${crypto.randomUUID()}.tar`);
  const how = { read: true, write: true, createNew: true, mode: 0o600 };
  using archive = await Deno.open(archivePath, how);
  // An open file needs no name, and no clean-up.
  await Deno.remove(archivePath);
  let bytes = 0;
  const { code, stderr } = await execInGuest(monitor, "tar", {
    args: ["-cf", "-", "-C", `/mnt/${tag}`, "."],
    stdout: async (chunk) => {
      bytes += chunk.length;
      if (bytes > MAX_ARCHIVE_BYTES) {
        throw limitExceededError(`${MAX_ARCHIVE_BYTES} bytes`);
      }
      await writeAll(archive, chunk);
    },
    cwd: "/",
    signal,
  });
  const message = sanitizeLine(stderr);
  const failure = code === 0 ? undefined : new ToolsmithError(
    "guest_failed",
    `Cannot sync ${path} from the guest: ${message || `status ${code}`}`,
    { hint: "use an image whose kernel has 9p: its exports need no sync" },
  );
  if (failure && code !== TAR_FILE_CHANGED_STATUS) throw failure;
  // A full disk must not end the sync between two files.
  await assertFreeSpace(path, bytes, "free disk space for the export");
  try {
    const limits = { ...SYNC_LIMITS, signal };
    const refused = await unpackTar(archive, path, limits);
    return { refused, changeMessage: failure ? message : "" };
  } catch (error) {
    signal?.throwIfAborted();
    throw failure ?? error;
  }
}

export async function copySharesIntoGuest(
  monitor: Monitor,
  shares: GuestShare[],
  { emit, why, ...options }: CopyIntoGuestOptions & { emit: Emit; why: string },
): Promise<GuestShare[]> {
  for (const share of shares) {
    const copied = await copyIntoGuest(monitor, share, options);
    const { archiveBytes, entryCount, skippedPaths } = copied;
    const what = share.writable ? `The export ${share.tag}` : "The workspace";
    const mebibytes = (archiveBytes / MEBIBYTE).toFixed(1);
    const message =
      `${what} was copied into the guest's memory instead of mounted (${entryCount} entries, ${mebibytes} MiB): ${why}` +
      skippedSuffix(skippedPaths);
    emit({ type: "warning", message });
  }
  return shares.map((share) => ({ ...share, copied: true }));
}

export async function syncCopiedExports(
  monitor: Monitor,
  shares: GuestShare[],
  { emit, signal }: { emit: Emit; signal: AbortSignal },
): Promise<void> {
  const copies = shares.filter((it) => it.copied && it.writable);
  if (copies.length === 0) return;
  // Commands that end at the same time, also of other processes, take turns.
  const lockPath = join(monitor.dir, VM_FILES.syncLock);
  using _lock = await acquireFileLock(lockPath, { signal });
  for (const share of copies) {
    const synced = await copyFromGuest(monitor, share, signal);
    const { refused, changeMessage } = synced;
    const warn = (what: string) =>
      emit({ type: "warning", message: `The export ${share.tag} ${what}` });
    if (changeMessage) warn(`changed while it was synced: ${changeMessage}`);
    if (refused.length === 0) continue;
    warn(`contains entries that are unsafe on a host${skippedSuffix(refused)}`);
  }
}

function skippedSuffix(names: string[]): string {
  return names.length === 0
    ? ""
    : `; skipped ${names.length}, such as ${sanitizeLine(names[0], 80)}`;
}
