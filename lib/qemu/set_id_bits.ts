/**
 * Clears set-user-ID and set-group-ID bits in exports. The guest's root can set them,
 * and on the host the file belongs to this user: others could run it as this user.
 *
 * `find -execdir` does the work, as names need not be UTF-8 and paths may exceed
 * PATH_MAX.
 */
import { ToolsmithError } from "../errors.ts";
import { quoteShellWord } from "../path.ts";
import { spawnProcess } from "../system/process.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import { abortable, settlesWithin } from "../system/time.ts";
import { textTailBuffer } from "./_console.ts";

/**
 * A shell function; its arguments are directories. It first restores the owner's
 * access to directories, as others can run files in a directory that its owner cannot
 * list. It skips files of other users, unless QEMU runs as root.
 */
export const CLEAR_SET_ID_SHELL_FUNCTION = `
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

const CLEAR_SCRIPT = `trap '' HUP INT TERM PIPE
${CLEAR_SET_ID_SHELL_FUNCTION}clear_set_id "$@"`;
const FIND_STDERR_TAIL_CHARS = 4096;
/** Long enough for exports of usual size. */
const DETACH_AFTER_ABORT_MS = 1000;

/**
 * Clears the set-user-ID and set-group-ID bits of all files in directories, the exports
 * of a VM that has ended. Symbolic links are not followed. Does nothing on Windows. An
 * aborted signal ends the wait within a second; the work continues in the background,
 * even after this process has ended.
 */
export async function clearSetIdBits(
  dirs: string[],
  { signal }: { signal?: AbortSignal } = {},
): Promise<void> {
  if (dirs.length === 0 || Deno.build.os === "windows") return;
  const stderr = textTailBuffer(FIND_STDERR_TAIL_CHARS);
  const child = spawnProcess("sh", {
    args: ["-c", CLEAR_SCRIPT, "sh", ...dirs],
    cwd: "/",
    newSession: true,
    stderr: stderr.add,
  });
  const ended = () => settlesWithin(child.ended, DETACH_AFTER_ABORT_MS);
  await abortable(child.ended, signal).catch(() => {});
  if (signal?.aborted && !await ended()) return await child.detach();
  const { code } = await child.ended;
  if (code === 0) return;
  const [dir] = dirs;
  const why = sanitizeLine(stderr.text().trim().split("\n")[0]);
  const where = dirs.join(", ");
  const message =
    `Cannot clear the set-user-ID and set-group-ID bits that the guest may have left in ${where}: ${why}`;
  const root = quoteShellWord(dir);
  const hint = `remove the bits: find ${root} -type f -exec chmod ug-s {} +`;
  throw new ToolsmithError("guest_failed", message, { hint });
}
