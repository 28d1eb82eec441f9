/**
 * Makes a manifest for an image that exists: in a registry, behind an address,
 * or on this host.
 *
 * @module
 */
import { dirname, join, relative, resolve, SEPARATOR } from "../path.ts";
import { processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import { emitter, type OnEvent } from "../events.ts";
import { inspectImage } from "../image/inspect.ts";
import {
  assertImageName,
  imageNameOf,
  type NewImage,
} from "../manifest/format.ts";
import { loadManifest, type Manifest } from "../manifest/manifest.ts";
import { type HttpsSource, parseImageSource } from "../manifest/source.ts";
import {
  assertUpdatable,
  type ManifestChange,
  manifestExists,
  writeManifest,
} from "../manifest/write.ts";
import { selectImageLayer } from "../oci/artifact.ts";
import { oras } from "../oci/oras.ts";
import { fetchForArch } from "../oci/platform.ts";
import { formatReference, parseReference } from "../oci/reference.ts";
import { registryOptions } from "../oci/registry.ts";
import {
  fileChunks,
  parseSha256,
  type Sha256,
  sha256,
} from "../system/digest.ts";
import { workspaceRoot } from "../system/workspace.ts";
import type { FetchOptions } from "./fetch.ts";
import { hydrate } from "./hydrate.ts";
import { publishedDigest } from "./_checksums.ts";
import { downloadUnpinned } from "./_unpinned.ts";

/** What {@linkcode init} takes: either `ref` or `file`. */
export interface InitOptions extends FetchOptions {
  /**
   * An artifact in a registry, which is asked for its image's digest, or an
   * `https://` address: that image is downloaded into the cache.
   */
  ref?: string;
  /** An image of this host; it is hashed. */
  file?: string;
  /** The SHA-256 that the image has to have. @default {undefined} any */
  sha256?: string;
  /**
   * The `https://` address of a list of digests, such as `SHA256SUMS`, that names
   * the image of an `https://` address.
   *
   * @default {undefined} none
   */
  sha256sums?: string;
  /** Name of the image. @default {undefined} that of the repository or file */
  name?: string;
  /** The cache's directory. @default {undefined} `TOOLSMITH_CACHE`, or the workspace's */
  cache?: string;
  /**
   * The manifest to write.
   *
   * @default {undefined} `TOOLSMITH_MANIFEST`, else `.toolsmith/tools.json` here
   */
  manifest?: string;
  /** Change the image of a manifest that exists. @default {false} */
  update?: boolean;
  /** The directory that relative paths start from. @default {Deno.cwd()} */
  cwd?: string;
  /** Notified of what happens. @default {undefined} */
  onEvent?: OnEvent;
}

/** What {@linkcode init} did. */
export interface InitResult {
  /** Absolute path of the manifest. */
  path: string;
  /** What was done to it. */
  outcome: ManifestChange;
  /** The manifest as it is now. */
  manifest: Manifest;
}

/**
 * Writes a manifest that names an image by its digest.
 *
 * Needs `--allow-read` and `--allow-write` for the manifest's directory, and
 * `--allow-run=oras` for a reference, `--allow-read` for a `file`, what `hydrate`
 * needs for an address.
 *
 * @param options The image, and the manifest.
 * @returns The manifest.
 * @throws {ToolsmithError} `usage` when the manifest exists and is not to be
 * updated, or not exactly one image is given; `manifest_invalid`,
 * `payload_missing`, `payload_ambiguous`, `checksum_mismatch`, and those of the
 * registry, the server or the file.
 *
 * @example
 * ```ts ignore
 * import { init } from "@fountain/toolsmith";
 *
 * const { path } = await init({ ref: "ghcr.io/owner/repo:1.0" });
 * console.log(path);
 * ```
 */
export async function init(options: InitOptions): Promise<InitResult> {
  const { ref, file, cwd = Deno.cwd(), env = processEnvironment } = options;
  if ((ref === undefined) === (file === undefined)) {
    throw new ToolsmithError(
      "usage",
      "Cannot write a manifest: name one image, by --ref or by --file",
      { hint: "toolsmith init --ref oci://REGISTRY/OWNER/REPO:VERSION" },
    );
  }
  const path = resolve(
    cwd,
    options.manifest ?? env.get("TOOLSMITH_MANIFEST") ??
      join(".toolsmith", "tools.json"),
  );
  const rename = options.name !== undefined;
  const kept = options.update
    ? await assertUpdatable(path, { rename })
    : undefined;
  if (!options.update && await manifestExists(path)) {
    throw new ToolsmithError(
      "usage",
      `Cannot write manifest ${path}: it exists already`,
      { hint: "--update changes its image, and keeps all else" },
    );
  }
  const expected = expectedDigest(options);
  const image = ref === undefined
    ? await imageOfFile(resolve(cwd, file!), { ...options, path, expected })
    : isAddress(ref)
    ? await imageOfAddress(ref, { ...options, path, expected, kept })
    : await imageOfReference(ref, { ...options, expected });
  if (options.name !== undefined) image.name = options.name;
  const outcome = await writeManifest(path, image, { rename });
  return { path, outcome, manifest: await loadManifest(path, { cwd, env }) };
}

/** What is known before the image is looked at. */
interface Wanted extends InitOptions {
  /** The digest that it has to have. */
  expected?: Sha256;
}

/** The same, and the manifest's path: what is relative starts from there. */
interface WantedFor extends Wanted {
  path: string;
  /** The name that a manifest keeps, which is the cache's directory. */
  kept?: string;
}

function isAddress(ref: string): boolean {
  return /^https?:/i.test(ref);
}

function expectedDigest(options: InitOptions): Sha256 | undefined {
  const { ref = "", sha256: text, sha256sums } = options;
  if (sha256sums !== undefined && (!isAddress(ref) || text !== undefined)) {
    throw new ToolsmithError(
      "usage",
      "Cannot use a list of digests here",
      { hint: "--sha256sums goes with an https:// address, without --sha256" },
    );
  }
  const expected = text === undefined ? undefined : parseSha256(text);
  if (text === undefined || expected !== undefined) return expected;
  throw new ToolsmithError("usage", `Not a SHA-256: ${text}`, {
    hint: "it is what `sha256sum IMAGE` prints: 64 hex digits",
  });
}

async function imageOfReference(
  ref: string,
  options: Wanted,
): Promise<NewImage> {
  const reference = parseReference(ref);
  const program = oras(registryOptions(options));
  const artifact = await fetchForArch(
    reference,
    options.arch ?? Deno.build.arch,
    program.fetchManifest,
  );
  return {
    name: imageNameOf(reference.repository),
    source: `oci://${formatReference(reference)}`,
    sha256: selectImageLayer(artifact, options.expected).sha256,
  };
}

/** Downloads the image: what is pinned is what has been seen. */
async function imageOfAddress(
  address: string,
  { path, expected, kept, ...options }: WantedFor,
): Promise<NewImage> {
  const root = workspaceRoot(path);
  const source = parseImageSource(address, root) as HttpsSource;
  const name = options.name ?? kept ?? imageNameOf(source.url.pathname);
  assertImageName(name);
  const pinned = expected ?? await listedDigest(source, options);
  if (pinned === undefined) {
    const image = { name, source };
    const sha256 = await downloadUnpinned(image, { ...options, root });
    return { name, source: address, sha256 };
  }
  const image = { name, source, sha256: pinned };
  await hydrate({ path, root, image, tools: {}, operations: [] }, options);
  return { name, source: address, sha256: pinned };
}

async function listedDigest(
  { url }: HttpsSource,
  { sha256sums, ...options }: InitOptions,
): Promise<Sha256 | undefined> {
  if (sha256sums === undefined) return undefined;
  const list = parseImageSource(sha256sums, ".");
  if (list.kind === "https") {
    return await publishedDigest(list.url, url, options);
  }
  throw new ToolsmithError(
    "usage",
    `Not the address of a list of digests: ${sha256sums}`,
    { hint: "it begins with https://; a digest at hand goes with --sha256" },
  );
}

async function imageOfFile(
  file: string,
  { path: manifest, expected, onEvent, signal }: WantedFor,
): Promise<NewImage> {
  const { bytes: total } = await inspectImage(file);
  const name = imageNameOf(file);
  const emit = emitter(onEvent);
  const onBytes = (bytes: number) =>
    emit({ type: "checksum_progress", image: name, bytes, total });
  const digest: Sha256 = await sha256(fileChunks(file, { onBytes, signal }));
  if (expected !== undefined && digest !== expected) {
    throw new ToolsmithError(
      "checksum_mismatch",
      `Checksum mismatch for ${file}: expected ${expected}, actual ${digest}`,
      { hint: "find out which of both is right before you use the image" },
    );
  }
  // The manifest moves with its workspace: the path starts from its directory.
  const path: string = relative(dirname(manifest), file);
  const posix = path.replaceAll(SEPARATOR, "/");
  const source = /^(?:\.\.\/|\/|[a-z]:)/i.test(posix) ? posix : `./${posix}`;
  return { name, source, sha256: digest };
}
