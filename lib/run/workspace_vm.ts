/**
 * What `toolsmith run` and `toolsmith boot` do, for programs: finds, restores or
 * boots the VM of a workspace from its manifest.
 */
import { dirname, join } from "../path.ts";
import { snapshotDirOf } from "../cache/snapshots.ts";
import { createEmitter } from "../events.ts";
import type { ExecOptions, ExecResult } from "../guest/exec.ts";
import type { TerminalOptions, TerminalResult } from "../guest/terminal.ts";
import { hydrate, type HydrateOptions } from "../hydrate/hydrate.ts";
import type { Manifest } from "../manifest/manifest.ts";
import { resolveToolPath } from "../manifest/tools.ts";
import { registryConfigPaths } from "../oci/registry_config_paths.ts";
import { startDeadline } from "../system/time.ts";
import { boot } from "../vm/boot.ts";
import {
  alreadyRunningError,
  attachDetachedVm,
  detachVm,
  findDetachedVm,
  networkNeedsProcessError,
} from "../vm/detached.ts";
import type { DetachedVmRecord } from "../vm/detached_record.ts";
import {
  acceleratorFromEnv,
  type BootOptions,
  parseNetworkRules,
} from "../vm/boot_options.ts";
import type { Vm } from "../vm/vm.ts";
import { detachedVmMismatch } from "./_detached_vm_reuse.ts";

/** Options of a workspace's VM. */
export interface WorkspaceVmOptions extends
  Omit<
    BootOptions,
    "image" | "loader" | "workspace" | "snapshots" | "hostOnly"
  > {
  /** How to download the image. */
  hydrate?: Omit<HydrateOptions, "onEvent" | "env" | "signal">;
  /**
   * Use the workspace's detached VM if it runs the manifest's image and matches these
   * options. Of `memory`, `cpus`, `accelerator` and `network`, given options are
   * compared. With `exports`, `arch`, `firmware`, `overlay`, `qemuArgs` or `console`
   * the detached VM is not used; a warning reports the reason.
   *
   * @default {true} `false` with `fresh`
   */
  reuseDetached?: boolean;
  /** Boot instead of using a detached VM or a snapshot. @default {false} */
  fresh?: boolean;
  /** Save a snapshot of a newly booted VM. @default {true} */
  save?: boolean;
}

/** How {@linkcode runInVm} runs a command. */
export interface RunInVmOptions extends ExecOptions {
  /** The VM to run in. @default {{}} */
  vm?: Omit<WorkspaceVmOptions, "signal">;
}

/**
 * Runs a command in the image of a manifest, as `toolsmith run` does: in the
 * workspace's detached VM if it matches, else in a VM for this command only.
 *
 * Needs what `hydrate` and `boot` need.
 *
 * @param manifest The manifest, from `loadManifest`.
 * @param command A tool of the manifest, a command on the guest's PATH, or a
 * path in the guest.
 * @param options Arguments, streams, VM. `timeoutMs` covers everything,
 * from the download of the image to the end of the command.
 * @returns How the command ended. A failing command is a result, not an error.
 * @throws {ToolsmithError} `tool_forbidden`, `timeout`, and what `hydrate`,
 * `boot` and `Vm.exec` throw.
 * @throws The signal's reason when it is aborted.
 *
 * @example Run a tool in the image of the nearest manifest
 * ```ts no-run
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
  const program = resolveToolPath(manifest, command);
  const { timeoutMs, ...rest } = options;
  using deadline = startDeadline(timeoutMs, "The command", rest.signal);
  const { signal } = deadline;
  await using vm = await openWorkspaceVm(manifest, { ...rest.vm, signal });
  return await vm.exec(program, { ...rest, signal });
}

/** How {@linkcode runOnTerminal} runs a command. */
export interface RunOnTerminalOptions extends TerminalOptions {
  /** The VM to run in. @default {{}} */
  vm?: Omit<WorkspaceVmOptions, "signal">;
}

/**
 * Runs a command on a terminal in the image of a manifest, as `toolsmith shell`
 * does, in the VM that {@linkcode runInVm} would use.
 *
 * Needs what `hydrate` and `boot` need.
 *
 * @param manifest The manifest, from `loadManifest`.
 * @param command A tool of the manifest, a command on the guest's PATH, or a
 * path in the guest.
 * @param options The host terminal, arguments, VM.
 * @returns How the command ended. A failing command is a result, not an error.
 * @throws {ToolsmithError} What {@linkcode runInVm} throws.
 * @throws The signal's reason when it is aborted.
 */
export async function runOnTerminal(
  manifest: Manifest,
  command: string,
  options: RunOnTerminalOptions,
): Promise<TerminalResult> {
  const program = resolveToolPath(manifest, command);
  const { timeoutMs, ...rest } = options;
  using deadline = startDeadline(timeoutMs, "The command", rest.signal);
  const { signal } = deadline;
  await using vm = await openWorkspaceVm(manifest, { ...rest.vm, signal });
  return await vm.terminal(program, { ...rest, signal });
}

/**
 * Opens a workspace's VM for several commands: the detached VM if it matches, else
 * one that is restored or booted here. Downloads the image if needed.
 *
 * Needs what `hydrate` and `boot` need.
 *
 * @param manifest The manifest, from `loadManifest`.
 * @param options Options of the VM.
 * @returns The VM. Disposing stops it, unless it is the detached one.
 * @throws {ToolsmithError} What `hydrate` and `boot` throw.
 * @throws The signal's reason when it is aborted.
 *
 * @example Run several tools
 * ```ts no-run
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
  return await attachReusableVm(manifest, options) ??
    await boot(await hydrateAndPlanVm(manifest, options));
}

/**
 * Downloads the image of a manifest and plans the VM: with the workspace mounted,
 * and with this user's snapshots.
 *
 * Needs what `hydrate` needs.
 *
 * @param manifest The manifest, from `loadManifest`.
 * @param options Options of the VM.
 * @returns Options for `boot`.
 * @throws {ToolsmithError} What `hydrate` throws.
 * @throws The signal's reason when it is aborted.
 */
export async function hydrateAndPlanVm(
  manifest: Manifest,
  options: WorkspaceVmOptions = {},
): Promise<BootOptions> {
  const { hydrate: hydrateOptions, fresh = false, save, ...rest } = options;
  const { reuseDetached: _, ...vmOptions } = rest;
  const { env } = vmOptions;
  // Report a wrong value before the image is downloaded.
  const accelerator = vmOptions.accelerator ?? acceleratorFromEnv(env);
  parseNetworkRules(vmOptions.network);
  const image = await hydrateForVm(manifest, options);
  const dir = await snapshotDirOf(image.path, env);
  return {
    ...vmOptions,
    accelerator,
    image: image.path,
    loader: image.boot,
    workspace: manifest.workspace,
    hostOnly: [
      manifest.path,
      // <cache>/<image>/<sha256>/<file>
      dirname(dirname(dirname(image.path))),
      ...hydrateOptions?.caFile === undefined ? [] : [hydrateOptions.caFile],
      ...await registryConfigPaths(env),
    ],
    snapshots: dir === undefined
      ? undefined
      : { dir, digest: image.digest, restore: !fresh, save },
  };
}

function hydrateForVm(
  manifest: Manifest,
  { hydrate: options, arch = options?.arch, onEvent, env, signal }:
    WorkspaceVmOptions,
) {
  return hydrate(manifest, { ...options, arch, onEvent, env, signal });
}

/**
 * Boots a workspace's VM and leaves it running for any process of the workspace.
 *
 * Needs what `hydrate` and `boot` need, and `--allow-write` for `.toolsmith/`.
 *
 * @param manifest The manifest, from `loadManifest`.
 * @param options Options of the VM.
 * @returns The record of the detached VM.
 * @throws {ToolsmithError} `usage` when the workspace already has one, and what
 * `hydrate` and `boot` throw.
 * @throws The signal's reason when it is aborted.
 */
export async function bootDetachedWorkspaceVm(
  manifest: Manifest,
  options: WorkspaceVmOptions = {},
): Promise<DetachedVmRecord> {
  const { network, signal } = options;
  const path = detachedVmRecordPath(manifest.workspace);
  if (parseNetworkRules(network)) throw networkNeedsProcessError();
  // Checked again under the lock, after the boot.
  if (await findDetachedVm(path, { signal })) throw alreadyRunningError(path);
  const vm = await boot(await hydrateAndPlanVm(manifest, options));
  try {
    const digest = `sha256:${manifest.image.sha256}`;
    return await detachVm(vm, path, { digest, signal });
  } catch (error) {
    await vm.stop({ graceMs: 0 });
    throw error;
  }
}

/**
 * The path of a workspace's record of its detached VM.
 *
 * @param root The workspace: a manifest's `root`.
 * @returns The record's path.
 */
export function detachedVmRecordPath(root: string): string {
  return join(root, ".toolsmith", "machine.json");
}

/** Attaches to the detached VM if it matches; else warns. */
async function attachReusableVm(
  manifest: Manifest,
  options: WorkspaceVmOptions,
): Promise<Vm | undefined> {
  const { fresh, reuseDetached = !fresh, onEvent, signal } = options;
  if (!reuseDetached) return undefined;
  const path = detachedVmRecordPath(manifest.workspace);
  const record = await findDetachedVm(path, { signal, onEvent });
  if (!record) return undefined;
  const mismatch = record.digest === `sha256:${manifest.image.sha256}`
    ? detachedVmMismatch(options, record)
    : "the manifest names another image";
  if (!mismatch) {
    // The rule may be newer than the VM.
    if (manifest.image.signature) await hydrateForVm(manifest, options);
    return attachDetachedVm(path, record, { onEvent });
  }
  const message = `The detached VM is not used: ${mismatch}`;
  createEmitter(onEvent)({ type: "warning", message });
}
