/**
 * Requests a registry directly after `oras` failed, for what oras does not report:
 * the Retry-After of a busy registry, which oras ignores and retries six times; and
 * the authentication schemes, of which oras tries only the first. Corporate proxies
 * and servers often offer Negotiate before Basic or Bearer.
 */
import { ToolsmithError } from "../errors.ts";
import { RetryAfterError } from "../system/retry.ts";
import {
  startStallTimer,
  withOptionalRequestTimeout,
} from "../system/stall_timer.ts";
import { RangesUnavailableError } from "../transfer/byte_source.ts";
import {
  type AuthChallenge,
  formatAuthSchemes,
  hasSupportedScheme,
  parseAuthChallenges,
} from "./_auth_challenges.ts";
import type { Artifact } from "./artifact.ts";
import { mayReceiveSecrets } from "./ghcr_credentials.ts";
import { registryEndpoint, repositoryClient } from "./endpoints.ts";
import {
  fetchManifestFromEndpoint,
  manifestApiPath,
} from "./fetch_manifest.ts";
import { formatReference, type OciReference } from "./reference.ts";
import type { RegistryOptions } from "./registry_options.ts";

const AUTH_SCHEME_NOT_FIRST_EXPLANATION = {
  why: "oras tries only the first authentication scheme",
  hint: "configure the registry to offer Basic or Bearer authentication first",
};
const NO_SUPPORTED_AUTH_SCHEME_EXPLANATION = {
  why: "only Basic and Bearer authentication is supported",
  hint:
    "configure the registry to offer Basic or Bearer authentication, or set TOOLSMITH_MIRRORS to a mirror that needs no login",
};

/**
 * Creates a guard that runs `oras` only while the registry is not busy, so that the
 * retries of oras and of its caller do not multiply.
 *
 * The guard calls `work`. After a busy response, and at each later call until the
 * registry has recovered, it requests the manifest once, and `instead` converts that to
 * the result. If this fails too, it throws oras's error, or the one with the registry's
 * Retry-After.
 */
export function busyRegistryGuard(options: RegistryOptions) {
  /** The error of oras, while the registry is busy. */
  let busyError: unknown;

  /** Returns `undefined` after errors that do not tell whether it is busy. */
  async function probe(reference: OciReference): Promise<Artifact | undefined> {
    try {
      const endpoint = registryEndpoint(reference, options);
      return await fetchManifestFromEndpoint(endpoint, reference);
    } catch (error) {
      options.signal?.throwIfAborted();
      for (const found of [error, (error as Error).cause]) {
        if (found instanceof RetryAfterError) throw found;
        if (isBusyRegistryError(found)) throw busyError;
      }
    }
  }

  return async <T>(
    reference: OciReference,
    work: () => Promise<T>,
    instead?: (artifact: Artifact) => T,
  ): Promise<T> => {
    let failure: unknown;
    if (!busyError) {
      try {
        return await work();
      } catch (error) {
        if (!isBusyRegistryError(error)) throw error;
        failure = busyError = error;
      }
    }
    const artifact = await probe(reference);
    busyError = undefined;
    if (artifact && instead) return instead(artifact);
    if (failure) throw failure;
    return await work();
  };
}

/** Returns true for the errors that oras has already retried six times. */
function isBusyRegistryError(error: unknown): boolean {
  return error instanceof ToolsmithError &&
    (error.code === "rate_limited" || error.code === "registry_unavailable");
}

/**
 * Fetches a manifest without `oras`, if oras does not support the first scheme that the
 * registry offers. Throws `orasError` if another scheme would not help; else
 * `unauthorized` with the offered schemes, or another error of the registry.
 */
export async function fetchManifestWithoutOras(
  orasError: unknown,
  reference: OciReference,
  options: RegistryOptions,
): Promise<Artifact> {
  const offered = await probeAuthSchemes(orasError, reference, options);
  if (!offered) throw orasError;
  if (!offered.some(hasSupportedScheme)) {
    throw authSchemeError(reference, offered);
  }
  try {
    const endpoint = registryEndpoint(reference, options);
    const artifact = await fetchManifestFromEndpoint(endpoint, reference);
    return { ...artifact, fetchedWithoutOras: true };
  } catch (error) {
    options.signal?.throwIfAborted();
    if (!(error instanceof RangesUnavailableError)) throw error;
    const { message, cause } = error;
    if (cause instanceof ToolsmithError && cause.code !== "unauthorized") {
      throw cause;
    }
    throw authSchemeError(reference, offered, {
      why: `the request with a login failed: ${message}`,
      hint: `store valid credentials: docker login ${reference.registry}`,
    });
  }
}

/**
 * Requests the registry's authentication schemes to explain why `oras` failed. Returns
 * the error to throw: `orasError` itself if the schemes are not the cause.
 */
export async function diagnoseUnauthorized(
  orasError: unknown,
  reference: OciReference,
  options: RegistryOptions,
): Promise<unknown> {
  const offered = await probeAuthSchemes(orasError, reference, options);
  return offered ? authSchemeError(reference, offered) : orasError;
}

/** Sends no credentials; returns `undefined` if oras supports the first scheme. */
async function probeAuthSchemes(
  orasError: unknown,
  reference: OciReference,
  options: RegistryOptions,
): Promise<AuthChallenge[] | undefined> {
  const endpoint = registryEndpoint(reference, options);
  const { baseUrl, host, repository } = endpoint;
  const isUnauthorized = orasError instanceof ToolsmithError &&
    orasError.code === "unauthorized";
  if (!isUnauthorized || !mayReceiveSecrets(new URL(baseUrl))) return undefined;
  const limits = withOptionalRequestTimeout(options);
  using timer = startStallTimer(`download ${host}`, limits);
  try {
    using client = await repositoryClient(endpoint);
    const path = `${repository}/${manifestApiPath(reference)}`;
    const url = new URL(`${baseUrl}/${path}`);
    const request = { signal: timer.signal };
    const { status, headers, body } = await client.getAnonymously(url, request);
    await body?.cancel();
    if (status !== 401) return undefined;
    const offered = parseAuthChallenges(headers.get("www-authenticate") ?? "");
    const [first] = offered;
    return first && !hasSupportedScheme(first) ? offered : undefined;
  } catch {
    options.signal?.throwIfAborted();
    return undefined;
  }
}

function authSchemeError(
  reference: OciReference,
  offered: AuthChallenge[],
  { why, hint } = offered.some(hasSupportedScheme)
    ? AUTH_SCHEME_NOT_FIRST_EXPLANATION
    : NO_SUPPORTED_AUTH_SCHEME_EXPLANATION,
): ToolsmithError {
  const name = formatReference(reference);
  const schemes = formatAuthSchemes(offered);
  const message =
    `Unauthorized: no access to ${name}: the registry offers ${schemes}, and ${why}`;
  return new ToolsmithError("unauthorized", message, { hint });
}
