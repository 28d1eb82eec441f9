/**
 * Reads an artifact's manifest so that no other reader can take it for another
 * one: `oras` reads the same bytes again when it pulls.
 *
 * Go's JSON matches the names of fields without case and lets the last of two
 * win; which fields count depends on the media type that the registry names with
 * each answer. So a manifest for which any of that makes a difference is refused.
 *
 * Format: OCI Image Specification 1.1, "Image Manifest" and "Content
 * Descriptors".
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { type Digest, isDigest } from "../system/digest.ts";
import { isObject } from "../system/json.ts";
import { foldName } from "../system/portable_name.ts";
import { oneLine } from "../system/text.ts";
import {
  type Artifact,
  type Descriptor,
  type PlatformManifest,
  TITLE,
  UNPACK,
} from "./artifact.ts";
import { ARCHITECTURE } from "./platform.ts";
import { formatReference, type OciReference } from "./reference.ts";

/** Far above what a few files need; registries themselves take up to 4 MiB. */
export const MAX_MANIFEST = 1024 * 1024;
const MAX_LAYERS = 1000;
const MAX_DEPTH = 32;

/** Each is read by the same fields: `config` and `layers`. */
const IMAGE_MANIFESTS = new Set<unknown>([
  undefined,
  "application/vnd.oci.image.manifest.v1+json",
  "application/vnd.docker.distribution.manifest.v2+json",
]);
const INDEXES = new Set<unknown>([
  "application/vnd.oci.image.index.v1+json",
  "application/vnd.docker.distribution.manifest.list.v2+json",
]);

/** The fields that a reader knows, of any kind of manifest and of descriptors. */
const FIELDS = folded([
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
const ANNOTATIONS = folded([
  ARCHITECTURE,
  TITLE,
  UNPACK,
  "io.deis.oras.content.digest",
]);

const DIGEST = /^[a-z0-9]+(?:[+._-][a-z0-9]+)*:[\w=-]{1,512}$/i;

/**
 * Reads a manifest.
 *
 * @param bytes Exactly what the registry serves.
 * @param asked What it was asked for.
 * @param digest The digest of the bytes.
 * @returns The artifact, named by its digest. An index has no layers.
 * @throws {ToolsmithError} `artifact_unsafe`.
 */
export function readManifest(
  bytes: Uint8Array,
  asked: OciReference,
  digest: Digest,
): Artifact {
  const refuse = (why: string, cause?: unknown) =>
    new ToolsmithError(
      "artifact_unsafe",
      `Cannot read the manifest of ${formatReference(asked)}: ${why}`,
      { hint: "publish the image again: toolsmith publish", cause },
    );
  const manifest = parseStrictly(bytes, refuse);
  const { registry, repository } = asked;
  const reference: OciReference = { kind: "oci", registry, repository, digest };
  const descriptor = (value: unknown, what: string): Descriptor => {
    if (isDescriptor(value)) return value;
    throw refuse(`${what} is malformed: ${show(value)}`);
  };
  const { mediaType } = manifest;
  if (INDEXES.has(mediaType) && manifest.layers === undefined) {
    return {
      reference,
      digest,
      mediaType: String(mediaType),
      layers: [],
      manifests: platforms(manifest.manifests, descriptor),
    };
  }
  if (!IMAGE_MANIFESTS.has(mediaType)) {
    throw refuse(`${show(mediaType)} is no media type of an image manifest`);
  }
  for (const field of ["manifests", "blobs"]) {
    if (manifest[field] !== undefined) {
      throw refuse(`an image manifest has no ${field}`);
    }
  }
  const { layers, config, subject } = manifest;
  if (!Array.isArray(layers)) throw refuse("its layers are not a list");
  if (layers.length > MAX_LAYERS) {
    throw refuse(`it has ${layers.length} layers, more than ${MAX_LAYERS}`);
  }
  return {
    reference,
    digest,
    mediaType: String(mediaType ?? ""),
    layers: layers.map((layer) => descriptor(layer, "a layer")),
    config: config === undefined ? undefined : descriptor(config, "config"),
    subject: subject === undefined ? undefined : descriptor(subject, "subject"),
    ...architecture(manifest.annotations),
  };
}

/** What the publisher says of the processor. */
function architecture(annotations: unknown): Pick<Artifact, "architecture"> {
  const value = isObject(annotations) ? annotations[ARCHITECTURE] : undefined;
  return typeof value === "string" ? { architecture: value } : {};
}

/** Those of an index that are for a processor; others, as signatures, are not. */
function platforms(
  manifests: unknown,
  descriptor: (value: unknown, what: string) => Descriptor,
): PlatformManifest[] {
  const list: unknown[] = Array.isArray(manifests) ? manifests : [];
  return list.slice(0, MAX_LAYERS).flatMap((value) => {
    const { digest } = descriptor(value, "a manifest of the index");
    const { platform } = value as Record<string, unknown>;
    const { architecture, ...rest } = isObject(platform) ? platform : {};
    if (typeof architecture !== "string" || !isDigest(digest)) return [];
    const found: PlatformManifest = {
      digest,
      architecture: oneLine(architecture, 40),
    };
    for (const name of ["os", "variant"] as const) {
      const text = rest[name];
      if (typeof text === "string" && text) found[name] = oneLine(text, 40);
    }
    return [found];
  });
}

type Refusal = (why: string, cause?: unknown) => ToolsmithError;

function parseStrictly(
  bytes: Uint8Array,
  refuse: Refusal,
): Record<string, unknown> {
  if (bytes.length > MAX_MANIFEST) {
    throw refuse(`it has ${bytes.length} bytes, more than ${MAX_MANIFEST}`);
  }
  let manifest: unknown;
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })
      .decode(bytes);
    manifest = JSON.parse(text);
  } catch (cause) {
    throw refuse(
      `it is not JSON (${oneLine((cause as Error).message)})`,
      cause,
    );
  }
  if (!isObject(manifest)) throw refuse("it is not an object");
  refuseAmbiguousKeys(text, refuse);
  return manifest;
}

/** Walks the tokens of valid JSON: `JSON.parse()` does not report such keys. */
function refuseAmbiguousKeys(text: string, refuse: Refusal) {
  const tokens = /"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\],:]/g;
  const open: { keys: Set<string>; known: Map<string, string> }[] = [];
  let last = "";
  let key = "";
  for (const [token] of text.matchAll(tokens)) {
    if (token === "{" || token === "[") {
      const known = key === "annotations" ? ANNOTATIONS : FIELDS;
      open.push({ keys: new Set(), known });
      if (open.length > MAX_DEPTH) throw refuse("it is nested too deeply");
      key = "";
    } else if (token === "}" || token === "]") open.pop();
    else if (token === ",") key = "";
    else if (token !== ":") last = token;
    else {
      key = JSON.parse(last) as string;
      const { keys, known } = open[open.length - 1];
      if (keys.has(key)) throw refuse(`${show(key)} stands there twice`);
      keys.add(key);
      const meant = known.get(foldName(key));
      if (meant !== undefined && meant !== key) {
        throw refuse(`${show(key)} may be taken for "${meant}"`);
      }
    }
  }
}

function isDescriptor(value: unknown): value is Descriptor {
  if (!isObject(value)) return false;
  const { mediaType, digest, size, annotations } = value;
  return typeof mediaType === "string" && typeof digest === "string" &&
    DIGEST.test(digest) && Number.isSafeInteger(size) && size as number >= 0 &&
    (annotations === undefined || annotations === null ||
      isObject(annotations) &&
        Object.values(annotations).every((text) => typeof text === "string"));
}

function show(value: unknown): string {
  return oneLine(String(JSON.stringify(value)), 100);
}

function folded(names: string[]): Map<string, string> {
  return new Map(names.map((name) => [foldName(name), name]));
}
