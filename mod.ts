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
export * from "./lib/actions.ts";
export type { Accelerator } from "./lib/accelerator.ts";
export type { Export } from "./lib/attach.ts";
export * from "./lib/boot.ts";
export type { BootOptions, StateOptions } from "./lib/boot_options.ts";
export type { CacheKey } from "./lib/cache.ts";
export * from "./lib/cache_admin.ts";
export {
  type ConsumerManifest,
  formatManifest,
} from "./lib/consumer_manifest.ts";
export type { Sha256 } from "./lib/digest.ts";
export * from "./lib/detached.ts";
export * from "./lib/doctor.ts";
export type { Environment } from "./lib/environment.ts";
export * from "./lib/errors.ts";
export type * from "./lib/events.ts";
export type { FetchOptions } from "./lib/fetch_image.ts";
export type { ExecOptions, ExecResult } from "./lib/guest.ts";
export type { Limits } from "./lib/guest_limits.ts";
export type { Input, OutputSink } from "./lib/guest_streams.ts";
export { type HostOptions, runOnHost } from "./lib/host.ts";
export * from "./lib/hydrate.ts";
export * from "./lib/init.ts";
export {
  loadManifest,
  type LoadManifestOptions,
  type Manifest,
  type ManifestImage,
  parseManifest,
} from "./lib/manifest.ts";
export type { Written } from "./lib/manifest_write.ts";
export type { RegistryOptions } from "./lib/oras.ts";
export type { Ended, Sink, Source } from "./lib/process.ts";
export * from "./lib/publish.ts";
export { type ExtraFile, parseExtra } from "./lib/publish_files.ts";
export type { PollOptions } from "./lib/publish_poll.ts";
export * from "./lib/reference.ts";
export type { SavedState } from "./lib/saved_states.ts";
export type { Share } from "./lib/qemu.ts";
export * from "./lib/tools.ts";
export { VERSION } from "./lib/version.ts";
export type { StopOptions, Vm, VmFacts } from "./lib/vm.ts";

if (import.meta.main) {
  const { main } = await import("./cli.ts");
  Deno.exitCode = await main(Deno.args);
}
