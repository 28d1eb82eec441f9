/**
 * The contents of an OCI artifact, as its manifest describes them, and the selection
 * of the image layer.
 *
 * Formats: OCI Image Specification 1.1, "Image Manifest" and "Content
 * Descriptors"; the titles are `org.opencontainers.image.title` annotations.
 */
import { type Digest, parseSha256, type Sha256 } from "../system/digest.ts";
import { ToolsmithError } from "../errors.ts";
import { foldNameCase, isPortableFileName } from "../system/portable_name.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import { formatReference, type OciReference } from "./reference.ts";

const MAX_TITLE_LENGTH = 512;
const MAX_TITLE_SEGMENTS = 16;

/** Media type of a QCOW2 layer, and the artifact type that goes with it. */
export const QCOW2_MEDIA_TYPE = "application/vnd.fountain.toolsmith.qcow2";

export const TITLE_ANNOTATION = "org.opencontainers.image.title";

/** The annotation that makes oras unpack a layer. */
export const UNPACK_ANNOTATION = "io.deis.oras.content.unpack";

/** Manifests whose files are in `config` and `layers`. */
export const IMAGE_MANIFEST_MEDIA_TYPES = [
  "application/vnd.oci.image.manifest.v1+json",
  "application/vnd.docker.distribution.manifest.v2+json",
];
export const INDEX_MEDIA_TYPES = [
  "application/vnd.oci.image.index.v1+json",
  "application/vnd.docker.distribution.manifest.list.v2+json",
];
/** oras also pulls all files that a layer of such a type names. */
const MANIFEST_MEDIA_TYPES = new Set([
  ...[...IMAGE_MANIFEST_MEDIA_TYPES, ...INDEX_MEDIA_TYPES],
  "application/vnd.oci.artifact.manifest.v1+json",
]);

/** A layer of an artifact. */
export interface Descriptor {
  mediaType: string;
  /** Digest of the bytes, with its algorithm. */
  digest: string;
  size: number;
  /** The title is the file's path. */
  annotations?: Record<string, string> | null;
}

export interface PlatformManifest {
  digest: Digest;
  /** The architecture, in OCI's terms: `amd64`, `arm64`. */
  architecture: string;
  /** The operating system, in OCI's terms, if declared: `linux`. */
  os?: string;
  /** The variant of the architecture, if declared: `v8`. */
  variant?: string;
}

/** An artifact: the parsed manifest of a registry. */
export interface Artifact {
  /** The reference by digest, so that later requests get the same manifest. */
  reference: OciReference;
  digest: Digest;
  /** Empty for an index. */
  layers: Descriptor[];
  /** Set for an index. */
  manifests?: PlatformManifest[];
  /** The architecture of the image, in OCI's terms, if declared. */
  architecture?: string;
  /** The config; with a title, oras pulls it like a layer. */
  config?: Descriptor;
  /** The manifest that this one refers to; with a title, oras may write it. */
  subject?: Descriptor;
  /** Set if oras cannot log in to the registry, and did not fetch the manifest. */
  fetchedWithoutOras?: true;
}

export interface ImageLayer {
  /** Path in the artifact, with `/` between directories. */
  title: string;
  size: number;
  /** The registry's digest, with its algorithm. */
  digest: string;
  /** The expected SHA-256 of the file. */
  sha256: Sha256;
}

/**
 * Selects the image layer with the SHA-256 `expected`, or the only one, and rejects an
 * artifact that is unsafe to pull, before any download. If the layer's digest is not a
 * SHA-256, the caller must hash the file.
 */
export function selectImageLayer(
  artifact: Artifact,
  expected?: Sha256,
): ImageLayer {
  refuseUnsafeLayers(artifact);
  const name = formatReference(artifact.reference);
  const images = artifact.layers.flatMap((layer): ImageLayer[] => {
    const { size, digest } = layer;
    const title = layerTitle(layer) ?? "";
    const sha256 = digest.replace(/^sha256:/, "");
    return /\.qcow2$/i.test(title) ? [{ title, size, digest, sha256 }] : [];
  });
  if (images.length === 0) {
    const message = `No .qcow2 payload found in ${name}`;
    const hint = artifact.manifests
      ? "the reference names an index: add the digest of a manifest in the index, …@sha256:…"
      : "push the QCOW2 file as a layer and use a .qcow2 filename: toolsmith publish IMAGE.qcow2 REF";
    throw new ToolsmithError("payload_missing", message, { hint });
  }
  const match = expected === undefined
    ? images.length === 1 && parseSha256(images[0].sha256)
      ? images[0]
      : undefined
    : images.find((image) => image.sha256 === expected) ??
      soleNonSha256Image(images, expected);
  if (match) return match;
  if (images.length > 1) {
    const why = expected
      ? `none has sha256 ${expected}`
      : "no SHA-256 is given";
    const all = images.map((it) => `${it.sha256} (${it.title})`).join(", ");
    const message =
      `Cannot choose among ${images.length} .qcow2 files in ${name}: ${why}`;
    const hint = `set image.qcow2_sha256 (init: --sha256) to one of: ${all}`;
    throw new ToolsmithError("payload_ambiguous", message, { hint });
  }
  const [{ title, digest, sha256 }] = images;
  if (expected === undefined) {
    const message =
      `Cannot pin ${title} in ${name}: the registry has the digest ${digest}, not a SHA-256`;
    const hint = "pass the SHA-256 of the image: toolsmith init --sha256 HEX";
    throw new ToolsmithError("usage", message, { hint });
  }
  const hint =
    "set image.qcow2_sha256 to the new digest if the image was published again, else find out who changed the image; nothing was downloaded";
  const message =
    `Checksum mismatch for ${title} in ${name}: expected ${expected}, the registry has ${sha256}`;
  throw new ToolsmithError("checksum_mismatch", message, { hint });
}

/** An image with a digest of another algorithm may match: only hashing tells. */
function soleNonSha256Image(images: ImageLayer[], sha256: Sha256) {
  const unknown = images.filter(({ digest }) => !/^sha256:/i.test(digest));
  return unknown.length === 1 ? { ...unknown[0], sha256 } : undefined;
}

/**
 * Returns true if a layer's title is the same relative path on every system; a leading
 * `./` is permitted. Rejects `../x`, `/x`, `c:x`, `a\\b`, `a.`, `nul`, an empty title,
 * more than 512 characters or 16 segments, and the like.
 */
export function isPortableTitle(title: string): boolean {
  if (title.length > MAX_TITLE_LENGTH) return false;
  const parts = stripDotSlash(title).split("/");
  return parts.length <= MAX_TITLE_SEGMENTS && parts.every(isPortableFileName);
}

/** The files that a pull writes. */
export function titledDescriptors(artifact: Artifact): Descriptor[] {
  return configAndLayers(artifact)
    .filter((file) => file.annotations?.[TITLE_ANNOTATION]);
}

function configAndLayers({ config, layers }: Artifact): Descriptor[] {
  return config === undefined ? layers : [config, ...layers];
}

/** Returns the path that a layer is pulled to, with `/` between directories. */
export function layerTitle(layer: Descriptor): string | undefined {
  const title = layer.annotations?.[TITLE_ANNOTATION];
  return title === undefined ? undefined : stripDotSlash(title);
}

function stripDotSlash(title: string): string {
  return title.replace(/^(?:\.\/+)+/, "");
}

/** Stricter than oras, whose rules differ between versions. */
function refuseUnsafeLayers(artifact: Artifact) {
  const unsafe = (layer: Partial<Descriptor>, why: string) => {
    const title = layer.annotations?.[TITLE_ANNOTATION] ?? layer.digest;
    const shown = sanitizeLine(JSON.stringify(title));
    const name = formatReference(artifact.reference);
    const message = `Cannot pull ${name}: layer ${shown} ${why}`;
    const hint = "publish the image again: toolsmith publish IMAGE.qcow2 REF";
    return new ToolsmithError("artifact_unsafe", message, { hint });
  };
  const { subject } = artifact;
  const annotations = subject?.annotations;
  if (
    annotations?.[TITLE_ANNOTATION] !== undefined ||
    annotations?.[UNPACK_ANNOTATION]
  ) throw unsafe(subject!, "is a subject that oras would write to disk");
  const titles = new Set<string>();
  for (const layer of configAndLayers(artifact)) {
    if (layer.annotations?.[UNPACK_ANNOTATION] !== undefined) {
      throw unsafe(layer, "would be unpacked by oras");
    }
    if (MANIFEST_MEDIA_TYPES.has(layer.mediaType)) {
      throw unsafe(layer, "is a manifest, whose files oras would pull too");
    }
    const title = layerTitle(layer);
    if (title === undefined) continue;
    if (!isPortableTitle(layer.annotations![TITLE_ANNOTATION])) {
      throw unsafe(layer, "is not a plain relative path");
    }
    const key = foldNameCase(title);
    if (titles.has(key)) throw unsafe(layer, "has a duplicate title");
    titles.add(key);
  }
  for (const title of titles) {
    const parts = title.split("/");
    const isBelow = parts.some((_, at) =>
      titles.has(parts.slice(0, at).join("/"))
    );
    const file = { annotations: { [TITLE_ANNOTATION]: title } };
    if (isBelow) throw unsafe(file, "is a path below another file");
  }
}
