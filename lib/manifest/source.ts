/**
 * Image sources: where a QCOW2 comes from, as written in a manifest.
 *
 * @module
 */
import { fromFileUrl, resolve } from "../path.ts";
import {
  formatReference,
  invalidReference,
  type OciReference,
  parseReference,
} from "../oci/reference.ts";

/** A file behind an `https://` address. */
export interface HttpsSource {
  /** The kind of source. */
  kind: "https";
  /** The address. */
  url: URL;
}

/** A file of this host. */
export interface FileSource {
  /** The kind of source. */
  kind: "file";
  /** Its absolute path. */
  path: string;
}

/** Where an image comes from. */
export type ImageSource = OciReference | HttpsSource | FileSource;

/**
 * Reads the source of an image.
 *
 * @param text `oci://registry/repository:tag`, the same with `@sha256:…`,
 * `https://…`, `file:…`, or a path.
 * @param dir The directory that a relative path starts from.
 * @returns The source, by kind.
 * @throws {ToolsmithError} `reference_invalid`.
 *
 * @example
 * ```ts
 * import { parseImageSource } from "./source.ts";
 *
 * const source = parseImageSource("oci://ghcr.io/owner/repo:1.0", "/srv");
 * if (source.kind !== "oci" || source.tag !== "1.0") throw new Error();
 * ```
 */
export function parseImageSource(text: string, dir: string): ImageSource {
  const scheme = /^([a-zA-Z][a-zA-Z0-9+.-]+):/.exec(text)?.[1].toLowerCase();
  if (scheme === "oci" && /^oci:\/\//i.test(text)) {
    return parseReference(text);
  }
  if (scheme === "https") {
    const url = URL.canParse(text) ? new URL(text) : undefined;
    if (!url) throw invalidReference(text, "not a URL", "check its spelling");
    if (url.username || url.password) {
      // The value holds a secret: it must not be in the message.
      throw invalidReference(
        `https://…@${url.host}${url.pathname}`,
        "a URL with a user name or password",
        "serve the image without credentials, or from a registry",
      );
    }
    return { kind: "https", url };
  }
  if (scheme === "file") return { kind: "file", path: filePath(text, dir) };
  if (scheme === "http" || /^[^/]*:\/\//.test(text)) {
    throw invalidReference(
      text,
      "not a source that Toolsmith reads",
      "use oci://, https://, file: or a path",
    );
  }
  if (text.trim() === "") {
    throw invalidReference(
      text,
      "empty",
      "name an image: oci://REGISTRY/REPO:TAG",
    );
  }
  return { kind: "file", path: resolve(dir, text) };
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

function filePath(text: string, dir: string): string {
  if (!/^file:\/\//i.test(text)) return resolve(dir, text.slice(5));
  if (!/^file:\/\/(?:localhost)?\//i.test(text)) {
    // In file://a/b, a is a host: the path would be /b.
    const hint = "use file:///PATH or a path";
    throw invalidReference(text, "a file of another host", hint);
  }
  try {
    return fromFileUrl(text);
  } catch (cause) {
    throw invalidReference(
      text,
      (cause as Error).message,
      "use file:///PATH or a path",
    );
  }
}
