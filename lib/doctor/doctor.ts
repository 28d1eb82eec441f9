/**
 * Says whether this host can do what Toolsmith is asked to do: a table of
 * checks.
 *
 * @module
 */
import { processEnvironment } from "../environment.ts";
import { toToolsmithError } from "../errors.ts";
import { loadManifest } from "../manifest/manifest.ts";
import type { RegistryOptions } from "../oci/registry.ts";
import { CHECKS, type Finding, type Host } from "./_checks.ts";

export type { Finding } from "./_checks.ts";

/** What {@linkcode doctor} takes. */
export interface DoctorOptions extends RegistryOptions {
  /** The manifest, if named. @default {undefined} */
  manifest?: string;
  /** The cache's directory. @default {undefined} `TOOLSMITH_CACHE`, or the workspace's */
  cache?: string;
  /** The directory to look for a manifest from. @default {Deno.cwd()} */
  cwd?: string;
}

/**
 * Runs every check. One that fails does not keep the others from running.
 *
 * Needs what `hydrate` and `boot` need.
 *
 * @param options Manifest, cache, registry.
 * @returns What was found, in order.
 * @throws The signal's reason when it is aborted.
 *
 * @example Is this host fit?
 * ```ts no-assert ignore
 * import { doctor } from "@fountain/toolsmith";
 *
 * const findings = await doctor();
 * const fit = findings.every(({ level }) => level !== "fail");
 * console.log(fit, findings);
 * ```
 */
export async function doctor(options: DoctorOptions = {}): Promise<Finding[]> {
  const { manifest, cwd, env = processEnvironment, signal } = options;
  const loaded = await loadManifest(manifest, { cwd, env })
    .catch(toToolsmithError);
  const host: Host = { ...options, env, loaded };
  const findings: Finding[] = [];
  for (const check of CHECKS) {
    const finding = await check(host);
    signal?.throwIfAborted();
    if (finding) findings.push(finding);
  }
  return findings;
}
