/**
 * Toolsmith gets a verified VM image from an OCI registry onto a host, and runs
 * tools inside it.
 *
 * As a program: `deno run -A jsr:@fountain/toolsmith hydrate`. As a library:
 *
 * @example Get the image of the nearest manifest
 * ```ts ignore
 * import { hydrate, loadManifest } from "@fountain/toolsmith";
 *
 * const manifest = await loadManifest();
 * const image = await hydrate(manifest, {
 *   signal: AbortSignal.timeout(10 * 60_000),
 *   onEvent: (event) => console.error(event.type),
 * });
 * console.log(image.outcome, image.path);
 * ```
 *
 * @module
 */

// Manifests: find, read and write `.toolsmith/tools.json`.
export {
  loadManifest,
  type LoadManifestOptions,
  type Manifest,
  type ManifestImage,
  parseManifest,
} from "./lib/manifest/manifest.ts";
export {
  type ConsumerManifest,
  formatManifest,
} from "./lib/manifest/format.ts";
export { init, type InitOptions, type InitResult } from "./lib/hydrate/init.ts";
export type {
  FileSource,
  HttpsSource,
  ImageSource,
} from "./lib/manifest/source.ts";
export type { ManifestChange } from "./lib/manifest/write.ts";
export {
  assertToolAllowed,
  resolveTool,
  type ToolRules,
} from "./lib/manifest/tools.ts";

// Images: get them, and clear the cache.
export {
  hydrate,
  type HydrateOptions,
  type HydrateResult,
} from "./lib/hydrate/hydrate.ts";
export type { FetchOptions } from "./lib/hydrate/fetch.ts";
export type { CacheKey } from "./lib/cache/entry.ts";
export {
  adoptSnapshots,
  type CacheEntry,
  listCache,
  listPartialImages,
  type PartialImage,
  pruneCache,
  type PruneOptions,
  type PruneResult,
} from "./lib/cache/prune.ts";
export type { Snapshot, SnapshotFiles } from "./lib/cache/snapshots.ts";
export type { Digest, Sha256 } from "./lib/system/digest.ts";

// Commands in an image, or on this host.
export {
  detachedVmPath,
  detachWorkspaceVm,
  openWorkspaceVm,
  planWorkspaceVm,
  runInVm,
  type RunInVmOptions,
  runOnTerminal,
  type RunOnTerminalOptions,
  type WorkspaceVmOptions,
} from "./lib/run/workspace_vm.ts";
export { type HostOptions, runOnHost } from "./lib/run/host.ts";
export type {
  CommandInput,
  ExecLimits,
  ExecOptions,
  ExecResult,
  OutputSink,
} from "./lib/guest/exec.ts";
export type {
  TerminalOptions,
  TerminalResult,
  TerminalScreen,
  TerminalSize,
} from "./lib/guest/terminal.ts";
export type {
  ProcessExit,
  ProcessInput,
  ProcessOutput,
} from "./lib/system/process.ts";

// Machines: boot an image, keep it running, stop it.
export { boot } from "./lib/vm/boot.ts";
export type { BootOptions, SnapshotOptions } from "./lib/vm/options.ts";
export type { BootedVm, StopOptions, Vm, VmFacts } from "./lib/vm/vm.ts";
export {
  attachDetachedVm,
  detach,
  type DetachedVmOptions,
  type DetachOptions,
  findDetachedVm,
  stopDetachedVm,
} from "./lib/vm/detached.ts";
export type { DetachedVmRecord } from "./lib/vm/detached_record.ts";
export type { GuestExport } from "./lib/vm/shares.ts";
export type { GuestShare } from "./lib/qemu/args.ts";
export type {
  BootLoader,
  FirmwareKind,
  ImageArch,
} from "./lib/image/boot_loader.ts";
export type { Accelerator } from "./lib/qemu/accelerator.ts";

// Publishing.
export {
  publish,
  type PublishOptions,
  type PublishResult,
} from "./lib/publish/publish.ts";
export { type ExtraFile, parseExtra } from "./lib/publish/layers.ts";
export type { PollOptions } from "./lib/publish/verify.ts";
export {
  type ReportOptions,
  reportToActions,
} from "./lib/publish/github_actions.ts";
export {
  formatReference,
  type OciReference,
  parseReference,
} from "./lib/oci/reference.ts";
export type { RegistryOptions } from "./lib/oci/registry.ts";

// This host, errors and events.
export {
  doctor,
  type DoctorOptions,
  type Finding,
} from "./lib/doctor/doctor.ts";
export {
  ERROR_CODES,
  type ErrorCode,
  ToolsmithError,
  type ToolsmithErrorOptions,
} from "./lib/errors.ts";
export type {
  BootReadyEvent,
  CacheCorruptEvent,
  CacheHitEvent,
  CachePlacedEvent,
  ChecksumProgressEvent,
  ChecksumVerifiedEvent,
  CommandDispatchEvent,
  CommandEndEvent,
  DownloadEndEvent,
  DownloadProgressEvent,
  DownloadStartEvent,
  EventBase,
  ExportCreatedEvent,
  ImageEvent,
  ImageInspectedEvent,
  LockWaitEvent,
  ManifestResolvedEvent,
  MirrorFailedEvent,
  OnEvent,
  PublishPollEvent,
  PublishStartEvent,
  PublishVerifiedEvent,
  PushEndEvent,
  RangesUnavailableEvent,
  RetryEvent,
  ShutdownEvent,
  StateSavedEvent,
  ToolsmithEvent,
  VmBootEvent,
  WarningEvent,
} from "./lib/events.ts";
export type { Environment } from "./lib/environment.ts";
export { VERSION } from "./lib/version.ts";

if (import.meta.main) {
  const { main } = await import("./cli.ts");
  Deno.exit(await main(Deno.args));
}
