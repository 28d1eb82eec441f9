/**
 * Registry references, as a person writes them.
 *
 * The grammar is that of the OCI Distribution
 * Specification 1.1, "Pulling manifests", and of the `reference` grammar that
 * registries share.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { type Digest, isDigest } from "../system/digest.ts";

/** An artifact in an OCI registry. */
export interface OciReference {
  /** The kind of source. */
  kind: "oci";
  /** Host, and port if any, such as `ghcr.io`. */
  registry: string;
  /** Path of the repository, such as `owner/repo`. */
  repository: string;
  /** The tag, if any. */
  tag?: string;
  /** The manifest's digest, if any. */
  digest?: Digest;
}

const HOST =
  /^(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?$/;
const REPOSITORY =
  /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$/;
const TAG = /^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$/;

/**
 * Reads a registry reference, with or without `oci://`.
 *
 * @param text Such as `ghcr.io/owner/repo:1.0`. Without tag and digest, the
 * tag is `latest`.
 * @returns Its parts.
 * @throws {ToolsmithError} `reference_invalid`, and says which part is wrong.
 */
export function parseReference(text: string): OciReference {
  const bare = text.replace(/^oci:\/\//i, "");
  const slash = bare.indexOf("/");
  const example = "write it as REGISTRY/OWNER/REPO:VERSION";
  if (slash < 1) {
    throw invalidReference(text, "it names no repository", example);
  }
  const registry = bare.slice(0, slash);
  if (!HOST.test(registry)) {
    const shown = withoutSecrets(registry);
    throw invalidReference(text, `"${shown}" is not a registry host`, example);
  }
  const [named, digest, ...more] = bare.slice(slash + 1).split("@");
  if (more.length > 0 || (digest !== undefined && !isDigest(digest))) {
    throw invalidReference(
      text,
      `"${[digest, ...more].join("@")}" is not a digest`,
      "a digest is sha256: and 64 digits of lower-case hex",
    );
  }
  const colon = named.indexOf(":");
  const repository = colon < 0 ? named : named.slice(0, colon);
  const tag = colon < 0 ? undefined : named.slice(colon + 1);
  if (!REPOSITORY.test(repository)) {
    const lower = repository.toLowerCase();
    throw invalidReference(
      text,
      `"${repository}" is not a repository name`,
      REPOSITORY.test(lower)
        ? `repositories are lower case: ${registry}/${lower}`
        : example,
    );
  }
  if (tag !== undefined && !TAG.test(tag)) {
    throw invalidReference(
      text,
      `"${tag}" is not a tag`,
      "a tag has letters, digits, dots, dashes and underscores, 128 at most",
    );
  }
  const reference: OciReference = { kind: "oci", registry, repository };
  if (tag !== undefined) reference.tag = tag;
  if (digest !== undefined) reference.digest = digest;
  if (tag === undefined && digest === undefined) reference.tag = "latest";
  return reference;
}

/**
 * Writes a reference as `oras` takes it: without a scheme.
 *
 * @param reference The reference; its digest wins over its tag.
 * @returns `registry/repository@digest` or `registry/repository:tag`.
 */
export function formatReference(reference: OciReference): string {
  const name = `${reference.registry}/${reference.repository}`;
  return reference.digest
    ? `${name}@${reference.digest}`
    : `${name}:${reference.tag ?? "latest"}`;
}

/**
 * The error of a reference or source that cannot be used; secrets that it may
 * hold are not shown.
 *
 * @param value What was given.
 * @param why What is wrong with it.
 * @param hint What to write instead.
 */
export function invalidReference(
  value: string,
  why: string,
  hint: string,
): ToolsmithError {
  return new ToolsmithError(
    "reference_invalid",
    `Cannot use image source "${cut(withoutSecrets(value))}": ${cut(why)}`,
    { hint },
  );
}

/** A user, who may be a token, and a query, which may be signed, are not shown. */
function withoutSecrets(value: string): string {
  const scheme = value.indexOf("://");
  const query = scheme < 0 ? -1 : value.indexOf("?", scheme);
  const shown = query < 0 ? value : `${value.slice(0, query + 1)}…`;
  return shown.replace(/^([a-z][a-z0-9+.-]*:\/\/)?[^/@]*@/i, "$1…@");
}

function cut(text: string): string {
  return text.length > 300 ? `${text.slice(0, 300)}…` : text;
}
