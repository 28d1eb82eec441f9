/**
 * Requests a registry directly after `oras` failed, for what oras does not report:
 * the Retry-After of a busy registry, which oras ignores and retries six times; and
 * the authentication schemes, of which oras tries only the first. Corporate proxies
 * and servers often offer Negotiate before Basic or Bearer.
 */
import { ToolsmithError } from "../errors.ts";
import { RetryAfterError } from "../system/retry.ts";
import { withOptionalRequestTimeout } from "../system/stall_timer.ts";
import { RangesUnavailableError } from "../transfer/byte_source.ts";
import {
  type AuthChallenge,
  formatAuthSchemes,
  hasSupportedScheme,
} from "./_auth_challenges.ts";
import type { Artifact } from "./artifact.ts";
import { mayReceiveSecrets } from "./ghcr_credentials.ts";
import { registryEndpoint } from "./endpoints.ts";
import { fetchManifestFromEndpoint } from "./fetch_manifest.ts";
import { formatReference, type OciReference } from "./reference.ts";
import type { RegistryOptions } from "./registry_options.ts";

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
  return async <T>(
    reference: OciReference,
    work: () => Promise<T>,
    instead?: (artifact: Artifact) => T,
  ): Promise<T> => {
    const wasBusy = busyError !== undefined;
    if (!wasBusy) {
      try {
        return await work();
      } catch (error) {
        if (!isBusyRegistryError(error)) throw error;
        busyError = error;
      }
    }
    const failure = busyError;
    const endpoint = registryEndpoint(reference, options);
    const artifact = await fetchManifestFromEndpoint(endpoint, reference)
      .catch((error): undefined => {
        options.signal?.throwIfAborted();
        for (const found of [error, error.cause]) {
          if (found instanceof RetryAfterError) throw found;
          if (isBusyRegistryError(found)) throw failure;
        }
        // Other errors do not tell that the registry is busy.
      });
    busyError = undefined;
    if (artifact && instead) return instead(artifact);
    if (!wasBusy) throw failure;
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
  const offered = await findOfferedSchemes(orasError, reference, options);
  try {
    const endpoint = registryEndpoint(reference, options);
    const artifact = await fetchManifestFromEndpoint(endpoint, reference);
    return { ...artifact, fetchedWithoutOras: true };
  } catch (error) {
    options.signal?.throwIfAborted();
    if (!(error instanceof RangesUnavailableError)) throw error;
    const { message, cause } = error;
    const isOther = cause instanceof ToolsmithError &&
      cause.code !== "unauthorized";
    throw isOther ? cause : authSchemeError(reference, offered, message);
  }
}

/** Throws `orasError`, or if the offered schemes are its cause, an error that says so. */
export async function throwUnauthorized(
  orasError: unknown,
  reference: OciReference,
  options: RegistryOptions,
): Promise<never> {
  const offered = await findOfferedSchemes(orasError, reference, options);
  throw authSchemeError(reference, offered);
}

/**
 * Asks for the offered schemes, without credentials. Throws `orasError` if it is
 * another one than `unauthorized`, or if oras supports the first scheme.
 */
async function findOfferedSchemes(
  orasError: unknown,
  reference: OciReference,
  options: RegistryOptions,
): Promise<AuthChallenge[]> {
  const limited = withOptionalRequestTimeout(options);
  const endpoint = registryEndpoint(reference, limited);
  const { code } = orasError as { code?: string };
  const mayLogIn = mayReceiveSecrets(new URL(endpoint.baseUrl));
  if (code !== "unauthorized" || !mayLogIn) throw orasError;
  let offered: AuthChallenge[] = [];
  const onChallenge = (challenges: AuthChallenge[]) => {
    offered = challenges;
    throw orasError;
  };
  await fetchManifestFromEndpoint({ ...endpoint, onChallenge }, reference)
    .catch(() => options.signal?.throwIfAborted());
  const [first] = offered;
  if (!first || hasSupportedScheme(first)) throw orasError;
  return offered;
}

function authSchemeError(
  reference: OciReference,
  offered: AuthChallenge[],
  loginFailure?: string,
): ToolsmithError {
  let why = "oras tries only the first authentication scheme";
  let hint = "configure the registry to offer Basic or Bearer authentication";
  if (!offered.some(hasSupportedScheme)) {
    why = "only Basic and Bearer authentication is supported";
    hint += ", or set TOOLSMITH_MIRRORS to a mirror that needs no login";
  } else if (loginFailure === undefined) {
    hint += " first";
  } else {
    why = `the request with a login failed: ${loginFailure}`;
    hint = `store valid credentials: docker login ${reference.registry}`;
  }
  const name = formatReference(reference);
  const schemes = formatAuthSchemes(offered);
  const message =
    `Unauthorized: no access to ${name}: the registry offers ${schemes}, and ${why}`;
  return new ToolsmithError("unauthorized", message, { hint });
}
