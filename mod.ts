/**
 * Toolsmith downloads a verified VM image from an OCI registry to a host and runs
 * tools inside it.
 *
 * As a program: `deno run -A jsr:@fountain/toolsmith hydrate`. As a library, this
 * module has what most programs need; `./vm`, `./oci` and `./cache` have the rest.
 *
 * @example Download the image of the nearest manifest
 * ```ts no-run
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
 * @example Check this host and pin an image
 * ```ts no-run
 * import { doctor, init, VERSION } from "@fountain/toolsmith";
 *
 * const findings = await doctor();
 * console.log(VERSION, findings.filter(({ level }) => level === "fail"));
 * const { path } = await init({ ref: "oci://ghcr.io/owner/repo:1.0" });
 * console.log(path);
 * ```
 *
 * @example Handle one error code
 * ```ts no-run
 * import {
 *   ERROR_CODES,
 *   loadManifest,
 *   runInVm,
 *   ToolsmithError,
 * } from "@fountain/toolsmith";
 *
 * try {
 *   await runInVm(await loadManifest(), "make");
 * } catch (error) {
 *   if (!(error instanceof ToolsmithError)) throw error;
 *   const [exitStatus, meaning] = ERROR_CODES[error.code];
 *   console.error(exitStatus, meaning, error.message, error.hint, error.cause);
 * }
 * ```
 *
 * @module
 */

// The manifest (`.toolsmith/tools.json`) and its image.
export {
  loadManifest,
  type LoadManifestOptions,
  type Manifest,
  type ManifestImage,
} from "./lib/manifest/manifest.ts";
export type { ImageSource } from "./lib/manifest/image_source.ts";
export { init, type InitOptions, type InitResult } from "./lib/hydrate/init.ts";
export {
  hydrate,
  type HydrateOptions,
  type HydrateResult,
} from "./lib/hydrate/hydrate.ts";
export {
  publish,
  type PublishOptions,
  type PublishResult,
} from "./lib/publish/publish.ts";

// Commands in the image.
export {
  openWorkspaceVm,
  runInVm,
  type RunInVmOptions,
  type WorkspaceVmOptions,
} from "./lib/run/workspace_vm.ts";
export { boot } from "./lib/vm/boot.ts";
export type { BootOptions } from "./lib/vm/boot_options.ts";
export type { BootedVm, Vm } from "./lib/vm/vm.ts";
export type { ExecOptions, ExecResult } from "./lib/guest/exec.ts";

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
  EventFields,
  ImageFields,
  OnEvent,
  ToolsmithEvent,
  UpdateSize,
} from "./lib/events.ts";
export type { Environment } from "./lib/environment.ts";
export { VERSION } from "./lib/version.ts";

if (import.meta.main) {
  const { main } = await import("./cli.ts");
  Deno.exit(await main(Deno.args));
}
