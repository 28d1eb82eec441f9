/**
 * References, registries and manifests, and the types of options and results of
 * publishing and downloading images.
 *
 * @example Parse and format a reference
 * ```ts no-run
 * import { formatReference, parseReference } from "@fountain/toolsmith/oci";
 *
 * const reference = parseReference("oci://ghcr.io/owner/repo:1.0");
 * if (formatReference(reference) !== "ghcr.io/owner/repo:1.0") throw "";
 * ```
 *
 * @example Publish an image with an extra file from GitHub Actions
 * ```ts no-run
 * import { publish } from "@fountain/toolsmith";
 * import {
 *   formatManifestJson,
 *   parseExtraFile,
 *   parseManifest,
 *   reportToGithubActions,
 * } from "@fountain/toolsmith/oci";
 *
 * const result = await publish(
 *   "dist/image.qcow2",
 *   "ghcr.io/owner/repo:1.0",
 *   { extras: [parseExtraFile("sbom.json:application/json")] },
 * );
 * await reportToGithubActions(result);
 * const text = formatManifestJson(result.manifest);
 * console.log(text, parseManifest(text, "tools.json").image.source);
 * ```
 *
 * @module
 */
export {
  formatReference,
  type OciReference,
  parseReference,
} from "./oci/reference.ts";
export type { RegistryOptions } from "./oci/registry_options.ts";
export type { FileSource, HttpsSource } from "./manifest/image_source.ts";
export { parseManifest } from "./manifest/manifest.ts";
export {
  formatManifestJson,
  type ManifestJson,
} from "./manifest/manifest_json.ts";
export type {
  IdentityRule,
  SignatureRule,
  VerifiedSignature,
} from "./manifest/signature_rule.ts";
export type { TrustOptions } from "./signature/verify_signature.ts";
export type { ManifestWriteResult } from "./manifest/write_manifest.ts";
export type { FetchOptions } from "./hydrate/fetch_image.ts";
export { type ExtraFile, parseExtraFile } from "./publish/artifact_files.ts";
export type { PollOptions } from "./publish/verify.ts";
export {
  type ActionsReportOptions,
  reportToGithubActions,
} from "./publish/github_actions.ts";
export type { Digest, Sha256 } from "./system/digest.ts";
