/**
 * Finds, reads and validates the manifest, `.toolsmith/tools.json`.
 *
 * docs/consuming.md describes the format; docs/tools.schema.json is the same as
 * a JSON Schema for editors.
 */
import { dirname, join, resolve } from "../path.ts";
import { parseSha256, type Sha256 } from "../system/digest.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { systemError, ToolsmithError } from "../errors.ts";
import {
  isExtensionField,
  type JsonField,
  parseJsonField,
  toShortJson,
} from "./_json_field.ts";
import { isJsonObject } from "../system/json.ts";
import { isPortableFileName } from "../system/portable_name.ts";
import { workspaceOf, workspaceSymlinkReason } from "../system/ownership.ts";
import { type ImageSource, parseImageSource } from "./image_source.ts";
import { createSignatureRule, type SignatureRule } from "./signature_rule.ts";

/** The image that a manifest pins. */
export interface ManifestImage {
  /** Image name, also the name of its cache directory. */
  name: string;
  /** Source of the QCOW2 file. */
  source: ImageSource;
  /** SHA-256 of the QCOW2 file. */
  sha256: Sha256;
  /** Root filesystem archive for other programs. */
  tarball?: string;
  /** SHA-256 of the archive. */
  tarballSha256?: Sha256;
  /** Who must have signed the image's artifact. */
  signature?: SignatureRule;
}

/** A validated manifest. */
export interface Manifest {
  /** Absolute path of the manifest file. */
  path: string;
  /** Workspace: the parent of `.toolsmith/`, or else the file's directory. */
  workspace: string;
  /** The pinned image. */
  image: ManifestImage;
  /** Maps tool names to paths in the guest. */
  tools: Record<string, string>;
  /** Names of the allowed tools; empty allows all. */
  operations: string[];
}

/** Options of {@linkcode loadManifest}. */
export interface LoadManifestOptions {
  /** Directory where the search starts. @default {Deno.cwd()} */
  cwd?: string;
  /** Read for `TOOLSMITH_MANIFEST`. @default {processEnvironment} */
  env?: Environment;
}

const DEFAULT_MANIFEST_PATH = join(".toolsmith", "tools.json");
export const IMAGE_NAME_HINT =
  "use at most 128 letters, digits and dashes; dots only inside";
const SHA256_HINT =
  "set this field to the output of `sha256sum IMAGE.qcow2`: 64 hex digits";

/**
 * Reads and validates a manifest.
 *
 * Needs `--allow-read` for the file.
 *
 * @param path The manifest file. Defaults to `TOOLSMITH_MANIFEST`, then to
 * `.toolsmith/tools.json` in `cwd` or the nearest parent directory.
 * @param options Start directory and environment.
 * @returns The validated manifest.
 * @throws {ToolsmithError} `manifest_not_found`, `manifest_invalid` (names the
 * file and the field), `reference_invalid`, `file_unreadable`.
 *
 * @example
 * ```ts no-run
 * import { loadManifest } from "@fountain/toolsmith";
 *
 * const manifest = await loadManifest(".toolsmith/tools.json");
 * console.log(manifest.image.sha256);
 * ```
 */
export async function loadManifest(
  path?: string,
  options: LoadManifestOptions = {},
): Promise<Manifest> {
  const file = await locateManifest(path, options);
  await rejectSymlinkedManifest(file, "read");
  const text = await Deno.readTextFile(file).catch((cause) => {
    if (cause instanceof Deno.errors.NotFound) throw noManifestError(file);
    throw systemError(cause, { messagePrefix: `Cannot read manifest ${file}` });
  });
  return parseManifest(text, file);
}

/**
 * Rejects a manifest that a symbolic link in the workspace leads to: the link may come
 * with a cloned repository. The path is absolute and need not exist.
 */
export async function rejectSymlinkedManifest(
  file: string,
  action: "read" | "write",
): Promise<void> {
  const why = await workspaceSymlinkReason(file);
  if (why === undefined) return;
  const message = `Cannot ${action} manifest ${file}: ${why}`;
  const hint =
    "replace the symbolic link with its target, or pass the target: --manifest PATH";
  throw new ToolsmithError("file_unreadable", message, { hint });
}

/**
 * Returns the absolute path of the manifest file, without reading it. A file that is
 * named need not exist; else `cwd` or a parent directory must have one
 * (`manifest_not_found`).
 */
export async function locateManifest(
  path?: string,
  options: LoadManifestOptions = {},
): Promise<string> {
  const { cwd = Deno.cwd(), env = processEnvironment } = options;
  const named = path ?? env.get("TOOLSMITH_MANIFEST");
  if (named) return resolve(cwd, named);
  for (let dir = cwd;; dir = dirname(dir)) {
    const candidate = join(dir, DEFAULT_MANIFEST_PATH);
    const stat = await Deno.stat(candidate).catch((cause) => {
      // Using a parent directory's manifest instead would be wrong.
      if (!(cause instanceof Deno.errors.PermissionDenied)) return undefined;
      const messagePrefix = `Cannot read manifest ${candidate}`;
      throw systemError(cause, { messagePrefix });
    });
    if (stat?.isFile) return candidate;
    if (dirname(dir) === dir) {
      throw noManifestError(join(cwd, DEFAULT_MANIFEST_PATH));
    }
  }
}

/**
 * Validates the text of a manifest.
 *
 * @param text JSON text.
 * @param path The file's path, for errors and as the base of relative paths.
 * @returns The validated manifest.
 * @throws {ToolsmithError} `manifest_invalid`, `reference_invalid`.
 */
export function parseManifest(text: string, path: string): Manifest {
  const file = resolve(path);
  const json = parseJsonField(text, file);
  const { toolsmith } = json.object();
  if (isJsonObject(toolsmith) && Array.isArray(toolsmith.images)) {
    throw json.error(
      "the file is a catalog of images, but a manifest names one image",
      "copy one entry into the `image` field of a new manifest, or create a manifest: toolsmith init --ref oci://REGISTRY/REPO:TAG",
      "toolsmith.images",
    );
  }
  // A misspelt `operations` would allow every tool: unknown fields are errors.
  const top = json.fields("$schema", "image", "tools", "operations");
  top.$schema.optionalText();
  const tools = parseToolsField(top.tools);
  return {
    path: file,
    workspace: workspaceOf(file),
    image: parseImageField(top.image, dirname(file)),
    tools,
    operations: parseOperationsField(top.operations),
  };
}

/** Whether a name is a valid cache directory name on every system. */
export function isValidImageName(name: string): boolean {
  return isPortableFileName(name) && !/^[. ]|^.{129}/su.test(name);
}

function parseImageField(field: JsonField, dir: string): ManifestImage {
  if (field.value === undefined) {
    const hint = "add the `image` object that docs/consuming.md describes";
    throw field.error("missing", hint);
  }
  const image = field.fields(
    "name",
    "tarball",
    "sha256",
    "qcow2",
    "qcow2_sha256",
    "signature",
  );
  const nameHint = "set image.name to a name for the image's cache directory";
  const name = image.name.requiredText(nameHint);
  if (!isValidImageName(name)) {
    const why = `${toShortJson(name)} is not a valid directory name`;
    throw image.name.error(why, IMAGE_NAME_HINT);
  }
  const source = parseQcow2Field(image.qcow2, dir);
  const digest = image.qcow2_sha256.requiredText(SHA256_HINT);
  const sha256 = parseSha256Field(image.qcow2_sha256, digest);
  const result: ManifestImage = { name, source, sha256 };
  const tarball = image.tarball.optionalText();
  const tarballDigest = image.sha256.optionalText();
  if (Boolean(tarball) !== Boolean(tarballDigest)) {
    const pair = [image.tarball, image.sha256];
    const [present, missing] = tarball ? pair : pair.reverse();
    const hint = "set both image.tarball and image.sha256, or leave both empty";
    throw missing.error(`missing, but ${present.path} is set`, hint);
  }
  if (tarball && tarballDigest) {
    result.tarball = tarball;
    result.tarballSha256 = parseSha256Field(image.sha256, tarballDigest);
  }
  if (image.signature.value !== undefined) {
    result.signature = parseSignatureField(image.signature, source);
  }
  return result;
}

function parseQcow2Field(field: JsonField, dir: string): ImageSource {
  const hint = "set image.qcow2 to oci://REGISTRY/REPO:TAG, a URL or a path";
  const text = field.requiredText(hint);
  try {
    return parseImageSource(text, dir);
  } catch (cause) {
    if (!(cause instanceof ToolsmithError)) throw cause;
    const { message } = field.error(cause.message, "");
    throw new ToolsmithError(cause.code, message, { hint: cause.hint, cause });
  }
}

function parseSignatureField(
  field: JsonField,
  { kind }: ImageSource,
): SignatureRule {
  const rule = field.fields("identity", "issuer", "repository", "key");
  const fields = Object.fromEntries(
    Object.entries(rule).map(([name, text]) => [name, text.optionalText()]),
  );
  if (kind !== "oci") {
    const hint = "use an oci:// image, or remove image.signature";
    throw field.error("only oci:// images have signatures", hint);
  }
  try {
    return createSignatureRule(fields);
  } catch (error) {
    const { message, hint = "" } = error as ToolsmithError;
    throw field.error(message, hint);
  }
}

function parseSha256Field(field: JsonField, text: string): Sha256 {
  const digest = parseSha256(text);
  if (digest) return digest;
  throw field.error(`${toShortJson(text)} is not a SHA-256`, SHA256_HINT);
}

function parseToolsField(field: JsonField): Record<string, string> {
  if (field.value === undefined) return {};
  const tools = Object.entries(field.object()).filter(([name, tool]) =>
    !isExtensionField(name) || isAbsoluteGuestPath(tool)
  );
  // Unlike an assignment, this keeps a tool that is called `__proto__`.
  return Object.fromEntries(tools.map(([name, value]) => {
    const tool = field.child(name, value);
    const path = isJsonObject(value) ? tool.fields("path").path.value : value;
    if (isAbsoluteGuestPath(path)) return [name, path];
    throw tool.error(
      `${toShortJson(value)} is not an absolute path in the guest`,
      `write the path of the tool: "${name}": "/usr/bin/${name}"`,
    );
  }));
}

function isAbsoluteGuestPath(value: unknown): value is string {
  return typeof value === "string" && value.startsWith("/");
}

function parseOperationsField(field: JsonField): string[] {
  const { value = [], path } = field;
  const hint = 'set operations to a list of allowed tool names: ["NAME"]';
  if (!Array.isArray(value)) {
    throw field.error(`${toShortJson(value)} is not a list`, hint);
  }
  value.forEach((name, index) => {
    if (typeof name === "string" && name !== "") return;
    const why = `${toShortJson(name)} is not a non-empty string`;
    throw field.error(why, hint, `${path}[${index}]`);
  });
  return value;
}

function noManifestError(file: string): ToolsmithError {
  const message = `Cannot read manifest ${file}: no such file`;
  const hint =
    "pass a manifest with --manifest PATH or TOOLSMITH_MANIFEST, or create one: toolsmith init --ref oci://REGISTRY/REPO:TAG";
  return new ToolsmithError("manifest_not_found", message, { hint });
}
