/**
 * Parses an artifact's manifest, and rejects one that `oras`, which reads the same
 * bytes again when it pulls, could interpret differently.
 *
 * Go's JSON ignores the case of field names and takes the last duplicate; the media
 * type of each response decides which fields are used. A manifest for which any of
 * this makes a difference is ambiguous and rejected.
 *
 * Format: OCI Image Specification 1.1, "Image Manifest" and "Content
 * Descriptors".
 */
import { ToolsmithError } from "../errors.ts";
import { type Digest, isSha256Digest } from "../system/digest.ts";
import {
  isJsonObject,
  isNestedDeeper,
  type JsonObject,
  jsonObjectOrEmpty,
  walkJsonMembers,
} from "../system/json.ts";
import { foldNameCase } from "../system/portable_name.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import {
  type Artifact,
  type Descriptor,
  IMAGE_MANIFEST_MEDIA_TYPES,
  INDEX_MEDIA_TYPES,
  type PlatformManifest,
  TITLE_ANNOTATION,
  UNPACK_ANNOTATION,
} from "./artifact.ts";
import { ARCHITECTURE_ANNOTATION } from "./platform.ts";
import { formatReference, type OciReference } from "./reference.ts";

/** Far above the need of a few files; registries accept up to 4 MiB. */
export const MAX_MANIFEST_BYTES = 1024 * 1024;
const MAX_LAYERS = 1000;
const MAX_JSON_DEPTH = 32;

/** The fields of all kinds of manifests, and of descriptors. */
const FIELDS_BY_FOLDED_NAME = mapByFoldedName([
  "annotations",
  "architecture",
  "artifactType",
  "blobs",
  "config",
  "data",
  "digest",
  "layers",
  "manifests",
  "mediaType",
  "platform",
  "schemaVersion",
  "size",
  "subject",
  "urls",
]);
const ANNOTATIONS_BY_FOLDED_NAME = mapByFoldedName([
  ARCHITECTURE_ANNOTATION,
  TITLE_ANNOTATION,
  UNPACK_ANNOTATION,
  "io.deis.oras.content.digest",
]);

const DIGEST_PATTERN = /^[a-z0-9]+(?:[+._-][a-z0-9]+)*:[\w=-]{1,512}$/i;

/**
 * Parses a manifest strictly; `digest` is that of the bytes. The artifact has a
 * reference by digest; an index has no layers.
 */
export function parseArtifactManifest(
  bytes: Uint8Array,
  requested: OciReference,
  digest: Digest,
): Artifact {
  const refuse = (why: string, cause?: unknown) =>
    new ToolsmithError(
      "artifact_unsafe",
      `Cannot read the manifest of ${formatReference(requested)}: ${why}`,
      { hint: "publish the image again: toolsmith publish IMAGE REF", cause },
    );
  const manifest = parseUnambiguousJson(bytes, refuse);
  const { registry, repository } = requested;
  const reference: OciReference = { kind: "oci", registry, repository, digest };
  const descriptor = (value: unknown, what: string): Descriptor => {
    if (isDescriptor(value)) return value;
    throw refuse(`${what} is malformed: ${toShortJson(value)}`);
  };
  const { mediaType = "" } = manifest;
  const is = (type: string) => type === mediaType;
  if (INDEX_MEDIA_TYPES.some(is) && manifest.layers === undefined) {
    const manifests = parsePlatformManifests(manifest.manifests, descriptor);
    return { reference, digest, layers: [], manifests };
  }
  if (
    manifest.mediaType !== undefined && !IMAGE_MANIFEST_MEDIA_TYPES.some(is)
  ) {
    const shown = toShortJson(mediaType);
    throw refuse(`${shown} is not the media type of an image manifest`);
  }
  for (const field of ["manifests", "blobs"]) {
    if (manifest[field] !== undefined) {
      throw refuse(`an image manifest must not have "${field}"`);
    }
  }
  const { layers, config, subject, annotations } = manifest;
  const architecture = jsonObjectOrEmpty(annotations)[ARCHITECTURE_ANNOTATION];
  if (!Array.isArray(layers)) throw refuse('"layers" is not a list');
  const { length } = layers;
  if (length > MAX_LAYERS) {
    throw refuse(`the manifest has ${length} layers, more than ${MAX_LAYERS}`);
  }
  return {
    reference,
    digest,
    layers: layers.map((layer) => descriptor(layer, "a layer")),
    config: config === undefined ? undefined : descriptor(config, "config"),
    subject: subject === undefined ? undefined : descriptor(subject, "subject"),
    ...typeof architecture === "string" && { architecture },
  };
}

/** Skips manifests without a platform, such as signatures. */
function parsePlatformManifests(
  manifests: unknown,
  descriptor: (value: unknown, what: string) => Descriptor,
): PlatformManifest[] {
  const list: unknown[] = Array.isArray(manifests) ? manifests : [];
  return list.slice(0, MAX_LAYERS).flatMap((value) => {
    const { digest } = descriptor(value, "a manifest of the index");
    const { platform } = value as JsonObject;
    const [architecture, os, variant] = ["architecture", "os", "variant"]
      .map((name) => jsonObjectOrEmpty(platform)[name])
      .map((it) =>
        it && typeof it === "string" ? sanitizeLine(it, 40) : undefined
      );
    if (!architecture || !isSha256Digest(digest)) return [];
    return [{ digest, architecture, os, variant }];
  });
}

function parseUnambiguousJson(
  bytes: Uint8Array,
  refuse: (why: string, cause?: unknown) => ToolsmithError,
): JsonObject {
  if (bytes.length > MAX_MANIFEST_BYTES) {
    throw refuse(
      `the manifest has ${bytes.length} bytes, more than ${MAX_MANIFEST_BYTES}`,
    );
  }
  let manifest: unknown;
  let text: string;
  try {
    const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
    text = decoder.decode(bytes);
    manifest = JSON.parse(text);
  } catch (cause) {
    const why = sanitizeLine((cause as Error).message);
    throw refuse(`not JSON (${why})`, cause);
  }
  if (!isJsonObject(manifest)) throw refuse("not a JSON object");
  if (isNestedDeeper(manifest, MAX_JSON_DEPTH)) {
    throw refuse(`the JSON is nested more than ${MAX_JSON_DEPTH} levels deep`);
  }
  // `JSON.parse()` does not report duplicate keys.
  for (const { key, parentKeys, isDuplicateKey } of walkJsonMembers(text)) {
    if (isDuplicateKey) throw refuse(`${toShortJson(key)} is a duplicate key`);
    const names = parentKeys.at(-1) === "annotations"
      ? ANNOTATIONS_BY_FOLDED_NAME
      : FIELDS_BY_FOLDED_NAME;
    const name = names.get(foldNameCase(key));
    if (name !== undefined && name !== key) {
      throw refuse(`${toShortJson(key)} can be mistaken for "${name}"`);
    }
  }
  return manifest;
}

function isDescriptor(value: unknown): value is Descriptor {
  if (!isJsonObject(value)) return false;
  const { mediaType, digest, size, annotations } = value;
  return typeof mediaType === "string" && typeof digest === "string" &&
    DIGEST_PATTERN.test(digest) && Number.isSafeInteger(size) &&
    size as number >= 0 && isJsonObject(annotations ?? {}) &&
    Object.values(annotations ?? {}).every((it) => typeof it === "string");
}

function toShortJson(value: unknown): string {
  return sanitizeLine(String(JSON.stringify(value)), 100);
}

function mapByFoldedName(names: string[]): Map<string, string> {
  return new Map(names.map((name) => [foldNameCase(name), name]));
}
