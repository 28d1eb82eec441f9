/**
 * Host paths that no guest may write to, as the host runs, parses or trusts them.
 */
import { userSnapshotsDir } from "../cache/snapshots.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { dirname, join } from "../path.ts";
import { firmwareDescriptorDirs } from "../qemu/firmware.ts";
import { vmDirParents } from "../qemu/vm_dir.ts";
import { qemuProgram } from "../qemu/program.ts";
import { findProgram, programSearchDirs } from "../system/find_program.ts";
import { denoCacheDir, listProgramFiles } from "../system/program_files.ts";
import type { BootOptions } from "./boot_options.ts";

/** Paths that only the caller of {@linkcode protectedPaths} knows. */
export type ProtectedPathsOptions =
  & Pick<BootOptions, "image" | "workspace" | "overlay" | "hostOnly" | "env">
  & { snapshots?: { dir: string }; signal?: AbortSignal };

/** Programs besides QEMU and oras that Toolsmith or its user starts by name. */
const PROTECTED_PROGRAMS = "toolsmith deno sh find rm ps stty".split(" ");
/** Directories of QEMU's ROMs and modules, relative to its installation prefix. */
const QEMU_LOAD_DIRS = [
  "share/qemu",
  "lib/qemu",
  "lib64/qemu",
  `lib/${Deno.build.arch}-linux-gnu/qemu`,
];

/**
 * Returns all paths that a guest must not write to. They need not exist: a guest could
 * create them.
 */
export async function protectedPaths(files: ProtectedPathsOptions) {
  const { image, workspace, overlay, snapshots, hostOnly = [] } = files;
  const { env = processEnvironment } = files;
  const known = (paths: (string | undefined)[]) =>
    paths.filter((path) => path !== undefined);
  const cwd = Deno.cwd();
  return {
    /** No export may contain, lie in, or have a hard link into one of these. */
    hardLinkChecked: known([
      ...[image, overlay, snapshots?.dir, userSnapshotsDir(env), ...hostOnly],
      ...await qemuPaths(env),
      ...await programPaths([env.get("TOOLSMITH_ORAS") || "oras"], env),
      // The next command looks for a manifest from here upwards.
      ...known([workspace, cwd]).map((dir) => join(dir, ".toolsmith")),
      ...listProgramFiles(),
      ...await programPaths(PROTECTED_PROGRAMS, env),
    ]),
    /** The same without hard links, as these contain too many files to check. */
    hardLinkUnchecked: known([denoCacheDir()]),
    /** Directories where programs are looked up: no export may contain one. */
    lookupDirs: [
      ...vmDirParents(env),
      ...programSearchDirs(env),
      ...programSearchDirs(processEnvironment),
    ],
  };
}

/** QEMU programs, their data and modules, and firmware descriptors. */
async function qemuPaths(env: Environment) {
  const names = [qemuProgram(env, "x86_64"), qemuProgram(env, "aarch64")];
  const programs = await programPaths(names, env);
  const real = await Promise.all(
    programs.map((path) => Deno.realPath(path).catch(() => path)),
  );
  const dirs = await Promise.all(
    names.map((program) => firmwareDescriptorDirs({ program, env })),
  );
  const loaded = real.map((path) => dirname(dirname(path)))
    .flatMap((prefix) => QEMU_LOAD_DIRS.map((name) => join(prefix, name)));
  return [...programs, ...loaded, ...dirs.flat()];
}

async function programPaths(names: string[], env: Environment) {
  const found = await Promise.all(names.map((name) => findProgram(name, env)));
  return found.filter((path) => path !== undefined);
}
