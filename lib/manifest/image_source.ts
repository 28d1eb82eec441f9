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
  if (scheme === "oci" && /^oci:\/\//i.test(text)) {
    return parseReference(text);
  }
  if (scheme === "https") {
    const url = URL.canParse(text) ? new URL(text) : undefined;
    if (!url) {
      throw invalidReferenceError(
        text,
        "not a valid URL",
        "check the spelling of the URL",
      );
    }
    if (url.username || url.password) {
      // The message must not show the secret.
      throw invalidReferenceError(
        `https://…@${url.host}${url.pathname}`,
        "a URL with a user name or password",
        "remove the user name and password: Toolsmith sends none to an https:// image",
      );
    }
    return { kind: "https", url };
  }
  if (scheme === "file") {
    return { kind: "file", path: parseFileUrl(text, dir) };
  }
  if (scheme === "http" || /^[^/]*:\/\//.test(text)) {
    throw invalidReferenceError(
      text,
      "not a supported image source",
      "use oci://, https://, file: or a path",
    );
  }
  if (text.trim() === "") {
    throw invalidReferenceError(
      text,
      "empty",
      "pass an image source, such as oci://REGISTRY/REPO:TAG",
    );
  }
  return { kind: "file", path: resolve(dir, text) };
}

/** Formats a source for display, without query strings: they may be signed. */
export function formatImageSource(source: ImageSource): string {
  switch (source.kind) {
    case "oci":
      return `oci://${formatReference(source)}`;
    case "https":
      return `${source.url.origin}${source.url.pathname}`;
    case "file":
      return source.path;
  }
}

function parseFileUrl(text: string, dir: string): string {
  if (!/^file:\/\//i.test(text)) return resolve(dir, text.slice(5));
  if (!/^file:\/\/(?:localhost)?\//i.test(text)) {
    // In file://a/b, a is a host: the path would be /b.
    const hint = "use file:///ABSOLUTE/PATH, or a path without file:";
    throw invalidReferenceError(text, "a file on another host", hint);
  }
  try {
    return fromFileUrl(text);
  } catch (cause) {
    throw invalidReferenceError(
      text,
      (cause as Error).message,
      "use file:///ABSOLUTE/PATH, or a path without file:",
    );
  }
}
