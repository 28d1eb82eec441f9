/** Parses and formats image sources: the `image.qcow2` field of a manifest. */
import { fromFileUrl, resolve } from "../path.ts";
import {
  formatReference,
  invalidReferenceError,
  type OciReference,
  parseReference,
} from "../oci/reference.ts";

/** A file on an HTTPS server. */
export interface HttpsSource {
  /** The kind of source. */
  kind: "https";
  /** URL of the file. */
  url: URL;
}

/** A local file. */
export interface FileSource {
  /** The kind of source. */
  kind: "file";
  /** Absolute path. */
  path: string;
}

/** An image source: registry, HTTPS server or local file. */
export type ImageSource = OciReference | HttpsSource | FileSource;

/**
 * Parses an image source: `oci://registry/repository:tag`, the same with `@sha256:…`,
 * `https://…`, `file:…`, or a path. Relative paths start from `dir`.
 */
export function parseImageSource(text: string, dir: string): ImageSource {
  const scheme = /^([a-zA-Z][a-zA-Z0-9+.-]+):/.exec(text)?.[1].toLowerCase();
  if (/^oci:\/\//i.test(text)) return parseReference(text);
  if (scheme === "https") return { kind: "https", url: parseHttpsUrl(text) };
  if (scheme === "file") {
    return { kind: "file", path: parseFileUrl(text, dir) };
  }
  if (scheme === "http" || /^[^/]*:\/\//.test(text)) {
    const hint = "use oci://, https://, file: or a path";
    throw invalidReferenceError(text, "not a supported image source", hint);
  }
  if (text.trim() === "") {
    const hint = "pass an image source, such as oci://REGISTRY/REPO:TAG";
    throw invalidReferenceError(text, "empty", hint);
  }
  return { kind: "file", path: resolve(dir, text) };
}

/** Formats a source for display, without query strings: they may be signed. */
export function formatImageSource(source: ImageSource): string {
  if (source.kind === "file") return source.path;
  if (source.kind === "oci") return `oci://${formatReference(source)}`;
  return `${source.url.origin}${source.url.pathname}`;
}

function parseHttpsUrl(text: string): URL {
  const url = URL.parse(text);
  if (!url) {
    const hint = "check the spelling of the URL";
    throw invalidReferenceError(text, "not a valid URL", hint);
  }
  if (!url.username && !url.password) return url;
  // The message must not show the secret.
  throw invalidReferenceError(
    `https://…@${url.host}${url.pathname}`,
    "a URL with a user name or password",
    "remove the user name and password: Toolsmith sends none to an https:// image",
  );
}

function parseFileUrl(text: string, dir: string): string {
  if (!/^file:\/\//i.test(text)) return resolve(dir, text.slice(5));
  const hint = "use file:///ABSOLUTE/PATH, or a path without file:";
  if (!/^file:\/\/(?:localhost)?\//i.test(text)) {
    // In file://a/b, a is a host: the path would be /b.
    throw invalidReferenceError(text, "a file on another host", hint);
  }
  try {
    return fromFileUrl(text);
  } catch (cause) {
    throw invalidReferenceError(text, (cause as Error).message, hint);
  }
}
