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
export async function protectedPaths(options: ProtectedPathsOptions) {
  const { image, workspace, overlay, snapshots, hostOnly = [] } = options;
  const { env = processEnvironment } = options;
  const qemus = [qemuProgram(env, "x86_64"), qemuProgram(env, "aarch64")];
  const oras = env.get("TOOLSMITH_ORAS") || "oras";
  const programs = [...qemus, oras, ...PROTECTED_PROGRAMS];
  return {
    /** No export may contain, lie in, or have a hard link into one of these. */
    hardLinkChecked: [
      ...[image, overlay, snapshots?.dir, userSnapshotsDir(env), ...hostOnly],
      ...await qemuDataPaths(qemus, env),
      ...await Promise.all(programs.map((name) => findProgram(name, env))),
      // The next command looks for a manifest from here upwards.
      ...[workspace, Deno.cwd()].map((dir) => dir && join(dir, ".toolsmith")),
      ...listProgramFiles(),
    ].filter((path) => path !== undefined),
    /** The same without hard links, as these contain too many files to check. */
    hardLinkUnchecked: [denoCacheDir()].filter((path) => path !== undefined),
    /** Directories where programs are looked up: no export may contain one. */
    lookupDirs: [
      ...vmDirParents(env),
      ...programSearchDirs(env),
      ...programSearchDirs(processEnvironment),
    ],
  };
}

/** What QEMU programs load from their installation, and firmware descriptors. */
async function qemuDataPaths(programs: string[], env: Environment) {
  const found = programs.map(async (program) => {
    const path = await findProgram(program, env);
    const real = path && await Deno.realPath(path).catch(() => path);
    const loaded = real
      ? QEMU_LOAD_DIRS.map((name) => join(dirname(dirname(real)), name))
      : [];
    return [...loaded, ...await firmwareDescriptorDirs({ program, env })];
  });
  return (await Promise.all(found)).flat();
}
