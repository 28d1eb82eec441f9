/**
 * What decides what this host runs, parses or trusts next: no guest may write it.
 *
 * @module
 */
import { userSnapshotsDir } from "../cache/snapshots.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { dirname, join } from "../path.ts";
import { descriptorDirs } from "../qemu/firmware.ts";
import { machineParents } from "../qemu/machine_dir.ts";
import { qemuProgram } from "../qemu/program.ts";
import { findProgram, programDirs } from "../system/find_program.ts";
import { denoCacheDir, ownFiles } from "../system/own_files.ts";

/** The caller's part of what {@linkcode hostPaths} names. */
export interface HostFiles {
  /** The image. */
  image: string;
  /** The directory with `.toolsmith/`. */
  workspace?: string;
  /** Keeps what the guest writes to its disk. */
  overlay?: string;
  /** Where snapshots are. */
  snapshots?: { dir: string };
  /** More of the kind: the manifest, the cache, how registries are reached. */
  hostOnly?: string[];
  /** Read for what names programs and directories. @default {processEnvironment} */
  env?: Environment;
  /** Ends the search for hard links when aborted. */
  signal?: AbortSignal;
}

/** Files and directories of the host. */
export interface HostPaths {
  /** No export may hold one, lie in one, or have a hard link to a file of it. */
  own: string[];
  /** The same, but for hard links: there are too many files to look at each. */
  large: string[];
  /** No export may hold one, but may well lie in one: names are looked up there. */
  searched: string[];
}

/** Started by name, beside QEMU and oras: by Toolsmith, its scripts, or the user. */
const PROGRAMS = ["toolsmith", "deno", "sh", "find", "rm", "ps", "stty"];
/** Where QEMU loads ROMs and modules from, beside the directory of its program. */
const LOADED = [
  "share/qemu",
  "lib/qemu",
  "lib64/qemu",
  `lib/${Deno.build.arch}-linux-gnu/qemu`,
];

/**
 * Names all that a guest must not write. Nothing of it need exist: a guest could
 * make it.
 *
 * Needs `--allow-read` for all of it.
 *
 * @param files What the caller knows.
 * @returns The paths.
 */
export async function hostPaths(files: HostFiles): Promise<HostPaths> {
  const { image, workspace, overlay, snapshots, hostOnly = [] } = files;
  const { env = processEnvironment } = files;
  const known = (paths: (string | undefined)[]) =>
    paths.filter((path) => path !== undefined);
  const cwd = Deno.cwd();
  return {
    own: known([
      ...[image, overlay, snapshots?.dir, userSnapshotsDir(env), ...hostOnly],
      ...await qemuFiles(env),
      ...await programFiles([env.get("TOOLSMITH_ORAS") || "oras"], env),
      // The next start looks for a manifest from here upwards.
      ...known([workspace, cwd]).map((dir) => join(dir, ".toolsmith")),
      ...ownFiles(),
      ...await programFiles(PROGRAMS, env),
    ]),
    large: known([denoCacheDir()]),
    searched: [
      ...machineParents(env),
      ...programDirs(env),
      ...programDirs(processEnvironment),
    ],
  };
}

/** The programs, what they load, and descriptors of firmware. */
async function qemuFiles(env: Environment) {
  const names = [qemuProgram(env, "x86_64"), qemuProgram(env, "aarch64")];
  const programs = await programFiles(names, env);
  const real = await Promise.all(
    programs.map((path) => Deno.realPath(path).catch(() => path)),
  );
  const dirs = await Promise.all(
    names.map((program) => descriptorDirs({ program, env })),
  );
  const loaded = real.map((path) => dirname(dirname(path)))
    .flatMap((prefix) => LOADED.map((name) => join(prefix, name)));
  return [...programs, ...loaded, ...dirs.flat()];
}

async function programFiles(names: string[], env: Environment) {
  const found = await Promise.all(names.map((name) => findProgram(name, env)));
  return found.filter((path) => path !== undefined);
}
