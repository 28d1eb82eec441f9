/**
 * Clears what a guest can leave in an export for other users of the host: its
 * root can give a file the set-user-ID bit, and on the host the file is this
 * user's.
 *
 * `find` does it, as names need not be UTF-8 and paths may be longer than
 * PATH_MAX: it walks from directory to directory and passes plain names on.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { spawn } from "../system/process.ts";
import { oneLine } from "../system/text.ts";
import { abortable, settlesWithin } from "../system/time.ts";
import { keepTail } from "./_console.ts";

/**
 * A shell function; its arguments are directories. Others can run a file in a
 * directory that its owner cannot list, so the owner gets access first. What
 * belongs to other users is theirs, unless QEMU runs as root.
 */
export const CLEAR_SET_ID = `
clear_set_id() (
  # \`find -execdir\` refuses to run programs from where it happens to be.
  case ":$PATH:" in *:[!/]*) PATH=/usr/local/bin:/usr/bin:/bin ;; esac
  user=$(id -u) own= closed= status=0
  [ "$user" = 0 ] || {
    own="-user $user"
    closed="-type d ! $own ! -execdir test -r {} ; ! -execdir test -w {} ; -prune -o"
  }
  for directory; do
    [ -d "$directory" ] || continue
    find "$directory" $closed \\
      -type d $own ! -perm -700 -execdir chmod -- u+rwx {} ';' -o \\
      -type f $own '(' -perm -4000 -o -perm -2000 ')' -execdir chmod -- ug-s {} + ||
      status=1
  done
  exit "$status"
)
`;

const STDERR_KEPT = 4096;
/** What is usual is cleared in this time, in milliseconds. */
const GRACE_MS = 1000;

/** What {@linkcode clearSetIdBits} takes. */
export interface ClearSetIdOptions {
  /**
   * Ends the wait when aborted, after a second at most; the work goes on to its end
   * without this process.
   */
  signal?: AbortSignal;
}

/**
 * Clears the set-user-ID and set-group-ID bits of all files in directories that a
 * guest could write to. Links are not followed. Windows has no such bits.
 *
 * Needs `--allow-run=sh`.
 *
 * @param dirs The directories; QEMU has ended.
 * @param options When to stop waiting.
 * @throws {ToolsmithError} `guest_failed` when some of them cannot be searched or
 * changed.
 */
export async function clearSetIdBits(
  dirs: string[],
  { signal }: ClearSetIdOptions = {},
): Promise<void> {
  if (dirs.length === 0 || Deno.build.os === "windows") return;
  const stderr = keepTail(STDERR_KEPT);
  const child = spawn("sh", {
    args: [
      "-c",
      `trap '' HUP INT TERM PIPE
${CLEAR_SET_ID}clear_set_id "$@"`,
      "sh",
      ...dirs,
    ],
    cwd: "/",
    detached: true,
    stderr: stderr.add,
  });
  await abortable(child.ended, signal).catch(() => {});
  if (signal?.aborted && !await settlesWithin(child.ended, GRACE_MS)) {
    return await child.release();
  }
  const { code } = await child.ended;
  if (code === 0) return;
  const [dir] = dirs;
  const why = oneLine(stderr.text().trim().split("\n")[0]);
  throw new ToolsmithError(
    "guest_failed",
    `Cannot clear the set-ID bits that the guest may have left in ${
      dirs.join(", ")
    }: ${why}`,
    { hint: `look for them: find '${dir}' -perm -4000 -o -perm -2000` },
  );
}
