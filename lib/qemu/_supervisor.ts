/**
 * Spawns QEMU under a supervisor: a shell in the background reads a pipe that this
 * process holds open, and kills QEMU when the pipe closes, however this process ends.
 */
import { resolve, SEPARATOR } from "../path.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { type RunningProcess, spawnProcess } from "../system/process.ts";
import type { QemuOptions } from "./args.ts";
import { CLEAR_SET_ID_SHELL_FUNCTION } from "./set_id_bits.ts";

export interface SuperviseOptions
  extends Pick<QemuOptions, "dir" | "memory" | "extra" | "shares"> {
  program: string;
  /** State file of a snapshot to restore. @default {undefined} */
  incoming?: string;
  /** Directory of an unfinished snapshot, removed if this process dies. @default {undefined} */
  unfinishedDir?: string;
  /** Source of `PATH` and `TMPDIR`, the only variables of QEMU. @default {processEnvironment} */
  env?: Environment;
}

/**
 * Starts the supervisor and becomes QEMU. Arguments: VM directory, directory of an
 * unfinished snapshot or "", memory limit in KiB or "", snapshot to restore or "",
 * number of exports, the exports, the program, its arguments. A line on the pipe
 * dismisses the supervisor; if the pipe ends without one, its writer has died, and
 * the supervisor kills QEMU and removes the directories.
 */
const SUPERVISED_QEMU_SCRIPT = `${CLEAR_SET_ID_SHELL_FUNCTION}
directory=$1 unfinished=$2 limit=$3 state=$4 exports=$5
shift 5
exec 3<&0
(
  trap '' HUP INT TERM
  exec >/dev/null 2>&1
  read -r word <&3 || {
    kill -KILL $$
    cd /
    rm -rf -- "$directory" \${unfinished:+"$unfinished"}
    # A dead process keeps its id until its parent reaps it.
    tries=0
    while kill -0 $$ && [ "$tries" -lt 50 ]; do
      tries=$((tries + 1))
      sleep 0.1 || sleep 1
    done
    while [ "$exports" -gt 0 ]; do
      clear_set_id "$1"
      shift
      exports=$((exports - 1))
    done
  }
) &
shift "$exports"
[ -z "$limit" ] || ulimit -d "$limit" 2>/dev/null
[ -z "$state" ] || exec 9<"$state"
exec "$@" </dev/null 3<&- >/dev/null
`;

/** QEMU reads the snapshot from the descriptor that the script above opens. */
export const INCOMING_STATE_URI = "fd:9";

/**
 * Memory limit of QEMU on top of the guest's memory, in MiB. TCG's cache of
 * translated code takes 1024, the rest of QEMU about 300.
 */
const QEMU_OVERHEAD_MIB = 2560;

/**
 * Spawns QEMU with a supervisor. `onStderr` is called until the process is detached;
 * QEMU ignores the SIGPIPE of later output.
 *
 * QEMU gets its own working directory and environment, to hide the caller's from a
 * guest that escapes. Its data segment is limited, as a guest can make the 9p server
 * allocate without end.
 */
export function spawnSupervisedQemu(
  options: SuperviseOptions,
  args: string[],
  onStderr: (chunk: Uint8Array) => void,
): RunningProcess {
  const { dir, unfinishedDir = "", program, incoming, shares } = options;
  const exports = shares.filter(({ writable }) => writable)
    .map(({ path }) => path);
  const limitKib = (options.memory + QEMU_OVERHEAD_MIB) * 1024;
  // Extra arguments may have relative paths, and devices that need more memory.
  const isConfined = options.extra.length === 0;
  return spawnProcess("sh", {
    args: [
      ...["-c", SUPERVISED_QEMU_SCRIPT, "sh"],
      ...[dir, unfinishedDir, isConfined ? `${limitKib}` : ""],
      incoming ? resolve(incoming) : "",
      ...[`${exports.length}`, ...exports],
      program.includes(SEPARATOR) ? resolve(program) : program,
      ...args,
      ...incoming ? ["-incoming", "defer"] : [],
    ],
    cwd: isConfined ? dir : undefined,
    env: qemuVariables(options.env),
    clearEnv: true,
    input: "held",
    stderr: onStderr,
    newSession: true,
  });
}

function qemuVariables(env?: Environment): Record<string, string> {
  const variables: Record<string, string> = {};
  for (const name of ["PATH", "TMPDIR"]) {
    const value = env?.get(name) || processEnvironment.get(name);
    if (value === undefined) continue;
    // A relative path would refer to QEMU's working directory.
    variables[name] = name === "TMPDIR" ? resolve(value) : value;
  }
  return variables;
}
