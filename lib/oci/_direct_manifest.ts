/**
 * Registries where `oras` cannot log in: it looks at the first scheme that is
 * offered alone, and knows Basic and Bearer. A proxy or a server of a company
 * often offers Negotiate before them.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { watchStall } from "../system/http_stall.ts";
import {
  type Challenge,
  isKnownScheme,
  parseChallenges,
  schemesOf,
} from "./_challenges.ts";
import {
  openPlace,
  type Place,
  PROBE_MS,
  registryPlace,
  STALL_MS,
} from "./_places.ts";
import { RangesUnavailable } from "./_ranges_unavailable.ts";
import type { Artifact } from "./artifact.ts";
import { mayCarrySecrets } from "./credentials.ts";
import { fetchManifestFrom, manifestPath } from "./mirror_manifest.ts";
import { formatReference, type OciReference } from "./reference.ts";
import type { RegistryOptions } from "./registry.ts";

/** Basic or Bearer is offered, but not first. */
const LATER = {
  why: "oras tries the first alone",
  hint: "let the registry offer Basic or Bearer first",
};
const NONE = {
  why: "only Basic and Bearer are supported",
  hint:
    "let the registry offer Basic or Bearer, or name a mirror that needs no login: TOOLSMITH_MIRRORS",
};

/**
 * Reads a manifest without `oras`, where the registry has refused that for its
 * first scheme.
 *
 * Needs `--allow-net` for the registry, and what reading credentials needs.
 *
 * @param refusal What oras has failed with.
 * @param reference What it was asked for.
 * @param registry How the registry is reached.
 * @returns The artifact, marked as direct.
 * @throws The refusal, where another scheme would not help; else `unauthorized`
 * with the schemes, and those of a registry.
 */
export async function fetchDirectly(
  refusal: unknown,
  reference: OciReference,
  registry: RegistryOptions,
): Promise<Artifact> {
  const place = registryPlace({ reference, registry, mirrors: [] });
  const offered = await unknownToOras(refusal, reference, place);
  if (!offered) throw refusal;
  if (!offered.some(isKnownScheme)) throw schemeError(reference, offered);
  try {
    const artifact = await fetchManifestFrom(place, reference);
    return { ...artifact, direct: true };
  } catch (error) {
    registry.signal?.throwIfAborted();
    if (!(error instanceof RangesUnavailable)) throw error;
    const { message, cause } = error;
    const known = cause instanceof ToolsmithError ? cause : undefined;
    if (known && known.code !== "unauthorized") throw known;
    throw schemeError(reference, offered, {
      why: `the login failed: ${message}`,
      hint: `store the right login: docker login ${reference.registry}`,
    });
  }
}

/**
 * Says why a registry has refused `oras`, where that is its first scheme.
 *
 * @param refusal What oras has failed with.
 * @param reference What it was asked for.
 * @param registry How the registry is reached.
 * @returns The error to throw: the refusal itself, if there is no more to say.
 */
export async function explainRefusal(
  refusal: unknown,
  reference: OciReference,
  registry: RegistryOptions,
): Promise<unknown> {
  const place = registryPlace({ reference, registry, mirrors: [] });
  const offered = await unknownToOras(refusal, reference, place);
  return offered ? schemeError(reference, offered) : refusal;
}

/** Asks as nobody; what cannot be asked is not known. */
async function unknownToOras(
  refusal: unknown,
  reference: OciReference,
  place: Place,
): Promise<Challenge[] | undefined> {
  const refused = refusal instanceof ToolsmithError &&
    refusal.code === "unauthorized";
  if (!refused || !mayCarrySecrets(new URL(place.base))) return undefined;
  const { signal, stallTimeoutMs = STALL_MS } = place.registry;
  const limitMs = Math.min(stallTimeoutMs, PROBE_MS);
  using watch = watchStall(place.host, limitMs, signal);
  try {
    using registry = await openPlace(place, 1);
    const url = `${place.base}/${place.repository}/${manifestPath(reference)}`;
    const { status, headers, body } = await registry
      .getDirect(new URL(url), { headers: {}, signal: watch.signal });
    await body?.cancel();
    if (status !== 401) return undefined;
    const offered = parseChallenges(headers.get("www-authenticate") ?? "");
    const [first] = offered;
    return first && !isKnownScheme(first) ? offered : undefined;
  } catch {
    signal?.throwIfAborted();
    return undefined;
  }
}

function schemeError(
  reference: OciReference,
  offered: Challenge[],
  { why, hint } = offered.some(isKnownScheme) ? LATER : NONE,
): ToolsmithError {
  const name = formatReference(reference);
  return new ToolsmithError(
    "unauthorized",
    `Unauthorized: no access to ${name}: the registry offers ${
      schemesOf(offered)
    }, and ${why}`,
    { hint },
  );
}
