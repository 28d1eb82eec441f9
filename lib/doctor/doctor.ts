/** Checks whether this host can hydrate and run images. */
import { processEnvironment } from "../environment.ts";
import { toToolsmithError } from "../errors.ts";
import { loadManifest } from "../manifest/manifest.ts";
import type { TrustOptions } from "../signature/verify_signature.ts";
import { type Finding, runChecks } from "./_checks.ts";

export type { Finding } from "./_checks.ts";

/** Options of {@linkcode doctor}. */
export interface DoctorOptions extends TrustOptions {
  /** The manifest, if named. @default {undefined} */
  manifest?: string;
  /** The cache's directory. @default {undefined} `TOOLSMITH_CACHE`, or the workspace's */
  cache?: string;
  /** Where the search for a manifest starts. @default {Deno.cwd()} */
  cwd?: string;
}

/**
 * Checks manifest, oras, credentials, registry, cache, disk space and QEMU. A failed
 * check does not keep the others from running.
 *
 * Needs the permissions of `hydrate` and `boot`.
 *
 * @param options Manifest, cache, registry.
 * @returns The findings, in a fixed order.
 * @throws The signal's reason when it is aborted.
 *
 * @example Check this host
 * ```ts no-run
 * import { doctor } from "@fountain/toolsmith";
 *
 * const findings = await doctor();
 * const fit = findings.every(({ level }) => level !== "fail");
 * console.log(fit, findings);
 * ```
 */
export async function doctor(options: DoctorOptions = {}): Promise<Finding[]> {
  const { manifest, cwd, env = processEnvironment } = options;
  const manifestOrError = await loadManifest(manifest, { cwd, env })
    .catch(toToolsmithError);
  return await runChecks({ ...options, env, manifestOrError });
}
