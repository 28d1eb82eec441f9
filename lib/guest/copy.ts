/**
 * Brings a directory of the host into a guest that cannot mount it, as a copy in
 * the guest's memory, and back what the guest has made of it.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import type { GuestShare } from "../qemu/args.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { planTar, type TarPlan } from "./_tar.ts";
import { moveTree } from "./_move_tree.ts";
import { type LeftOut, type Unpacked, unpackTar } from "./_untar.ts";
import { removeTree } from "../system/files.ts";
import { oneLine } from "../system/text.ts";
import { timeLimit } from "../system/time.ts";
import { execInGuest } from "./exec.ts";

export type { LeftOut };

/** What {@linkcode copyFromGuest} did. */
export interface BroughtBack extends Unpacked {
  /** What `tar` said of files that changed meanwhile; empty if none did. */
  changed: string;
}

/** What {@linkcode copyIntoGuest} takes. */
export interface CopyOptions {
  /** Size that the copy may have, in MiB. @default {128} */
  copyLimit?: number;
  /** Absolute paths of the host that are left out. @default {[]} */
  exclude?: string[];
  /** Gives up when aborted. */
  signal?: AbortSignal;
}

const LIMIT_MIB = 128;
const MEBIBYTE = 2 ** 20;

/** Time that a copy may take besides that of its bytes, in milliseconds. */
const COPY_MS = 120_000;
/** A guest without KVM takes this many bytes a millisecond at least. */
const SLOWEST = 1000;

/** What one command may bring back. */
const BACK = { maxBytes: 2 ** 30, maxEntries: 100_000 };

/** What GNU tar ends with when a file has changed while it was read. */
const CHANGED = 1;

/**
 * Arguments: the place, and `ro` or `rw`. The directory comes as a tar on standard
 * input.
 */
const COPY_SCRIPT = `
[ -d "$1" ] || mkdir -p "$1" || exit 1
mount -t tmpfs -o mode=755 toolsmith "$1" || exit 1
said=$(tar -xpf - -C "$1" 2>&1) || {
  echo "$said" | tail -n 1 >&2
  exit 1
}
mount -o "remount,$2" "$1"
`;

/**
 * Copies a directory to `/mnt/<tag>` of a guest.
 *
 * Needs `--allow-read` for the directory.
 *
 * @param monitor The machine.
 * @param share The directory.
 * @param options How much it may be.
 * @returns What was copied.
 * @throws {ToolsmithError} `usage` when it is more than may be copied,
 * `guest_failed` when the guest has no room, or no `tar`, `timeout` when it takes
 * minutes.
 * @throws The signal's reason when it is aborted.
 */
export async function copyIntoGuest(
  monitor: Monitor,
  { path, tag, writable }: GuestShare,
  options: CopyOptions = {},
): Promise<TarPlan> {
  const { copyLimit = LIMIT_MIB, exclude, signal } = options;
  const limit = copyLimit * MEBIBYTE;
  const plan = await planTar(path, { exclude, limit, signal });
  if (plan.bytes > limit) {
    throw new ToolsmithError(
      "usage",
      `${path} has more than the ${copyLimit} MiB that are copied into a guest without 9p`,
      { hint: "allow more: --copy-limit SIZE, and --memory for the room" },
    );
  }
  const copyMs = COPY_MS + Math.ceil(plan.bytes / SLOWEST);
  using time = timeLimit(copyMs, `The copy of ${path}`, signal);
  const { code, stderr } = await execInGuest(monitor, "/bin/sh", {
    args: ["-c", COPY_SCRIPT, "sh", `/mnt/${tag}`, writable ? "rw" : "ro"],
    stdin: ReadableStream.from(plan.chunks()),
    cwd: "/",
    signal: time.signal,
  });
  if (code === 0) return plan;
  throw new ToolsmithError(
    "guest_failed",
    `The guest cannot take a copy of ${path}: ${
      oneLine(stderr) || `status ${code}`
    }`,
    { hint: "it needs tar, and room in its memory: --memory SIZE" },
  );
}

/** What {@linkcode copyFromGuest} takes. */
export interface CopyFromGuestOptions {
  /** A directory of this user alone, to unpack in. */
  stagingDir: string;
  /** Gives up when aborted. */
  signal?: AbortSignal;
}

/**
 * Syncs a directory with what a guest has in its copy of it: once all of that has
 * arrived, it is moved there. Files that are gone in the guest stay here.
 *
 * Needs `--allow-read` and `--allow-write` for the directory.
 *
 * @param monitor The machine.
 * @param share The directory.
 * @param options Where to unpack.
 * @returns What was taken, and what was not: nothing leads out of the directory,
 * and there are no devices, and no set-user-ID bits.
 * @throws {ToolsmithError} `guest_failed` when the guest sends no tar, or more
 * than 1 GiB or 100,000 entries.
 * @throws The signal's reason when it is aborted.
 */
export async function copyFromGuest(
  monitor: Monitor,
  share: GuestShare,
  { stagingDir, signal }: CopyFromGuestOptions,
): Promise<BroughtBack> {
  const staging = await Deno.makeTempDir({ dir: stagingDir });
  try {
    const taken = await receiveTar(monitor, share, staging, signal);
    const { entries, refused, changed } = taken;
    const left = await moveTree(staging, share.path, signal);
    return {
      entries: entries - left.length,
      refused: {
        count: refused.count + left.length,
        names: [...refused.names, ...left],
      },
      changed,
    };
  } finally {
    await removeTree(staging);
  }
}

/** Unpacks what a guest has in its copy of a directory. */
async function receiveTar(
  monitor: Monitor,
  { path, tag }: GuestShare,
  staging: string,
  signal: AbortSignal | undefined,
): Promise<BroughtBack> {
  const stop = new AbortController();
  const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
  const writer = writable.getWriter();
  const sending = execInGuest(monitor, "tar", {
    args: ["-cf", "-", "-C", `/mnt/${tag}`, "."],
    stdout: (chunk) => writer.write(chunk),
    cwd: "/",
    signal: AbortSignal.any([stop.signal, ...signal ? [signal] : []]),
  }).then(async (result) => {
    await writer.close();
    return result;
  }, async (error) => {
    await writer.abort(error).catch(() => {});
    throw error;
  });
  const taking = unpackTar(readable, staging, { ...BACK, signal }).catch(
    (error) => {
      stop.abort(error);
      throw error;
    },
  );
  const [sent, taken] = await Promise.allSettled([sending, taking]);
  signal?.throwIfAborted();
  const { code, stderr } = sent.status === "fulfilled"
    ? sent.value
    : { code: 0, stderr: "" };
  const whole = taken.status === "fulfilled" && code === CHANGED;
  if (code !== 0 && !whole) {
    throw new ToolsmithError(
      "guest_failed",
      `The guest cannot send its copy of ${path}: ${
        oneLine(stderr) || `status ${code}`
      }`,
      { hint: "it needs tar for an export that it cannot mount" },
    );
  }
  if (taken.status === "rejected") throw taken.reason;
  if (sent.status === "rejected") throw sent.reason;
  return { ...taken.value, changed: whole ? oneLine(stderr) : "" };
}
