/**
 * The manifest that a consumer of an image needs, `.toolsmith/tools.json`, as
 * it is first written.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { isImageName } from "./manifest.ts";
import type { Sha256 } from "../system/digest.ts";

/** A manifest in the form in which it is stored. */
export interface ConsumerManifest {
  /** The image. */
  image: {
    /** Its name, and its directory's name in the cache. */
    name: string;
    /** A root filesystem archive that other programs use; none here. */
    tarball: string;
    /** SHA-256 of that archive. */
    sha256: string;
    /** Where the QCOW2 comes from. */
    qcow2: string;
    /** SHA-256 of the QCOW2 file. */
    qcow2_sha256: string;
  };
  /** Names of tools, and their paths in the guest. */
  tools: Record<string, string>;
  /** Names of the tools that may be run; empty allows all. */
  operations: string[];
}

/** An image that a manifest is to name. */
export interface NewImage {
  /** Its name. */
  name: string;
  /** Where it comes from, such as `oci://ghcr.io/owner/repo:1.0`. */
  source: string;
  /** SHA-256 of the QCOW2 file. */
  sha256: Sha256;
}

/**
 * Makes the manifest of an image.
 *
 * @param image The image.
 * @returns The manifest, with its fields in the usual order.
 * @throws {ToolsmithError} `usage` when the name cannot be a directory.
 */
export function consumerManifest(image: NewImage): ConsumerManifest {
  assertImageName(image.name);
  return {
    image: {
      name: image.name,
      tarball: "",
      sha256: "",
      qcow2: image.source,
      qcow2_sha256: image.sha256,
    },
    tools: {},
    operations: [],
  };
}

/**
 * Refuses a name that cannot be a directory of the cache on every system.
 *
 * @param name The image's name.
 * @throws {ToolsmithError} `usage`.
 */
export function assertImageName(name: string): void {
  if (isImageName(name)) return;
  throw new ToolsmithError(
    "usage",
    `Cannot name the image "${name}": it is not a plain directory name`,
    { hint: "use letters, digits, dashes and dots, and begin with no dot" },
  );
}

/**
 * Writes a manifest as text, to be stored or pasted.
 *
 * @param manifest The manifest.
 * @returns JSON with an indentation of two, and a final newline.
 */
export function formatManifest(manifest: ConsumerManifest): string {
  return JSON.stringify(manifest, null, 2) + "\n";
}

/**
 * The name of an image for which none is given.
 *
 * @param path A repository's name, or a file's.
 * @returns Its last part, without `.qcow2` or `.img`, as a plain directory name.
 */
export function imageNameOf(path: string): string {
  const last = path.split(/[/\\]/).at(-1) ?? "";
  return last.replace(/\.(?:qcow2|img)$/i, "").replace(/[^\w.-]+/g, "-")
    .replace(/^[.-]+|[.-]+$/g, "").slice(0, 128) || "image";
}
