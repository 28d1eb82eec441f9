/**
 * Brings a directory of the host into a guest that cannot mount it: as a copy in
 * the guest's memory.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import type { GuestShare } from "../qemu/args.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { planTar, type TarPlan } from "../system/tar.ts";
import { oneLine } from "../system/text.ts";
import { execInGuest } from "./exec.ts";

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

/** Arguments: the place. The directory comes as a tar on standard input. */
const COPY_SCRIPT = `
umount -l "$1" 2>/dev/null
mkdir -p "$1" && mount -t tmpfs -o mode=755 toolsmith "$1" || exit 1
said=$(tar -xpf - -C "$1" 2>&1) || {
  echo "$said" | tail -n 1 >&2
  exit 1
}
mount -o remount,ro "$1"
`;

/**
 * Copies a directory to `/mnt/<tag>` of a guest, which can only read it there.
 *
 * Needs `--allow-read` for the directory.
 *
 * @param monitor The machine.
 * @param share The directory.
 * @param options How much it may be.
 * @returns What was copied.
 * @throws {ToolsmithError} `usage` when it is more than may be copied,
 * `guest_failed` when the guest has no room, or no `tar`.
 * @throws The signal's reason when it is aborted.
 */
export async function copyIntoGuest(
  monitor: Monitor,
  { path, tag }: GuestShare,
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
  const { code, stderr } = await execInGuest(monitor, "/bin/sh", {
    args: ["-c", COPY_SCRIPT, "sh", `/mnt/${tag}`],
    stdin: ReadableStream.from(plan.chunks()),
    cwd: "/",
    signal,
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
