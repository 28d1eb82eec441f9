/**
 * What `toolsmith run` and `toolsmith boot` do, for programs: the machine of a
 * workspace, from its manifest.
 *
 * @module
 */
import { dirname, join } from "../path.ts";
import { snapshotDir } from "../cache/snapshots.ts";
import type { ExecOptions, ExecResult } from "../guest/exec.ts";
import type { TerminalOptions, TerminalResult } from "../guest/terminal.ts";
import { hydrate, type HydrateOptions } from "../hydrate/hydrate.ts";
import type { Manifest } from "../manifest/manifest.ts";
import { resolveTool } from "../manifest/tools.ts";
import { registryFiles } from "../oci/host_files.ts";
import { timeLimit } from "../system/time.ts";
import { boot } from "../vm/boot.ts";
import {
  assertNoDetachedVm,
  attachDetachedVm,
  detach,
  findDetachedVm,
} from "../vm/detached.ts";
import type { DetachedVmRecord } from "../vm/detached_record.ts";
import { type BootOptions, wantedAccelerator } from "../vm/options.ts";
import type { Vm } from "../vm/vm.ts";

/** What the machine of a workspace takes besides the manifest. */
export interface WorkspaceVmOptions extends
  Omit<
    BootOptions,
    "image" | "loader" | "workspace" | "snapshots" | "hostOnly"
  > {
  /** How to get the image. */
  hydrate?: Omit<HydrateOptions, "onEvent" | "env" | "signal">;
  /** Boot, even if a detached VM or a snapshot would do. @default {false} */
  fresh?: boolean;
  /** Save the machine when it is ready, unless it was restored. @default {true} */
  save?: boolean;
}

/** How {@linkcode runInVm} runs a command. */
export interface RunInVmOptions extends ExecOptions {
  /** How to get a machine for it. @default {{}} */
  vm?: Omit<WorkspaceVmOptions, "signal">;
}

/**
 * Runs a command in the image of a manifest, as `toolsmith run` does: in the
 * workspace's detached VM if it fits, else in a machine for this command alone.
 *
 * Needs what `hydrate` and `boot` need.
 *
 * @param manifest The manifest, from `loadManifest`.
 * @param command A tool of the manifest, a command on the guest's PATH, or a
 * path in the guest.
 * @param options Arguments, streams, the machine. `timeoutMs` covers everything,
 * from the download of the image to the end of the command.
 * @returns How it ended. A failure of the command is a result, not an error.
 * @throws {ToolsmithError} `tool_forbidden`, `timeout`, and what `hydrate`,
 * `boot` and `Vm.exec` throw.
 * @throws The signal's reason when it is aborted.
 *
 * @example Run a tool in the image of the nearest manifest
 * ```ts no-assert ignore
 * import { loadManifest, runInVm } from "@fountain/toolsmith";
 *
 * const manifest = await loadManifest();
 * const { code, stdout } = await runInVm(manifest, "uname", { args: ["-a"] });
 * console.log(code, stdout);
 * ```
 */
export async function runInVm(
  manifest: Manifest,
  command: string,
  options: RunInVmOptions = {},
): Promise<ExecResult> {
  const { vm: how, timeoutMs = Infinity, signal: given, ...exec } = options;
  const program = resolveTool(manifest, command);
  // The one deadline: only its signal is handed down.
  using limit = timeLimit(timeoutMs, "The command", given);
  const { signal } = limit;
  await using vm = await openWorkspaceVm(manifest, { ...how, signal });
  return await vm.exec(program, { ...exec, signal });
}

/** How {@linkcode runOnTerminal} runs a command. */
export interface RunOnTerminalOptions extends TerminalOptions {
  /** How to get a machine for it. @default {{}} */
  vm?: Omit<WorkspaceVmOptions, "signal">;
}

/**
 * Runs a command on a terminal in the image of a manifest, as `toolsmith shell`
 * does, in the machine that {@linkcode runInVm} would take.
 *
 * Needs what `hydrate` and `boot` need.
 *
 * @param manifest The manifest, from `loadManifest`.
 * @param command A tool of the manifest, a command on the guest's PATH, or a
 * path in the guest.
 * @param options The terminal here; arguments, the machine.
 * @returns How it ended. A failure of the command is a result, not an error.
 * @throws {ToolsmithError} What {@linkcode runInVm} throws.
 * @throws The signal's reason when it is aborted.
 */
export async function runOnTerminal(
  manifest: Manifest,
  command: string,
  options: RunOnTerminalOptions,
): Promise<TerminalResult> {
  const { vm: how, timeoutMs = Infinity, signal: given, ...exec } = options;
  const program = resolveTool(manifest, command);
  // The one deadline: only its signal is handed down.
  using limit = timeLimit(timeoutMs, "The command", given);
  const { signal } = limit;
  await using vm = await openWorkspaceVm(manifest, { ...how, signal });
  return await vm.terminal(program, { ...exec, signal });
}

/**
 * The machine of a workspace, for several commands: its detached VM if that
 * fits, else one that is restored or booted here.
 *
 * Needs what `hydrate` and `boot` need.
 *
 * @param manifest The manifest, from `loadManifest`.
 * @param options The machine. Options that shape it, such as `memory` or
 * `exports`, rule the detached VM out.
 * @returns The machine. Disposing it stops it, unless it is the detached one.
 * @throws {ToolsmithError} What `hydrate` and `boot` throw.
 * @throws The signal's reason when it is aborted.
 *
 * @example Run several tools
 * ```ts no-assert ignore
 * import { loadManifest, openWorkspaceVm } from "@fountain/toolsmith";
 *
 * await using vm = await openWorkspaceVm(await loadManifest());
 * for (const file of ["a.txt", "b.txt"]) {
 *   const { stdout } = await vm.exec("wc", { args: ["-l", file] });
 *   console.log(stdout);
 * }
 * ```
 */
export async function openWorkspaceVm(
  manifest: Manifest,
  options: WorkspaceVmOptions = {},
): Promise<Vm> {
  return await findFitting(manifest, options) ??
    await boot(await planWorkspaceVm(manifest, options));
}

/**
 * Gets the image of a manifest, and says how `boot` makes a machine of it: with
 * the workspace mounted, and with this user's snapshots.
 *
 * Needs what `hydrate` needs.
 *
 * @param manifest The manifest, from `loadManifest`.
 * @param options The machine.
 * @returns What `boot` takes.
 * @throws {ToolsmithError} What `hydrate` throws.
 * @throws The signal's reason when it is aborted.
 */
export async function planWorkspaceVm(
  manifest: Manifest,
  options: WorkspaceVmOptions = {},
): Promise<BootOptions> {
  const { hydrate: how, fresh = false, save, ...machine } = options;
  const { onEvent, env, signal } = machine;
  // A wrong value is reported before the image is downloaded.
  const accelerator = machine.accelerator ?? wantedAccelerator(env);
  const image = await hydrate(manifest, {
    ...how,
    ...{ onEvent, env, signal },
    arch: machine.arch ?? how?.arch,
  });
  const entry = dirname(image.path);
  const dir = await snapshotDir(image.path, env);
  return {
    ...machine,
    accelerator,
    image: image.path,
    loader: image.boot,
    workspace: manifest.root,
    hostOnly: [
      manifest.path,
      // <cache>/<image>/<sha256>/<file>
      dirname(dirname(entry)),
      ...how?.caFile === undefined ? [] : [how.caFile],
      ...await registryFiles(env),
    ],
    snapshots: dir === undefined
      ? undefined
      : { dir, digest: image.digest, restore: !fresh, save },
  };
}

/**
 * Boots the machine of a workspace and leaves it running, for any process of the
 * workspace to use.
 *
 * Needs what `hydrate` and `boot` need, and `--allow-write` for `.toolsmith/`.
 *
 * @param manifest The manifest, from `loadManifest`.
 * @param options The machine.
 * @returns What was written down about it.
 * @throws {ToolsmithError} `usage` when the workspace has one already, and what
 * `hydrate` and `boot` throw.
 * @throws The signal's reason when it is aborted.
 */
export async function detachWorkspaceVm(
  manifest: Manifest,
  options: WorkspaceVmOptions = {},
): Promise<DetachedVmRecord> {
  const { signal } = options;
  const path = detachedVmPath(manifest.root);
  // The same is looked for again under the lock, after the boot.
  await assertNoDetachedVm(path, { signal });
  const vm = await boot(await planWorkspaceVm(manifest, options));
  try {
    return await detach(vm, path, { digest: digestOf(manifest), signal });
  } catch (error) {
    await vm.stop({ graceMs: 0 });
    throw error;
  }
}

/**
 * Where a workspace has the record of its detached VM.
 *
 * @param root The workspace: a manifest's `root`.
 * @returns The file's path.
 */
export function detachedVmPath(root: string): string {
  return join(root, ".toolsmith", "machine.json");
}

/** The detached VM, if it is of this image and nothing else is asked for. */
async function findFitting(
  manifest: Manifest,
  options: WorkspaceVmOptions,
): Promise<Vm | undefined> {
  const { fresh, save: _save, hydrate: _hydrate, ...machine } = options;
  const { onEvent, env: _env, signal, ...shape } = machine;
  if (fresh || Object.values(shape).some((value) => value !== undefined)) {
    return undefined;
  }
  const path = detachedVmPath(manifest.root);
  const record = await findDetachedVm(path, { signal });
  return record?.digest === digestOf(manifest)
    ? attachDetachedVm(path, record, { onEvent })
    : undefined;
}

function digestOf({ image }: Manifest): string {
  return `sha256:${image.sha256}`;
}
