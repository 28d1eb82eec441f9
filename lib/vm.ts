/**
 * Detached VMs, commands on a terminal or on this host, and the types of VM options
 * and results.
 *
 * @example Detach a VM, find it again, and stop it
 * ```ts no-run
 * import { loadManifest } from "@fountain/toolsmith";
 * import {
 *   attachDetachedVm,
 *   detachedVmRecordPath,
 *   bootDetachedWorkspaceVm,
 *   findDetachedVm,
 *   stopDetachedVm,
 * } from "@fountain/toolsmith/vm";
 *
 * const manifest = await loadManifest();
 * await bootDetachedWorkspaceVm(manifest, { memory: 1024 });
 * const path = detachedVmRecordPath(manifest.workspace);
 * const record = await findDetachedVm(path);
 * if (record) await attachDetachedVm(path, record).exec("uname");
 * await stopDetachedVm(path);
 * ```
 *
 * @example Plan the VM of a workspace, boot it, and detach it
 * ```ts no-run
 * import { boot, loadManifest } from "@fountain/toolsmith";
 * import { detachVm, hydrateAndPlanVm } from "@fountain/toolsmith/vm";
 *
 * const plan = await hydrateAndPlanVm(await loadManifest(), { cpus: 4 });
 * const vm = await boot(plan);
 * const { pid } = await detachVm(vm, "machine.json", { graceMs: 5000 });
 * console.log(pid);
 * ```
 *
 * @example Run an allowed tool on this host, or on a terminal
 * ```ts no-run
 * import { loadManifest } from "@fountain/toolsmith";
 * import {
 *   assertToolAllowed,
 *   resolveToolPath,
 *   runOnHost,
 *   runOnTerminal,
 *   type HostTerminal,
 * } from "@fountain/toolsmith/vm";
 *
 * const manifest = await loadManifest();
 * assertToolAllowed(manifest, "fmt");
 * await runOnHost("fmt", { args: ["--check"], timeoutMs: 10_000 });
 *
 * const hostTerminal: HostTerminal = {
 *   keystrokes: () => Promise.resolve(Deno.stdin.readable),
 *   output: async (chunk) => void await Deno.stdout.write(chunk),
 *   size: () => Deno.consoleSize(),
 *   onResize: (changed) => Deno.addSignalListener("SIGWINCH", changed),
 * };
 * console.log("running", resolveToolPath(manifest, "fmt"));
 * await runOnTerminal(manifest, "fmt", { hostTerminal });
 * ```
 *
 * @module
 */

// The VM of a workspace, and commands in it or on the host.
export {
  bootDetachedWorkspaceVm,
  detachedVmRecordPath,
  hydrateAndPlanVm,
  runOnTerminal,
  type RunOnTerminalOptions,
} from "./run/workspace_vm.ts";
export { runOnHost, type RunOnHostOptions } from "./run/run_on_host.ts";
export {
  assertToolAllowed,
  resolveToolPath,
  type ToolRules,
} from "./manifest/tools.ts";

// Detached VMs.
export {
  attachDetachedVm,
  detachVm,
  type DetachVmOptions,
  findDetachedVm,
  stopDetachedVm,
  type UseDetachedVmOptions,
} from "./vm/detached.ts";
export type { DetachedVmRecord } from "./vm/detached_record.ts";

// Options and results.
export type { GuestExport, SnapshotOptions } from "./vm/boot_options.ts";
export type { StopOptions, VmFacts } from "./vm/vm.ts";
export type { GuestShare } from "./qemu/args.ts";
export type { Accelerator } from "./qemu/accelerator.ts";
export type {
  BootLoader,
  FirmwareKind,
  ImageArch,
} from "./image/boot_loader.ts";
export type {
  CommandInput,
  ExecStopOptions,
  OutputSink,
} from "./guest/exec.ts";
export type {
  HostTerminal,
  TerminalOptions,
  TerminalResult,
  TerminalSize,
} from "./guest/terminal.ts";
export type {
  ProcessExit,
  ProcessInput,
  ProcessOutputTarget,
} from "./system/process.ts";
