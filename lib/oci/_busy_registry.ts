/**
 * Registries that are busy: `oras` asks them six times, whatever they say. After
 * that Toolsmith asks by itself, once a try, and sees how long it is to wait.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { BusyError } from "../system/retry_after.ts";
import { registryPlace } from "./_places.ts";
import type { Artifact } from "./artifact.ts";
import { fetchManifestFrom } from "./mirror_manifest.ts";
import type { OciReference } from "./reference.ts";
import type { RegistryOptions } from "./registry.ts";

/** Runs `oras`, unless it has just found the registry busy. */
export type BusyGuard = <T>(
  reference: OciReference,
  work: () => Promise<T>,
  instead?: (artifact: Artifact) => T,
) => Promise<T>;

/**
 * Guards a registry that is busy: retries of `oras` and of its caller are added,
 * not multiplied.
 *
 * Needs `--allow-net` for the registry, and what reading credentials needs.
 *
 * @param registry How the registry is reached.
 * @returns Calls `work`. Where that finds the registry busy, and at each later
 * call until it is not, the manifest is asked for once instead: `instead` makes
 * the result of it. While that is refused too, it throws what oras has failed
 * with, or the pause that the registry asks for.
 */
export function busyGuard(registry: RegistryOptions): BusyGuard {
  /** What oras has failed with, as long as the registry is busy. */
  let refusal: unknown;

  /** Nothing is returned where it cannot be known whether it is busy. */
  async function ask(reference: OciReference): Promise<Artifact | undefined> {
    const place = registryPlace({ reference, registry, mirrors: [] });
    try {
      return await fetchManifestFrom(place, reference);
    } catch (error) {
      registry.signal?.throwIfAborted();
      for (const found of [error, (error as Error).cause]) {
        if (found instanceof BusyError) throw found;
        if (isBusy(found)) throw refusal;
      }
    }
  }

  return async (reference, work, instead) => {
    let failure: unknown;
    if (!refusal) {
      try {
        return await work();
      } catch (error) {
        if (!isBusy(error)) throw error;
        failure = refusal = error;
      }
    }
    const artifact = await ask(reference);
    refusal = undefined;
    if (artifact && instead) return instead(artifact);
    if (failure) throw failure;
    return await work();
  };
}

/** What oras has asked six times for. */
function isBusy(error: unknown): boolean {
  return error instanceof ToolsmithError &&
    (error.code === "rate_limited" || error.code === "registry_unavailable");
}
