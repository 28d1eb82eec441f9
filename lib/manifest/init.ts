/**
 * Makes a manifest for an image that exists: in a registry, or on this host.
 *
 * @module
 */
import { dirname, join, relative, resolve, SEPARATOR } from "../path.ts";
import { selectImageLayer } from "../oci/artifact.ts";
import { imageNameOf, type NewImage } from "./format.ts";
import { fileChunks, type Sha256, sha256 } from "../system/digest.ts";
import { processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import { emitter, type OnEvent } from "../events.ts";
import { loadManifest, type Manifest } from "./manifest.ts";
import { type ManifestChange, writeManifest } from "./write.ts";
import { oras } from "../oci/oras.ts";
import { type RegistryOptions, registryOptions } from "../oci/registry.ts";
import { inspectImage } from "../image/inspect.ts";
import { formatReference, parseReference } from "../oci/reference.ts";

/** What {@linkcode init} takes: either `ref` or `file`. */
export interface InitOptions extends RegistryOptions {
  /** An artifact in a registry; it is asked for its image's digest. */
  ref?: string;
  /** An image of this host; it is hashed. */
  file?: string;
  /** Name of the image. @default {undefined} that of the repository or file */
  name?: string;
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
 * `--allow-run=oras` for a `ref`, `--allow-read` for a `file`.
 *
 * @param options The image, and the manifest.
 * @returns The manifest.
 * @throws {ToolsmithError} `usage` when the manifest exists and is not to be
 * updated, or not exactly one image is given; `manifest_invalid`,
 * `payload_missing`, `payload_ambiguous`, and those of the registry or the file.
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
  if (!options.update && await exists(path)) {
    throw new ToolsmithError(
      "usage",
      `Cannot write manifest ${path}: it exists already`,
      { hint: "--update changes its image, and keeps all else" },
    );
  }
  const image = ref !== undefined
    ? await imageOfReference(ref, options)
    : await imageOfFile(resolve(cwd, file!), path, options);
  if (options.name !== undefined) image.name = options.name;
  const rename = options.name !== undefined;
  const outcome = await writeManifest(path, image, { rename });
  return { path, outcome, manifest: await loadManifest(path, { cwd, env }) };
}

async function imageOfReference(
  ref: string,
  options: InitOptions,
): Promise<NewImage> {
  const reference = parseReference(ref);
  const artifact = await oras(registryOptions(options))
    .fetchManifest(reference);
  return {
    name: imageNameOf(reference.repository),
    source: `oci://${formatReference(reference)}`,
    sha256: selectImageLayer(artifact).sha256,
  };
}

async function imageOfFile(
  file: string,
  manifest: string,
  { onEvent, signal }: InitOptions,
): Promise<NewImage> {
  const { bytes: total } = await inspectImage(file);
  const name = imageNameOf(file);
  const emit = emitter(onEvent);
  const onBytes = (bytes: number) =>
    emit({ type: "checksum_progress", image: name, bytes, total });
  const digest: Sha256 = await sha256(fileChunks(file, { onBytes, signal }));
  // The manifest moves with its workspace: the path starts from its directory.
  const path: string = relative(dirname(manifest), file);
  const posix = path.replaceAll(SEPARATOR, "/");
  const source = /^(?:\.\.\/|\/|[a-z]:)/i.test(posix) ? posix : `./${posix}`;
  return { name, source, sha256: digest };
}

async function exists(path: string): Promise<boolean> {
  return await Deno.lstat(path).then(() => true, (error) => {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  });
}
