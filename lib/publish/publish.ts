/**
 * Publishes an image to a registry, and proves that it is served back.
 *
 * @module
 */
import { basename } from "../path.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import { type Emit, emitter, type OnEvent } from "../events.ts";
import type { ImageArch } from "../image/boot_loader.ts";
import { inspectImage, statFile } from "../image/inspect.ts";
import {
  assertImageName,
  type ConsumerManifest,
  consumerManifest,
  imageNameOf,
} from "../manifest/format.ts";
import { QCOW2_MEDIA_TYPE, TITLE } from "../oci/artifact.ts";
import { publishingEnvironment } from "../oci/credentials.ts";
import { oras } from "../oci/oras.ts";
import { ARCHITECTURE, ociArch } from "../oci/platform.ts";
import {
  formatReference,
  type OciReference,
  parseReference,
} from "../oci/reference.ts";
import { type RegistryOptions, registryOptions } from "../oci/registry.ts";
import {
  asDigest,
  type Digest,
  fileChunks,
  type Sha256,
  sha256,
  transferEngine,
} from "../system/digest.ts";
import { retry } from "../system/retry.ts";
import { CREATED, createdTime } from "./_created.ts";
import {
  type ArtifactFile,
  artifactFiles,
  type ExtraFile,
  imageTitle,
  pushDir,
} from "./layers.ts";
import { type PollOptions, pollUntilServed } from "./verify.ts";

/** What {@linkcode publish} takes. */
export interface PublishOptions extends PollOptions, RegistryOptions {
  /** Files to publish beside the image. @default {[]} */
  extras?: ExtraFile[];
  /** Annotations of the manifest, added to title and time. @default {{}} */
  annotations?: Record<string, string>;
  /** The processor that the image is for. @default {undefined} consumers look at its disk */
  arch?: ImageArch;
  /**
   * The time that the manifest records as its creation. Without it that is
   * `SOURCE_DATE_EPOCH`, or the time at which the file was last written: the
   * same bytes give the same manifest.
   *
   * @default {undefined}
   */
  created?: Date;
  /** Name of the image for consumers. @default {undefined} the repository's last part */
  name?: string;
  /** Retries after a transient failure of the push. @default {3} */
  retries?: number;
  /** Pause before the second push, in milliseconds; it doubles. @default {1000} */
  retryDelayMs?: number;
  /** Notified of what happens. @default {undefined} */
  onEvent?: OnEvent;
}

/** What was published. */
export interface PublishResult {
  /** Where, as `registry/repository:tag`. */
  reference: string;
  /** The manifest's digest. */
  digest: Digest;
  /** The image layer's digest. */
  layerDigest: Digest;
  /** SHA-256 of the image, in hex. */
  sha256: Sha256;
  /** Size of the image, in bytes. */
  bytes: number;
  /** The name that the artifact records for the image. */
  file: string;
  /** What was compared with what the registry serves. */
  verified: "manifest" | "pull";
  /** How often the registry was asked until it served the artifact. */
  attempts: number;
  /** The manifest for consumers. */
  manifest: ConsumerManifest;
}

/**
 * Publishes a QCOW2 image as an OCI artifact: looks at it, hashes it, pushes it
 * with `oras` from its own directory, and polls until the registry serves the same
 * digests back.
 *
 * Needs `--allow-read` for the files, `--allow-run=oras` and `--allow-env`;
 * `--allow-write` to pull it back, or for extra files from other directories.
 *
 * @param path The image.
 * @param reference Where to: `registry/repository:tag`.
 * @param options Other files, annotations, patience, the registry.
 * @returns Digests, size, and the manifest for consumers.
 * @throws {ToolsmithError} `source_not_found`, `file_unreadable`,
 * `image_invalid`, `image_unsafe`, `reference_invalid`, `usage`,
 * `publish_mismatch`, `publish_timeout`, and those of oras and the registry.
 *
 * @example
 * ```ts ignore
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
  const env = publishingEnvironment(options.env ?? processEnvironment);
  const registry = { ...registryOptions(options), env };
  const emit = emitter(options.onEvent);
  const publication = await prepare(path, reference, { options, env, emit });
  const { target, image, files, bytes } = publication;
  const { title } = files[0];

  const onBytes = (bytes: number) =>
    emit({ type: "checksum_progress", image, bytes, total: publication.bytes });
  const { signal } = options;
  const engine = transferEngine(publication.bytes, env);
  const digest = await sha256(fileChunks(path, { onBytes, signal }), engine);
  const pushed = await push(publication, digest, { options, registry, emit });
  const published = { reference: target, digest: pushed, path, title, image };
  const { verify = "manifest", attempts, intervalMs, deadlineMs } = options;
  const poll = { verify, attempts, intervalMs, deadlineMs, registry, emit };
  const asked = await pollUntilServed({ ...published, sha256: digest }, poll);
  const written = formatReference(target);
  emit({
    type: "publish_verified",
    image,
    reference: written,
    digest: pushed,
    verify,
  });
  return {
    reference: written,
    digest: pushed,
    layerDigest: asDigest(digest),
    sha256: digest,
    bytes,
    file: title,
    verified: verify,
    attempts: asked,
    manifest: consumerManifest({
      name: image,
      source: `oci://${written}`,
      sha256: digest,
    }),
  };
}

/** What is published, checked as far as that goes without the registry. */
interface Publication {
  target: OciReference;
  /** The image's name for consumers. */
  image: string;
  /** The image first. */
  files: ArtifactFile[];
  annotations: Record<string, string>;
  /** Size of the image, in bytes. */
  bytes: number;
  /** Size of all files, in bytes. */
  total: number;
}

/** Refuses what cannot be published before anything is read or pushed whole. */
async function prepare(
  path: string,
  reference: string,
  { options, env, emit }: {
    options: PublishOptions;
    env: Environment;
    emit: Emit;
  },
): Promise<Publication> {
  const target = publishTarget(reference, emit);
  const image = options.name ?? imageNameOf(target.repository);
  assertImageName(image);
  const { modified, warnings, ...inspected } = await inspectImage(path);
  emit({ type: "image_inspected", image, path, ...inspected });
  for (const message of warnings) emit({ type: "warning", message });
  const files = listFiles(path, options.extras ?? [], emit);
  const { bytes } = inspected;
  let total = bytes;
  for (const extra of files.slice(1)) {
    total += (await statFile(extra.path, "extra file")).size;
  }
  const annotations = {
    [TITLE]: files[0].title,
    [CREATED]: createdTime(env, { given: options.created, modified }),
    ...options.arch && { [ARCHITECTURE]: ociArch(options.arch) },
    ...options.annotations,
  };
  return { target, image, files, annotations, bytes, total };
}

/** Reads where to publish; a registry takes lower case alone. */
function publishTarget(text: string, emit: Emit): OciReference {
  const lower = text.replace(
    /^((?:oci:\/\/)?[^/]*\/)([^:@]+)/i,
    (_, registry, repository) => registry + repository.toLowerCase(),
  );
  const target = parseReference(lower);
  if (target.digest) {
    throw new ToolsmithError(
      "reference_invalid",
      `Cannot publish to ${text}: a digest names what is there already`,
      {
        hint:
          `publish under a tag: ${target.registry}/${target.repository}:VERSION`,
      },
    );
  }
  if (lower !== text) {
    const message =
      `publishing to ${target.registry}/${target.repository}: repositories are lower case`;
    emit({ type: "warning", message });
  }
  return target;
}

function listFiles(
  path: string,
  extras: ExtraFile[],
  emit: Emit,
): ArtifactFile[] {
  const title = imageTitle(path);
  if (title !== basename(path)) {
    const message =
      `publishing ${path} under the name ${title}: consumers look for a plain name that ends in .qcow2`;
    emit({ type: "warning", message });
  }
  return artifactFiles({ path, title, mediaType: QCOW2_MEDIA_TYPE }, extras);
}

/** Pushes, again where that may help; returns the manifest's digest. */
async function push(
  { target, image, files, annotations, total }: Publication,
  digest: Sha256,
  { options, registry, emit }: {
    options: PublishOptions;
    registry: RegistryOptions;
    emit: Emit;
  },
): Promise<Digest> {
  const reference = formatReference(target);
  const started = performance.now();
  emit({
    type: "publish_start",
    image,
    reference,
    file: files[0].title,
    bytes: total,
    digest: asDigest(digest),
  });
  await using dir = await pushDir(files);
  const client = oras(registry);
  const artifact = {
    files: dir.files,
    cwd: dir.cwd,
    artifactType: QCOW2_MEDIA_TYPE,
    annotations,
    bytes: total,
  };
  const pushed = await retry(() => client.push(target, artifact), {
    retries: options.retries,
    retryDelayMs: options.retryDelayMs,
    signal: options.signal,
    onRetry({ error: { code, message }, attempt, attempts, delayMs }) {
      const retry = { attempt, attempts, delayMs };
      emit({ type: "retry", image, code, message, ...retry });
    },
  });
  const elapsedMs = Math.round(performance.now() - started);
  emit({
    type: "push_end",
    image,
    reference,
    digest: pushed,
    bytes: total,
    elapsedMs,
  });
  return pushed;
}
