/**
 * Publishes an image to a registry and verifies that the registry serves it.
 */
import { basename } from "../path.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { MIN_INDEXED_IMAGE_BYTES } from "../delta/chunk_index.ts";
import { ToolsmithError } from "../errors.ts";
import { createEmitter, type Emit, type OnEvent } from "../events.ts";
import type { ImageArch } from "../image/boot_loader.ts";
import { inspectImage, statReadableFile } from "../image/inspect_image.ts";
import {
  assertValidImageName,
  createManifestJson,
  imageNameFromPath,
  type ManifestJson,
} from "../manifest/manifest_json.ts";
import { QCOW2_MEDIA_TYPE, TITLE_ANNOTATION } from "../oci/artifact.ts";
import { withGithubTokenAsGhcrToken } from "../oci/ghcr_credentials.ts";
import { orasClient } from "../oci/oras_client.ts";
import { ARCHITECTURE_ANNOTATION, OCI_ARCH_NAMES } from "../oci/platform.ts";
import {
  formatReference,
  type OciReference,
  parseReference,
} from "../oci/reference.ts";
import type { RegistryOptions } from "../oci/registry_options.ts";
import {
  type Digest,
  readFileChunks,
  selectDigestEngine,
  type Sha256,
  sha256OfChunks,
  sha256ToDigest,
} from "../system/digest.ts";
import { retryReporter, retryTransient } from "../system/retry.ts";
import { attachIndex, predictDownload, readRecords } from "./_chunk_index.ts";
import { compressImage } from "./_compress.ts";
import { makeLockedTemporaryDir } from "./_temporary_dir.ts";
import {
  addExtraFiles,
  CREATED_ANNOTATION,
  creationTime,
  type ExtraFile,
  imageLayerTitle,
  preparePushDir,
} from "./artifact_files.ts";
import { type PollOptions, pollUntilServed } from "./verify.ts";

/** Options of {@linkcode publish}. */
export interface PublishOptions extends PollOptions, RegistryOptions {
  /** Files to publish along with the image. @default {[]} */
  extras?: ExtraFile[];
  /** Annotations of the manifest, besides title and creation time. @default {{}} */
  annotations?: Record<string, string>;
  /** The image's processor architecture. @default {undefined} consumers detect it from the disk */
  arch?: ImageArch;
  /**
   * The creation time in the manifest. The default is `SOURCE_DATE_EPOCH`, else the
   * file's modification time, so that the same bytes give the same manifest.
   *
   * @default {undefined}
   */
  created?: Date;
  /** The image's name in the consumers' manifest. @default {undefined} the repository's last part */
  name?: string;
  /**
   * Publish a compressed copy of the image, made with `qemu-img`.
   *
   * @default {false}
   */
  compress?: boolean;
  /** Attach a chunk index to an image of 64 MiB or more. @default {true} */
  index?: boolean;
  /** The previous image, as a file or reference, to predict updates. @default {undefined} */
  previous?: string;
  /** Retries after a transient failure of the push. @default {3} */
  retries?: number;
  /** Pause before the first retry, in milliseconds; it doubles. @default {1000} */
  retryDelayMs?: number;
  /** Receives events. @default {undefined} */
  onEvent?: OnEvent;
}

/** The result of {@linkcode publish}. */
export interface PublishResult {
  /** The reference, as `registry/repository:tag`. */
  reference: string;
  /** The manifest's digest. */
  digest: Digest;
  /** The image layer's digest. */
  layerDigest: Digest;
  /** SHA-256 of the image, in hex. */
  sha256: Sha256;
  /** Size of the image, in bytes. */
  bytes: number;
  /** The image's file name in the artifact. */
  file: string;
  /** How the registry's copy was verified: by digests, or by a pull. */
  verified: "manifest" | "pull";
  /** How many polls it took until the registry served the artifact. */
  attempts: number;
  /** The manifest (`tools.json`) for consumers. */
  manifest: ManifestJson;
}

/**
 * Publishes a QCOW2 image as an OCI artifact: inspects and hashes it, pushes it with
 * `oras`, and polls until the registry serves the same digests.
 *
 * Needs `--allow-read` for the files, `--allow-run=oras` and `--allow-env`;
 * `--allow-write` for a chunk index, to verify by a pull, or for extra files from
 * other directories; `--allow-run=qemu-img` to compress; `--allow-net` for the
 * registry to compare with a previous reference.
 *
 * @param path The image file.
 * @param reference The target: `registry/repository:tag`.
 * @param options Extra files, annotations, retries, polling, the registry.
 * @returns Digests, size, and the manifest for consumers.
 * @throws {ToolsmithError} `source_not_found`, `file_unreadable`,
 * `image_invalid`, `image_unsafe`, `reference_invalid`, `usage`,
 * `publish_mismatch`, `publish_timeout`, `disk_full` for the temporary directory,
 * `qemu_not_found` with `compress`, and those of oras and the registry.
 *
 * @example
 * ```ts no-run
 * import { publish } from "@fountain/toolsmith";
 *
 * const { manifest } = await publish(
 *   "dist/image.qcow2",
 *   "ghcr.io/owner/repo:1.0",
 *   { onEvent: (event) => console.error(event.type) },
 * );
 * console.log(JSON.stringify(manifest, null, 2));
 * ```
 */
export async function publish(
  path: string,
  reference: string,
  options: PublishOptions = {},
): Promise<PublishResult> {
  const env = withGithubTokenAsGhcrToken(options.env ?? processEnvironment);
  const emit = createEmitter(options.onEvent);
  const how: ResolvedPublishOptions = { ...options, env, emit };
  const { signal, verify = "manifest", previous } = how;
  // Compressing may take minutes.
  const target = parsePublishTarget(reference, emit);
  const image = how.name ?? imageNameFromPath(target.repository);
  assertValidImageName(image);
  if (how.compress) emit({ type: "compress_start", path });
  await using dir = how.compress
    ? await makeLockedTemporaryDir("publish")
    : undefined;
  const source = dir ? await compressImage(path, dir.path, how) : path;
  const prepared = await prepareArtifact(image, source, how);
  const { imageBytes: total, title } = prepared;

  const onBytesRead = (bytes: number) =>
    emit({ type: "checksum_progress", image, bytes, total });
  const chunks = readFileChunks(source, { onBytesRead, signal });
  const attaches = how.index !== false && total >= MIN_INDEXED_IMAGE_BYTES;
  const isIndexed = attaches || previous !== undefined;
  const [sha256, records] = await Promise.all([
    sha256OfChunks(chunks, selectDigestEngine(total, env)),
    isIndexed ? readRecords(source, how) : new Uint8Array(),
  ]);
  const layerDigest = sha256ToDigest(sha256);
  const index = { size: total, digest: layerDigest, records };
  if (previous !== undefined) {
    await predictDownload(index, { previous, image }, how);
  }
  const digest = await pushWithRetries(target, prepared, layerDigest, how);
  if (attaches) await attachIndex(index, { ...target, digest }, prepared, how);
  const pushed = { reference: target, digest, path: source, title, sha256 };
  const attempts = await pollUntilServed({ ...pushed, image }, how);
  const name = formatReference(target);
  emit({ type: "publish_verified", image, reference: name, digest, verify });
  const pin = { name: image, source: `oci://${name}`, sha256 };
  return {
    reference: name,
    digest,
    layerDigest,
    sha256,
    bytes: total,
    file: title,
    verified: verify,
    attempts,
    manifest: createManifestJson(pin),
  };
}

type ResolvedPublishOptions = PublishOptions & { env: Environment; emit: Emit };

/** Parses the target and lowercases the repository, as registries require. */
function parsePublishTarget(text: string, emit: Emit): OciReference {
  const lower = text.replace(
    /^((?:oci:\/\/)?[^/]*\/)([^:@]+)/i,
    (_, registry, repository) => registry + repository.toLowerCase(),
  );
  const target = parseReference(lower);
  const name = `${target.registry}/${target.repository}`;
  if (target.digest) {
    const message =
      `Cannot publish to ${text}: the target must be a tag, not a digest`;
    const hint = `publish under a tag: ${name}:VERSION`;
    throw new ToolsmithError("reference_invalid", message, { hint });
  }
  if (lower !== text) {
    const message = `publishing to ${name}: repository names are lower case`;
    emit({ type: "warning", message });
  }
  return target;
}

type PreparedArtifact = Awaited<ReturnType<typeof prepareArtifact>>;

/** Rejects invalid input before the image is hashed or pushed. */
async function prepareArtifact(
  image: string,
  path: string,
  { arch, created, extras = [], annotations, env, emit }:
    ResolvedPublishOptions,
) {
  const { modified, warnings, ...inspected } = await inspectImage(path);
  emit({ type: "image_inspected", image, path, ...inspected });
  const title = imageLayerTitle(path);
  if (title !== basename(path)) {
    warnings.push(
      `publishing ${path} as ${title}: consumers need a name that is valid on every system and ends in .qcow2`,
    );
  }
  for (const message of warnings) emit({ type: "warning", message });
  const imageFile = { path, title, mediaType: QCOW2_MEDIA_TYPE };
  const files = addExtraFiles(imageFile, extras);
  const { bytes: imageBytes } = inspected;
  let totalBytes = imageBytes;
  for (const extra of extras) {
    totalBytes += (await statReadableFile(extra.path, "extra file")).size;
  }
  const all = {
    [TITLE_ANNOTATION]: title,
    [CREATED_ANNOTATION]: creationTime(env, { given: created, modified }),
    ...arch && { [ARCHITECTURE_ANNOTATION]: OCI_ARCH_NAMES[arch] },
    ...annotations,
  };
  return { image, imageBytes, title, files, totalBytes, annotations: all };
}

async function pushWithRetries(
  target: OciReference,
  { image, title, totalBytes, annotations, ...artifact }: PreparedArtifact,
  layerDigest: Digest,
  how: ResolvedPublishOptions,
): Promise<Digest> {
  const { emit } = how;
  const reference = formatReference(target);
  const about = { image, reference, bytes: totalBytes };
  const started = performance.now();
  emit({ type: "publish_start", ...about, file: title, digest: layerDigest });
  await using undo = new AsyncDisposableStack();
  const client = orasClient(how);
  const files = await preparePushDir(artifact.files, undo);
  const artifactType = QCOW2_MEDIA_TYPE;
  const all = { ...files, artifactType, annotations, totalBytes };
  const onRetry = retryReporter(emit, image);
  const push = () => client.push(target, all);
  const digest = await retryTransient(push, { ...how, onRetry });
  const elapsedMs = Math.round(performance.now() - started);
  emit({ type: "push_end", ...about, digest, elapsedMs });
  return digest;
}
