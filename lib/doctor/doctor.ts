/** Checks whether this host can hydrate and run images. */
import { processEnvironment } from "../environment.ts";
import { loadManifest } from "../manifest/manifest.ts";
import { type DoctorOptions, type Finding, runChecks } from "./_checks.ts";

export type { DoctorOptions, Finding };

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
  const loading = loadManifest(manifest, { cwd, env });
  const loadedManifest = await loading.catch(() => undefined);
  return await runChecks({ ...options, env, loading, loadedManifest });
}
