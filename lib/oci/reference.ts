/**
 * Parses and formats registry references.
 *
 * Format: OCI Distribution Specification 1.1, "Pulling manifests", and the
 * `reference` grammar of the distribution project.
 */
import { ToolsmithError } from "../errors.ts";
import { type Digest, isSha256Digest } from "../system/digest.ts";

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

const REGISTRY_HOST_PATTERN =
  /^(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?$/;
const REPOSITORY_PATTERN =
  /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$/;
const TAG_PATTERN = /^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$/;

/**
 * Parses a registry reference, with or without `oci://`.
 *
 * @param text Such as `ghcr.io/owner/repo:1.0`. Without tag and digest, the
 * tag is `latest`.
 * @returns The parts of the reference.
 * @throws {ToolsmithError} `reference_invalid`, with the malformed part.
 */
export function parseReference(text: string): OciReference {
  const example = "write the reference as REGISTRY/OWNER/REPO:VERSION";
  const invalid = (why: string, hint = example) =>
    invalidReferenceError(text, why, hint);
  const bare = text.replace(/^oci:\/\//i, "");
  const slash = bare.indexOf("/");
  if (slash < 1) throw invalid("the reference has no repository");
  const registry = bare.slice(0, slash);
  if (!REGISTRY_HOST_PATTERN.test(registry)) {
    throw invalid(`"${redactUrlSecrets(registry)}" is not a registry host`);
  }
  const [named, digest, ...more] = bare.slice(slash + 1).split("@");
  if (more.length > 0 || (digest !== undefined && !isSha256Digest(digest))) {
    throw invalid(
      `"${[digest, ...more].join("@")}" is not a digest`,
      "write the digest as sha256: and 64 lower-case hexadecimal digits",
    );
  }
  // Everything after the first colon is the tag.
  const [repository, tag] = named.split(/:(.*)/s);
  if (!REPOSITORY_PATTERN.test(repository)) {
    const lower = repository.toLowerCase();
    const hint = REPOSITORY_PATTERN.test(lower)
      ? `write the repository in lower case: ${registry}/${lower}`
      : example;
    throw invalid(`"${repository}" is not a repository name`, hint);
  }
  if (tag !== undefined && !TAG_PATTERN.test(tag)) {
    throw invalid(
      `"${tag}" is not a tag`,
      "use a tag of at most 128 letters, digits, dots, dashes and underscores",
    );
  }
  const reference: OciReference = { kind: "oci", registry, repository };
  if (tag !== undefined) reference.tag = tag;
  if (digest !== undefined) reference.digest = digest;
  if (tag === undefined && digest === undefined) reference.tag = "latest";
  return reference;
}

/**
 * Formats a reference for `oras`, without a scheme.
 *
 * @param reference The reference; the digest has precedence over the tag.
 * @returns `registry/repository@digest` or `registry/repository:tag`.
 */
export function formatReference(reference: OciReference): string {
  const name = `${reference.registry}/${reference.repository}`;
  return reference.digest
    ? `${name}@${reference.digest}`
    : `${name}:${reference.tag ?? "latest"}`;
}

/**
 * Creates the error for a malformed reference or image source, with its secrets
 * redacted.
 */
export function invalidReferenceError(
  value: string,
  why: string,
  hint: string,
): ToolsmithError {
  const message = `Cannot use image source "${
    truncateText(redactUrlSecrets(value))
  }": ${truncateText(why)}`;
  return new ToolsmithError("reference_invalid", message, { hint });
}

/** Redacts the user info, which may be a token, and the query, which may be signed. */
function redactUrlSecrets(value: string): string {
  const scheme = value.indexOf("://");
  const query = scheme < 0 ? -1 : value.indexOf("?", scheme);
  const shown = query < 0 ? value : `${value.slice(0, query + 1)}…`;
  return shown.replace(/^([a-z][a-z0-9+.-]*:\/\/)?[^/@]*@/i, "$1…@");
}

function truncateText(text: string): string {
  return text.length > 300 ? `${text.slice(0, 300)}…` : text;
}
