/**
 * Image sources: where a QCOW2 comes from, as written in a manifest.
 *
 * The grammar of registry references is that of the OCI Distribution
 * Specification 1.1, "Pulling manifests", and of the `reference` grammar that
 * registries share.
 *
 * @module
 */
import { fromFileUrl, resolve } from "@std/path";
import { ToolsmithError } from "./errors.ts";

/** An artifact in an OCI registry. */
export interface OciReference {
  /** Tells the sources apart. */
  kind: "oci";
  /** Host, and port if any, such as `ghcr.io`. */
  registry: string;
  /** Path of the repository, such as `owner/repo`. */
  repository: string;
  /** The tag, if any. */
  tag?: string;
  /** The manifest's digest, `sha256:` and hex, if any. */
  digest?: string;
}

/** A file behind an `https://` address. */
export interface HttpsSource {
  /** Tells the sources apart. */
  kind: "https";
  /** The address. */
  url: URL;
}

/** A file of this host. */
export interface FileSource {
  /** Tells the sources apart. */
  kind: "file";
  /** Its absolute path. */
  path: string;
}

/** Where an image comes from. */
export type ImageSource = OciReference | HttpsSource | FileSource;

const HOST =
  /^(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?$/;
const REPOSITORY =
  /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$/;
const TAG = /^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$/;
const DIGEST = /^sha256:[0-9a-f]{64}$/;

/**
 * Reads the source of an image.
 *
 * @param text `oci://registry/repository:tag`, the same with `@sha256:…`,
 * `https://…`, `file:…`, or a path.
 * @param folder The folder that a relative path starts from.
 * @returns The source, by kind.
 * @throws {ToolsmithError} `reference_invalid`.
 *
 * @example
 * ```ts
 * import { parseImageSource } from "./reference.ts";
 *
 * const source = parseImageSource("oci://ghcr.io/owner/repo:1.0", "/srv");
 * if (source.kind !== "oci" || source.tag !== "1.0") throw new Error();
 * ```
 */
export function parseImageSource(text: string, folder: string): ImageSource {
  const scheme = /^([a-zA-Z][a-zA-Z0-9+.-]+):/.exec(text)?.[1].toLowerCase();
  if (scheme === "oci" && /^oci:\/\//i.test(text)) {
    return parseReference(text);
  }
  if (scheme === "https") {
    const url = URL.canParse(text) ? new URL(text) : undefined;
    if (!url) throw invalid(text, "not a URL", "check its spelling");
    if (url.username || url.password) {
      // The value holds a secret: it must not be in the message.
      throw invalid(
        `https://…@${url.host}${url.pathname}`,
        "a URL with a user name or password",
        "serve the image without credentials, or from a registry",
      );
    }
    return { kind: "https", url };
  }
  if (scheme === "file") return { kind: "file", path: filePath(text, folder) };
  if (scheme === "http" || text.includes("://")) {
    throw invalid(
      text,
      "not a source that Toolsmith reads",
      "use oci://, https://, file: or a path",
    );
  }
  if (text.trim() === "") {
    throw invalid(text, "empty", "name an image: oci://REGISTRY/REPO:TAG");
  }
  return { kind: "file", path: resolve(folder, text) };
}

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
  if (slash < 1) throw invalid(text, "it names no repository", example);
  const registry = bare.slice(0, slash);
  if (!HOST.test(registry)) {
    const shown = withoutSecrets(registry);
    throw invalid(text, `"${shown}" is not a registry host`, example);
  }
  const [named, digest, ...more] = bare.slice(slash + 1).split("@");
  if (more.length > 0 || (digest !== undefined && !DIGEST.test(digest))) {
    throw invalid(
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
    throw invalid(
      text,
      `"${repository}" is not a repository name`,
      REPOSITORY.test(lower)
        ? `repositories are lower case: ${registry}/${lower}`
        : example,
    );
  }
  if (tag !== undefined && !TAG.test(tag)) {
    throw invalid(
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
 * Writes a source for a person; query strings, which may be signed, are cut.
 *
 * @param source The source.
 * @returns Such as `oci://ghcr.io/owner/repo:1.0`.
 */
export function formatSource(source: ImageSource): string {
  switch (source.kind) {
    case "oci":
      return `oci://${formatReference(source)}`;
    case "https":
      return `${source.url.origin}${source.url.pathname}`;
    case "file":
      return source.path;
  }
}

/**
 * Tells whether a registry is this very host, which serves plain HTTP.
 *
 * @param registry Host, and port if any.
 * @returns `true` for `localhost`, 127.0.0.0/8 and `[::1]`.
 */
export function isLoopback(registry: string): boolean {
  const host = registry.replace(/:\d+$/, "").toLowerCase();
  return host === "localhost" || host === "[::1]" ||
    /^127(?:\.\d{1,3}){3}$/.test(host);
}

function filePath(text: string, folder: string): string {
  if (!/^file:\/\//i.test(text)) return resolve(folder, text.slice(5));
  if (!/^file:\/\/(?:localhost)?\//i.test(text)) {
    // In file://a/b, a is a host: the path would be /b.
    const hint = "use file:///PATH or a path";
    throw invalid(text, "a file of another host", hint);
  }
  try {
    return fromFileUrl(text);
  } catch (cause) {
    throw invalid(text, (cause as Error).message, "use file:///PATH or a path");
  }
}

function invalid(value: string, why: string, hint: string): ToolsmithError {
  return new ToolsmithError(
    "reference_invalid",
    `Cannot use image source "${withoutSecrets(value)}": ${why}`,
    { hint },
  );
}

/** A user, who may be a token, and a query, which may be signed, are not shown. */
function withoutSecrets(value: string): string {
  return value
    .replace(/^([a-z][a-z0-9+.-]*:\/\/)?[^/@]*@/i, "$1…@")
    .replace(/(:\/\/[^?]*\?).*/s, "$1…");
}
