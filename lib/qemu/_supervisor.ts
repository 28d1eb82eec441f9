/**
 * Starts QEMU so that it never outlives its owner: a watcher beside it reads a
 * pipe that this process holds, and kills QEMU when the pipe ends, whatever
 * ended this process.
 *
 * @module
 */
import { resolve, SEPARATOR } from "../path.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { type Child, spawn, type SpawnOptions } from "../system/process.ts";
import type { MachineOptions } from "./args.ts";
import { CLEAR_SET_ID } from "./set_id.ts";

/** What {@linkcode spawnSupervised} takes besides QEMU's arguments. */
export interface SuperviseOptions
  extends Pick<MachineOptions, "dir" | "memory" | "extra" | "shares"> {
  /** The QEMU program. */
  program: string;
  /** A snapshot's devices, and memory that is not mapped, to restore. @default {undefined} */
  incoming?: string;
  /** A directory to remove if this process dies: a snapshot that is not whole. @default {undefined} */
  unfinished?: string;
  /** Read for `PATH` and `TMPDIR`; QEMU gets no other. @default {processEnvironment} */
  env?: Environment;
}

/**
 * Becomes QEMU, with a watcher in the background. Arguments: the directory, another
 * that goes with it or nothing, a limit in KiB or nothing, the snapshot to restore
 * or nothing, how many directories the guest may write to, these directories, the
 * program, its arguments. The pipe brings a line when all is well; if it ends
 * without, its writer is dead, and QEMU and its directories have to go.
 */
const SUPERVISOR = `${CLEAR_SET_ID}
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
    # A process that has ended keeps its id until somebody asks for its status.
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

/** Where QEMU reads the snapshot: the descriptor that the script above opens. */
export const INCOMING = "fd:9";

/**
 * What QEMU may take besides the guest's memory, in MiB: 1024 are for translated
 * code, and usual work needs some 300 more.
 */
const OVERHEAD_MIB = 2560;

/**
 * Starts QEMU with a watcher beside it.
 *
 * Needs `--allow-run=sh`.
 *
 * @param options The program, and what it may use.
 * @param args QEMU's arguments.
 * @param onStderr Gets what QEMU writes to its standard error. After a release
 * nobody does, and QEMU, which ignores SIGPIPE, goes on.
 * @returns QEMU. `release` ends the watcher, and QEMU goes on.
 */
export function spawnSupervised(
  options: SuperviseOptions,
  args: string[],
  onStderr: (chunk: Uint8Array) => void,
): Child {
  const { dir, unfinished = "", program, incoming, shares } = options;
  const exports = shares.filter(({ writable }) => writable)
    .map(({ path }) => path);
  return spawn("sh", {
    args: [
      ...["-c", SUPERVISOR, "sh", dir, unfinished, dataLimit(options)],
      incoming ? resolve(incoming) : "",
      ...[`${exports.length}`, ...exports],
      program.includes(SEPARATOR) ? resolve(program) : program,
      ...args,
      ...incoming ? ["-incoming", "defer"] : [],
    ],
    ...surroundings(options),
    input: "held",
    stderr: onStderr,
    detached: true,
  });
}

/**
 * A guest can make QEMU's 9p server take memory without end. Devices that the
 * caller adds may need more than can be known here.
 */
function dataLimit({ memory, extra }: SuperviseOptions): string {
  return extra.length === 0 ? `${(memory + OVERHEAD_MIB) * 1024}` : "";
}

/**
 * What QEMU runs in. A directory and an environment of its own, so that nothing
 * of the caller's is there for a guest that breaks out; but file names in the
 * caller's arguments for QEMU start from the caller's directory.
 */
function surroundings({ dir, env, extra }: SuperviseOptions): SpawnOptions {
  const get = (name: string) => env?.get(name) ?? processEnvironment.get(name);
  const passed = ["PATH", "TMPDIR"].flatMap((name) => {
    const value = get(name);
    if (value === undefined) return [];
    // QEMU starts in another directory.
    return [[name, name === "TMPDIR" ? resolve(value) : value]];
  });
  return {
    cwd: extra.length === 0 ? dir : undefined,
    env: Object.fromEntries(passed),
    clearEnv: true,
  };
}
