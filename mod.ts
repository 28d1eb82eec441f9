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
export * from "./lib/publish/github_actions.ts";
export type { Accelerator } from "./lib/qemu/accelerator.ts";
export type { GuestExport } from "./lib/vm/shares.ts";
export * from "./lib/vm/boot.ts";
export type { BootOptions, SnapshotOptions } from "./lib/vm/options.ts";
export type { CacheKey } from "./lib/cache/entry.ts";
export * from "./lib/cache/prune.ts";
export {
  type ConsumerManifest,
  formatManifest,
} from "./lib/manifest/format.ts";
export type { Sha256 } from "./lib/system/digest.ts";
export * from "./lib/vm/detached.ts";
export type { DetachedVmRecord } from "./lib/vm/detached_record.ts";
export * from "./lib/doctor/doctor.ts";
export type { Environment } from "./lib/environment.ts";
export * from "./lib/errors.ts";
export type * from "./lib/events.ts";
export type { FetchOptions } from "./lib/hydrate/fetch.ts";
export type {
  CommandInput,
  ExecLimits,
  ExecOptions,
  ExecResult,
  OutputSink,
} from "./lib/guest/exec.ts";
export { type HostOptions, runOnHost } from "./lib/run/host.ts";
export * from "./lib/run/workspace_vm.ts";
export * from "./lib/hydrate/hydrate.ts";
export * from "./lib/manifest/init.ts";
export {
  loadManifest,
  type LoadManifestOptions,
  type Manifest,
  type ManifestImage,
  parseManifest,
} from "./lib/manifest/manifest.ts";
export type { ManifestChange } from "./lib/manifest/write.ts";
export type { RegistryOptions } from "./lib/oci/registry.ts";
export type {
  ProcessExit,
  ProcessInput,
  ProcessOutput,
} from "./lib/system/process.ts";
export * from "./lib/publish/publish.ts";
export { type ExtraFile, parseExtra } from "./lib/publish/layers.ts";
export type { PollOptions } from "./lib/publish/verify.ts";
export * from "./lib/oci/reference.ts";
export type { Snapshot } from "./lib/cache/snapshots.ts";
export type { GuestShare } from "./lib/qemu/args.ts";
export * from "./lib/manifest/tools.ts";
export { VERSION } from "./lib/version.ts";
export type { BootedVm, StopOptions, Vm, VmFacts } from "./lib/vm/vm.ts";

if (import.meta.main) {
  const { main } = await import("./cli.ts");
  Deno.exitCode = await main(Deno.args);
}
