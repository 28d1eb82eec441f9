/**
 * Writes a manifest that pins an existing image: in a registry, behind an
 * `https://` URL, or at a local path.
 */
import { dirname, join, relative, resolve, SEPARATOR } from "../path.ts";
import { processEnvironment } from "../environment.ts";
import { systemError, ToolsmithError } from "../errors.ts";
import { createEmitter, type Emit, type OnEvent } from "../events.ts";
import { inspectImage } from "../image/inspect_image.ts";
import {
  assertValidImageName,
  imageNameFromPath,
  type PinnedImage,
} from "../manifest/manifest_json.ts";
import { loadManifest, type Manifest } from "../manifest/manifest.ts";
import {
  formatImageSource,
  type HttpsSource,
  parseImageSource,
} from "../manifest/image_source.ts";
import {
  createSignatureRule,
  type SignatureRule,
} from "../manifest/signature_rule.ts";
import {
  assertManifestUpdatable,
  manifestExists,
  type ManifestWriteResult,
  writeManifest,
} from "../manifest/write_manifest.ts";
import { parseReference } from "../oci/reference.ts";
import { parseSha256, type Sha256 } from "../system/digest.ts";
import { workspaceOf } from "../system/ownership.ts";
import { hashFile } from "../transfer/file_digest.ts";
import type { FetchOptions } from "./fetch_image.ts";
import { hydrate } from "./hydrate.ts";
import { fetchDigestFromList } from "./_checksum_list.ts";
import { downloadUnpinnedImage } from "./_add_to_cache.ts";
import { resolveArtifact } from "./_registry_pull.ts";

/** What {@linkcode init} takes: either `ref` or `file`. */
export interface InitOptions extends FetchOptions {
  /**
   * A registry reference, whose manifest states the image's digest, or an
   * `https://` URL, whose image is downloaded into the cache.
   */
  ref?: string;
  /** Path of a local image, which is hashed. */
  file?: string;
  /** The image's expected SHA-256. @default {undefined} any */
  sha256?: string;
  /**
   * The `https://` URL of a checksum list such as `SHA256SUMS`, for the image of an
   * `https://` URL.
   *
   * @default {undefined} none
   */
  sha256sums?: string;
  /**
   * Who must have signed the artifact of a `ref`: an identity with its issuer, or a
   * PEM file with a public key. Written into the manifest.
   *
   * @default {undefined} what an updated manifest says
   */
  signedBy?: string;
  /** Issuer of `signedBy`. @default {undefined} GitHub's, for its workflows */
  issuer?: string;
  /** Repository of `signedBy`. @default {undefined} that of GitHub's workflow */
  sourceRepository?: string;
  /** Path of the public key. @default {undefined} none */
  signingKey?: string;
  /** Name of the image. @default {undefined} derived from the repository or file */
  name?: string;
  /** The cache's directory. @default {undefined} `TOOLSMITH_CACHE`, or the workspace's */
  cache?: string;
  /**
   * Path of the manifest to write.
   *
   * @default {undefined} `TOOLSMITH_MANIFEST`, else `.toolsmith/tools.json` here
   */
  manifest?: string;
  /** Replace the image of an existing manifest. @default {false} */
  update?: boolean;
  /** Base directory of relative paths. @default {Deno.cwd()} */
  cwd?: string;
  /** Called with each event. @default {undefined} */
  onEvent?: OnEvent;
}

/** What {@linkcode init} did. */
export interface InitResult {
  /** Absolute path of the manifest. */
  path: string;
  /** Whether the manifest was created, updated or left unchanged. */
  outcome: ManifestWriteResult;
  /** The manifest after the call. */
  manifest: Manifest;
}

/**
 * Writes a manifest that pins an image by its SHA-256.
 *
 * Needs `--allow-read` and `--allow-write` for the manifest's directory; also
 * `--allow-run=oras` for a registry reference, `--allow-read` for a `file`, or the
 * permissions of `hydrate` for an `https://` URL.
 *
 * @param options The image and the manifest's path.
 * @returns The manifest.
 * @throws {ToolsmithError} `usage` when the manifest exists without `update`, or
 * not exactly one image is given; `manifest_invalid`, `payload_missing`,
 * `payload_ambiguous`, `checksum_mismatch`, and errors of the registry, the server
 * or the file.
 *
 * @example
 * ```ts no-run
 * import { init } from "@fountain/toolsmith";
 *
 * const { path } = await init({ ref: "ghcr.io/owner/repo:1.0" });
 * console.log(path);
 * ```
 */
export async function init(options: InitOptions): Promise<InitResult> {
  const { ref, file, cwd = Deno.cwd(), env = processEnvironment } = options;
  if ((ref === undefined) === (file === undefined)) {
    const message =
      "Cannot write a manifest: pass exactly one of --ref and --file";
    const hint = "run: toolsmith init --ref oci://REGISTRY/OWNER/REPO:VERSION";
    throw new ToolsmithError("usage", message, { hint });
  }
  const path = resolve(
    cwd,
    options.manifest ?? env.get("TOOLSMITH_MANIFEST") ??
      join(".toolsmith", "tools.json"),
  );
  // Before any request.
  if (options.name !== undefined) assertValidImageName(options.name);
  const setName = options.name !== undefined;
  const existing = options.update
    ? await assertManifestUpdatable(path, { setName })
    : undefined;
  if (!options.update && await manifestExists(path)) {
    const message = `Cannot write manifest ${path}: the file already exists`;
    const hint = "pass --update to replace the image in the existing manifest";
    throw new ToolsmithError("usage", message, { hint });
  }
  const given = await parseSignatureOptions(options, cwd);
  const signature = given ?? existing?.signature;
  if (signature && (ref === undefined || isHttpUrl(ref))) {
    const message = `Cannot require a signature of ${
      ref ?? file
    }: only images in a registry have signatures`;
    const hint = "use --ref oci://…, or remove image.signature";
    throw new ToolsmithError("usage", message, { hint });
  }
  const expected = await findExpectedDigest(options);
  const name = options.name ?? existing?.name;
  const emit = createEmitter(options.onEvent);
  const image = await pinImage({
    ...options,
    ...{ path, name, expected, signature, emit },
    file: file && resolve(cwd, file),
  });
  const pinned = { ...image, signature: given };
  const outcome = await writeManifest(path, pinned, { setName });
  return { path, outcome, manifest: await loadManifest(path, { cwd, env }) };
}

/** The options of {@linkcode init}, and what follows from them. */
interface InitCall extends InitOptions {
  path: string;
  /** From `sha256` or `sha256sums`. */
  expected?: Sha256;
  signature?: SignatureRule;
  emit: Emit;
}

async function pinImage(call: InitCall): Promise<PinnedImage> {
  const { ref, file } = call;
  if (ref === undefined) return await hashLocalImage(file!, call);
  if (isHttpUrl(ref)) return await downloadAndPinImage(ref, call);
  const reference = parseReference(ref);
  const { name = imageNameFromPath(reference.repository) } = call;
  const { expected: sha256, signature } = call;
  const image = { name, source: reference, sha256, signature };
  const { layer } = await resolveArtifact({ ...call, image }, reference);
  const source = formatImageSource(reference);
  return { name, source, sha256: layer.sha256 };
}

function isHttpUrl(ref: string): boolean {
  return /^https?:/i.test(ref);
}

async function findExpectedDigest(
  options: InitOptions,
): Promise<Sha256 | undefined> {
  const { ref = "", sha256: text, sha256sums } = options;
  if (sha256sums === undefined) {
    const digest = text === undefined ? undefined : parseSha256(text);
    if (text === undefined || digest !== undefined) return digest;
    throw new ToolsmithError("usage", `--sha256 ${text} is not a SHA-256`, {
      hint: "pass the 64 hex digits that `sha256sum IMAGE` prints",
    });
  }
  if (!isHttpUrl(ref) || text !== undefined) {
    const message = text === undefined
      ? "Cannot use --sha256sums: the image is not at an https:// URL"
      : "Cannot use --sha256 and --sha256sums together";
    const hint = "use --sha256sums alone, with the https:// URL of an image";
    throw new ToolsmithError("usage", message, { hint });
  }
  const { url } = parseImageSource(ref, ".") as HttpsSource;
  const list = parseImageSource(sha256sums, ".");
  if (list.kind === "https") {
    return await fetchDigestFromList(list.url, url, options);
  }
  const message = `Cannot use --sha256sums ${sha256sums}: not an https:// URL`;
  const hint = "pass the https:// URL of the checksum list, or --sha256 DIGEST";
  throw new ToolsmithError("usage", message, { hint });
}

async function parseSignatureOptions(
  { signedBy: identity, issuer, sourceRepository, signingKey }: InitOptions,
  cwd: string,
): Promise<SignatureRule | undefined> {
  const file = signingKey && resolve(cwd, signingKey);
  const key = file && await Deno.readTextFile(file).catch((cause) => {
    throw systemError(cause, { messagePrefix: `Cannot read ${file}` });
  });
  const fields = { identity, issuer, repository: sourceRepository, key };
  const isGiven = Object.values(fields).some((it) => it !== undefined);
  return isGiven ? createSignatureRule(fields) : undefined;
}

/** Downloads the image even if the digest is known: a pin is always checked. */
async function downloadAndPinImage(
  ref: string,
  { path, expected, ...options }: InitCall,
): Promise<PinnedImage> {
  const workspace = workspaceOf(path);
  const source = parseImageSource(ref, workspace) as HttpsSource;
  const { name = imageNameFromPath(source.url.pathname) } = options;
  assertValidImageName(name);
  if (expected === undefined) {
    const image = { name, source };
    const sha256 = await downloadUnpinnedImage(image, workspace, options);
    return { name, source: ref, sha256 };
  }
  const image = { name, source, sha256: expected };
  await hydrate({ path, workspace, image, tools: {}, operations: [] }, options);
  return { name, source: ref, sha256: expected };
}

async function hashLocalImage(
  file: string,
  { path: manifest, name = imageNameFromPath(file), ...call }: InitCall,
): Promise<PinnedImage> {
  const { expected, emit, signal } = call;
  const { bytes: total } = await inspectImage(file);
  const onBytesRead = (bytes: number) =>
    emit({ type: "checksum_progress", image: name, bytes, total });
  const { sha256 } = await hashFile(file, { onBytesRead, signal });
  if (expected !== undefined && sha256 !== expected) {
    const message =
      `Checksum mismatch for ${file}: expected ${expected}, actual ${sha256}`;
    const hint = "find out which digest is right before using the image";
    throw new ToolsmithError("checksum_mismatch", message, { hint });
  }
  // A path relative to the manifest stays valid when the workspace moves.
  const path = relative(dirname(manifest), file);
  const posix = path.replaceAll(SEPARATOR, "/");
  const source = /^(?:\.\.\/|\/|[a-z]:)/i.test(posix) ? posix : `./${posix}`;
  return { name, source, sha256 };
}
