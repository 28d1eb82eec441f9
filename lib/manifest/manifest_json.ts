/**
 * The JSON form of a manifest, `.toolsmith/tools.json`, and how a new one is
 * created for an image.
 */
import { ToolsmithError } from "../errors.ts";
import { IMAGE_NAME_HINT, isValidImageName } from "./manifest.ts";
import type { SignatureRule } from "./signature_rule.ts";
import type { Sha256 } from "../system/digest.ts";

/** A manifest as stored in `tools.json`. */
export interface ManifestJson {
  /** The image that the tools run in. */
  image: {
    /** Image name, also the name of its cache directory. */
    name: string;
    /** Root filesystem archive for other programs; empty in a new manifest. */
    tarball: string;
    /** SHA-256 of the archive. */
    sha256: string;
    /** Source of the QCOW2 file. */
    qcow2: string;
    /** SHA-256 of the QCOW2 file. */
    qcow2_sha256: string;
    /** Who must have signed the image's artifact. */
    signature?: SignatureRule;
  };
  /** Maps tool names to paths in the guest. */
  tools: Record<string, string>;
  /** Names of the allowed tools; empty allows all. */
  operations: string[];
}

export interface PinnedImage {
  name: string;
  /** Image source, such as `oci://ghcr.io/owner/repo:1.0`. */
  source: string;
  /** SHA-256 of the QCOW2 file. */
  sha256: Sha256;
  /** Who must have signed the image's artifact. @default {undefined} unchanged */
  signature?: SignatureRule;
}

/** Creates the manifest of an image, with its fields in the documented order. */
export function createManifestJson(image: PinnedImage): ManifestJson {
  assertValidImageName(image.name);
  return {
    image: {
      name: image.name,
      tarball: "",
      sha256: "",
      qcow2: image.source,
      qcow2_sha256: image.sha256,
      ...image.signature && { signature: image.signature },
    },
    tools: {},
    operations: [],
  };
}

/** Rejects a name that is not a valid cache directory on every system. */
export function assertValidImageName(name: string): void {
  if (isValidImageName(name)) return;
  const message = `Cannot name the image "${name}": not a valid directory name`;
  throw new ToolsmithError("usage", message, { hint: IMAGE_NAME_HINT });
}

/** Formats a manifest as JSON, indented by two, with a final newline. */
export function formatManifestJson(manifest: ManifestJson): string {
  return JSON.stringify(manifest, null, 2) + "\n";
}

/**
 * Derives a default image name: the last part of a repository or file path, without
 * `.qcow2` or `.img`, as a valid directory name.
 */
export function imageNameFromPath(path: string): string {
  const last = path.split(/[/\\]/).at(-1) ?? "";
  return last.replace(/\.(?:qcow2|img)$/i, "").replace(/[^\w.-]+/g, "-")
    .replace(/^[.-]+|[.-]+$/g, "").slice(0, 128) || "image";
}
