/**
 * An OCI artifact as its manifest describes it, and which of its layers is the
 * image.
 *
 * Formats: OCI Image Specification 1.1, "Image Manifest" and "Content
 * Descriptors"; the titles are `org.opencontainers.image.title` annotations.
 *
 * @module
 */
import { type Digest, parseSha256, type Sha256 } from "../system/digest.ts";
import { ToolsmithError } from "../errors.ts";
import { foldName, isPortableName } from "../system/portable_name.ts";
import { oneLine } from "../system/text.ts";
import { formatReference, type OciReference } from "./reference.ts";

const MAX_TITLE = 512;
const MAX_PARTS = 16;

/** Media type of a QCOW2 layer, and the artifact type that goes with it. */
export const QCOW2_MEDIA_TYPE = "application/vnd.fountain.toolsmith.qcow2";

/** The annotation that holds a layer's file name. */
export const TITLE = "org.opencontainers.image.title";

/** The annotation that makes oras unpack a layer. */
export const UNPACK = "io.deis.oras.content.unpack";

/** Of a layer with such a type oras pulls all that it names, too. */
const MANIFESTS = new Set([
  "application/vnd.oci.image.manifest.v1+json",
  "application/vnd.oci.image.index.v1+json",
  "application/vnd.oci.artifact.manifest.v1+json",
  "application/vnd.docker.distribution.manifest.v2+json",
  "application/vnd.docker.distribution.manifest.list.v2+json",
]);

/** A layer of an artifact. */
export interface Descriptor {
  /** Media type. */
  mediaType: string;
  /** Digest of the bytes, with its algorithm. */
  digest: string;
  /** Size, in bytes. */
  size: number;
  /** Annotations; the title is the file's path. */
  annotations?: Record<string, string> | null;
}

/** A manifest that an index names for a processor. */
export interface PlatformManifest {
  /** Its digest. */
  digest: Digest;
  /** The processor, as OCI names it: `amd64`, `arm64`. */
  architecture: string;
  /** The operating system, as OCI names it, where the index says it: `linux`. */
  os?: string;
  /** The processor's variant, where the index says it: `v8`. */
  variant?: string;
}

/** An artifact: its manifest, as a registry serves it. */
export interface Artifact {
  /** The manifest by digest: later requests cannot get another one. */
  reference: OciReference;
  /** The manifest's digest. */
  digest: Digest;
  /** The manifest's media type. */
  mediaType: string;
  /** The layers; empty for an index. */
  layers: Descriptor[];
  /** The manifests of an index that are for one processor each. */
  manifests?: PlatformManifest[];
  /** The processor that its image is for, as OCI names it, where that is said. */
  architecture?: string;
  /** The configuration; oras pulls one that has a title like a layer. */
  config?: Descriptor;
  /** The manifest that this one is about; oras may write one that has a title. */
  subject?: Descriptor;
  /** Whether it was read without `oras`, which cannot log in to its registry. */
  direct?: true;
}

/** The layer that is the image. */
export interface ImageLayer {
  /** Its path in the artifact, with `/` between directories. */
  title: string;
  /** Size, in bytes. */
  size: number;
  /** The digest that the registry has for it, with its algorithm. */
  digest: string;
  /** The SHA-256 that the file must have. */
  sha256: Sha256;
}

/**
 * Finds the layer that is the image, and refuses an artifact that must not be
 * unpacked on a host. Nothing of it needs to be downloaded for that.
 *
 * @param artifact What the registry describes.
 * @param expected SHA-256 of the image; without it there must be one image.
 * @returns The layer. Where its digest is no SHA-256, the caller has to hash it.
 * @throws {ToolsmithError} `artifact_unsafe`, `payload_missing`,
 * `payload_ambiguous`, `checksum_mismatch`; `usage` where no SHA-256 is known.
 */
export function selectImageLayer(
  artifact: Artifact,
  expected?: Sha256,
): ImageLayer {
  refuseUnsafe(artifact);
  const name = formatReference(artifact.reference);
  const images = artifact.layers
    .map((layer) => ({ ...layer, title: titleOf(layer) ?? "" }))
    .filter((layer) => /\.qcow2$/i.test(layer.title))
    .map(({ title, size, digest }) => ({
      title,
      size,
      digest,
      sha256: digest.replace(/^sha256:/, ""),
    }));
  if (images.length === 0) {
    const index = /index|manifest\.list/.test(artifact.mediaType);
    throw new ToolsmithError(
      "payload_missing",
      `No .qcow2 payload found in ${name}`,
      {
        hint: index
          ? "it is an index: name the manifest inside it by its digest, …@sha256:…"
          : "push the QCOW2 file as a layer and use a .qcow2 filename: toolsmith publish IMAGE.qcow2 REF",
      },
    );
  }
  const match = expected === undefined
    ? images.length === 1 && parseSha256(images[0].sha256)
      ? images[0]
      : undefined
    : images.find((image) => image.sha256 === expected) ??
      soleUnknown(images, expected);
  if (match) return match;
  if (images.length > 1) {
    throw new ToolsmithError(
      "payload_ambiguous",
      `Cannot choose among ${images.length} .qcow2 files in ${name}: ` +
        (expected ? `none has sha256 ${expected}` : "no digest is given"),
      {
        hint: `set image.qcow2_sha256 to one of: ${
          images.map((image) => `${image.sha256} (${image.title})`).join(", ")
        }`,
      },
    );
  }
  const [{ title, digest, sha256 }] = images;
  if (expected === undefined) {
    throw new ToolsmithError(
      "usage",
      `Cannot pin ${title} in ${name}: its digest is ${digest}, and a pin is a SHA-256`,
      { hint: "pass the SHA-256 of the file: toolsmith init --sha256 HEX" },
    );
  }
  throw new ToolsmithError(
    "checksum_mismatch",
    `Checksum mismatch for ${title} in ${name}: expected ${expected}, the registry has ${sha256}`,
    {
      hint:
        "nothing was downloaded; if the image was published again, set image.qcow2_sha256 to its digest, else find out who changed it",
    },
  );
}

/** Whether bytes with a digest of another algorithm fit, only hashing tells. */
function soleUnknown(
  images: ImageLayer[],
  sha256: Sha256,
): ImageLayer | undefined {
  const unknown = images.filter(({ digest }) => !/^sha256:/i.test(digest));
  return unknown.length === 1 ? { ...unknown[0], sha256 } : undefined;
}

/**
 * Checks whether a layer's title can be a path, and no other one, on every host.
 *
 * @param title The title; a leading `./` is fine.
 * @returns `false` for `../x`, `/x`, `c:x`, `a\\b`, `a.`, `nul`, an empty title,
 * one of more than 512 characters or 16 parts, and the like.
 */
export function isPlainTitle(title: string): boolean {
  if (title.length > MAX_TITLE) return false;
  const parts = withoutDot(title).split("/");
  return parts.length <= MAX_PARTS && parts.every(isPortableName);
}

/**
 * The descriptors of what a pull writes.
 *
 * @param artifact The artifact.
 * @returns Its layers, and a configuration that has a title.
 */
export function pulledFiles({ layers, config }: Artifact): Descriptor[] {
  const all = config === undefined ? layers : [config, ...layers];
  return all.filter((file) => file.annotations?.[TITLE]);
}

/**
 * The path that a layer is pulled to.
 *
 * @param layer The layer.
 * @returns The path, with `/` between directories; `undefined` without a title.
 */
export function titleOf(layer: Descriptor): string | undefined {
  const title = layer.annotations?.[TITLE];
  return title === undefined ? undefined : withoutDot(title);
}

function withoutDot(title: string): string {
  return title.replace(/^(?:\.\/+)+/, "");
}

/** Whatever the version of oras does with such layers, none is let through. */
function refuseUnsafe(artifact: Artifact) {
  const { config, layers, subject } = artifact;
  const annotations = subject?.annotations;
  if (annotations?.[TITLE] !== undefined || annotations?.[UNPACK]) {
    throw unsafe(artifact, subject!, "is a subject that would be written");
  }
  const titles = new Set<string>();
  for (const layer of config === undefined ? layers : [config, ...layers]) {
    if (layer.annotations?.[UNPACK] !== undefined) {
      throw unsafe(artifact, layer, "would be unpacked as a tar");
    }
    if (MANIFESTS.has(layer.mediaType)) {
      throw unsafe(artifact, layer, "is a manifest that names further files");
    }
    const title = titleOf(layer);
    if (title === undefined) continue;
    if (!isPlainTitle(layer.annotations![TITLE])) {
      throw unsafe(artifact, layer, "is not a plain relative path");
    }
    const key = foldName(title);
    if (titles.has(key)) throw unsafe(artifact, layer, "stands there twice");
    titles.add(key);
  }
  for (const title of titles) {
    for (let at = title.indexOf("/"); at > 0; at = title.indexOf("/", at + 1)) {
      if (!titles.has(title.slice(0, at))) continue;
      const inner = { annotations: { [TITLE]: title } };
      throw unsafe(artifact, inner, "is inside another layer's file");
    }
  }
}

function unsafe(
  artifact: Artifact,
  layer: Partial<Descriptor>,
  why: string,
): ToolsmithError {
  const name = layer.annotations?.[TITLE] ?? layer.digest;
  return new ToolsmithError(
    "artifact_unsafe",
    `Cannot pull ${formatReference(artifact.reference)}: layer ${
      oneLine(JSON.stringify(name))
    } ${why}`,
    { hint: "publish the files under plain names: toolsmith publish does" },
  );
}
