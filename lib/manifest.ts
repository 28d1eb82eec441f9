/**
 * The manifest, `.toolsmith/tools.json`: found, read and validated.
 *
 * The format is described in docs/consuming.md; docs/tools.schema.json is the
 * same for editors.
 *
 * @module
 */
import { basename, dirname, join, resolve } from "@std/path";
import { parseSha256, type Sha256 } from "./digest.ts";
import { type Environment, processEnvironment } from "./environment.ts";
import { ToolsmithError } from "./errors.ts";
import { type ImageSource, parseImageSource } from "./reference.ts";

/** The image that a manifest names. */
export interface ManifestImage {
  /** Its name, and its folder's name in the cache. */
  name: string;
  /** Where the QCOW2 comes from. */
  source: ImageSource;
  /** SHA-256 of the QCOW2 file. */
  sha256: Sha256;
  /** A root filesystem archive that other programs use. */
  tarball?: string;
  /** SHA-256 of that archive. */
  tarballSha256?: Sha256;
}

/** A validated manifest. */
export interface Manifest {
  /** Absolute path of the file. */
  path: string;
  /** The workspace: the folder that holds `.toolsmith/`, or the file's own. */
  root: string;
  /** The image. */
  image: ManifestImage;
  /** Names of tools, and their paths in the guest. */
  tools: Record<string, string>;
  /** Names of the tools that may be run; empty allows all. */
  operations: string[];
}

/** What {@linkcode loadManifest} takes. */
export interface LoadManifestOptions {
  /** The folder to look from. @default {Deno.cwd()} */
  cwd?: string;
  /** Read for `TOOLSMITH_MANIFEST`. @default {processEnvironment} */
  env?: Environment;
}

const USUAL = join(".toolsmith", "tools.json");
const NAME = /^(?![. ])[^/\\:*?"<>|\p{Cc}]{1,128}(?<![. ])$/u;
const HOW_DIGEST = "it is what `sha256sum IMAGE.qcow2` prints: 64 hex digits";

/**
 * Reads and validates a manifest.
 *
 * Needs `--allow-read` for it.
 *
 * @param path The file. Without it `TOOLSMITH_MANIFEST` names it; without that
 * it is `.toolsmith/tools.json` here or in the nearest folder above.
 * @param options Folder and environment.
 * @returns The manifest.
 * @throws {ToolsmithError} `manifest_not_found`, `manifest_invalid` (names the
 * file and the field), `reference_invalid`, `file_unreadable`.
 *
 * @example
 * ```ts no-assert ignore
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
  let text: string;
  try {
    text = await Deno.readTextFile(file);
  } catch (cause) {
    if (cause instanceof Deno.errors.NotCapable) throw cause;
    if (cause instanceof Deno.errors.NotFound) throw notFound(file);
    throw new ToolsmithError(
      "file_unreadable",
      `Cannot read manifest ${file}: ${(cause as Error).message}`,
      { cause },
    );
  }
  return parseManifest(text, file);
}

/**
 * Says which file is the manifest; it may not exist.
 *
 * @param path The file that the caller names, if any.
 * @param options Folder and environment.
 * @returns Its absolute path.
 * @throws {ToolsmithError} `manifest_not_found` when none is named and none is
 * in this folder or above.
 */
export async function locateManifest(
  path?: string,
  options: LoadManifestOptions = {},
): Promise<string> {
  const { cwd = Deno.cwd(), env = processEnvironment } = options;
  const named = path ?? env.get("TOOLSMITH_MANIFEST");
  if (named) return resolve(cwd, named);
  for (let folder = cwd;; folder = dirname(folder)) {
    const candidate = join(folder, USUAL);
    const stat = await Deno.stat(candidate).catch(() => undefined);
    if (stat?.isFile) return candidate;
    if (dirname(folder) === folder) throw notFound(join(cwd, USUAL));
  }
}

/**
 * Validates the text of a manifest.
 *
 * @param text JSON.
 * @param path The file's path: errors name it, relative paths start from it.
 * @returns The manifest.
 * @throws {ToolsmithError} `manifest_invalid`, `reference_invalid`.
 */
export function parseManifest(text: string, path: string): Manifest {
  const file = resolve(path);
  const top = object(parseJson(text, file), "", file);
  if (isObject(top.toolsmith) && Array.isArray(top.toolsmith.images)) {
    throw invalid(
      file,
      "toolsmith.images",
      "this is a catalog of images, and a manifest names one",
      "copy the entry you want into the `image` of a manifest of its own; `toolsmith init --ref oci://…` writes one",
    );
  }
  const fields = ["$schema", "image", "tools", "operations"];
  onlyKnown(top, fields, "", file);
  if (top.$schema !== undefined) string(top.$schema, "$schema", file);
  const tools = parseTools(top.tools, file);
  return {
    path: file,
    root: workspaceRoot(file),
    image: parseImage(top.image, file),
    tools,
    operations: parseOperations(top.operations, file),
  };
}

/**
 * The workspace that a manifest belongs to.
 *
 * @param file Absolute path of the manifest.
 * @returns The folder that holds `.toolsmith/`, or the manifest's own folder.
 */
export function workspaceRoot(file: string): string {
  const folder = dirname(file);
  return basename(folder) === ".toolsmith" ? dirname(folder) : folder;
}

/**
 * Tells whether a name can be a folder of the cache on every system.
 *
 * @param name The name.
 * @returns `false` for `..`, `a/b`, an empty name, and the like.
 */
export function isImageName(name: string): boolean {
  return NAME.test(name);
}

function parseImage(value: unknown, file: string): ManifestImage {
  if (value === undefined) {
    throw invalid(file, "image", "missing", "see docs/consuming.md");
  }
  const image = object(value, "image", file);
  const known = ["name", "tarball", "sha256", "qcow2", "qcow2_sha256"];
  onlyKnown(image, known, "image.", file);

  const name = required(image, "name", "a name for the cache's folder", file);
  if (!isImageName(name)) {
    throw invalid(
      file,
      "image.name",
      `"${name}" is not a plain folder name`,
      "use letters, digits, dashes and dots, and begin with no dot",
    );
  }
  const qcow2 = required(image, "qcow2", "oci://REGISTRY/REPO:TAG", file);
  let source: ImageSource;
  try {
    source = parseImageSource(qcow2, dirname(file));
  } catch (cause) {
    if (!(cause instanceof ToolsmithError)) throw cause;
    throw new ToolsmithError(
      cause.code,
      `${file}: image.qcow2: ${cause.message}`,
      { hint: cause.hint, cause },
    );
  }
  const digest = required(image, "qcow2_sha256", HOW_DIGEST, file);
  const result: ManifestImage = {
    name,
    source,
    sha256: sha256(digest, "image.qcow2_sha256", file),
  };

  const tarball = optional(image, "tarball", file);
  const tarballSha256 = optional(image, "sha256", file);
  if (Boolean(tarball) !== Boolean(tarballSha256)) {
    const [there, missing] = tarball
      ? ["tarball", "sha256"]
      : ["sha256", "tarball"];
    throw invalid(
      file,
      `image.${missing}`,
      `missing, while image.${there} is given`,
      "give both, or leave both empty",
    );
  }
  if (tarball && tarballSha256) {
    result.tarball = tarball;
    result.tarballSha256 = sha256(tarballSha256, "image.sha256", file);
  }
  return result;
}

function parseTools(value: unknown, file: string): Record<string, string> {
  const tools: Record<string, string> = {};
  if (value === undefined) return tools;
  for (const [name, tool] of Object.entries(object(value, "tools", file))) {
    const field = `tools.${name}`;
    let path: unknown = tool;
    if (isObject(tool)) {
      onlyKnown(tool, ["path"], `${field}.`, file);
      path = tool.path;
    }
    if (typeof path !== "string" || !path.startsWith("/")) {
      throw invalid(
        file,
        field,
        `${show(tool)} is not an absolute path in the guest`,
        `write "${name}": "/usr/bin/${name}"`,
      );
    }
    tools[name] = path;
  }
  return tools;
}

function parseOperations(value: unknown, file: string): string[] {
  if (value === undefined) return [];
  const hint = 'list the names of the tools that may be run: ["NAME"]';
  if (!Array.isArray(value)) {
    throw invalid(file, "operations", `${show(value)} is not a list`, hint);
  }
  value.forEach((name, index) => {
    if (typeof name === "string" && name !== "") return;
    const field = `operations[${index}]`;
    throw invalid(file, field, `${show(name)} is not a name`, hint);
  });
  return value;
}

function parseJson(text: string, file: string): unknown {
  const body = text.replace(/^\uFEFF/, "");
  try {
    return JSON.parse(body);
  } catch (cause) {
    const message = (cause as Error).message;
    const at = Number(/position (\d+)/.exec(message)?.[1] ?? body.length);
    const before = body.slice(0, at).split("\n");
    const column = before[before.length - 1].length + 1;
    const why = message.replace(/ in JSON at position.*/s, "");
    throw new ToolsmithError(
      "manifest_invalid",
      `${file}:${before.length}:${column}: not JSON: ${why}`,
      { hint: "mend the syntax there; JSON has no comments", cause },
    );
  }
}

function sha256(text: string, field: string, file: string): Sha256 {
  const digest = parseSha256(text);
  if (digest) return digest;
  throw invalid(file, field, `"${text}" is not a SHA-256`, HOW_DIGEST);
}

function required(
  object: Record<string, unknown>,
  key: string,
  hint: string,
  file: string,
): string {
  const field = `image.${key}`;
  if (object[key] === undefined) throw invalid(file, field, "missing", hint);
  const text = string(object[key], field, file);
  if (text.trim() === "") throw invalid(file, field, "empty", hint);
  return text;
}

function optional(
  object: Record<string, unknown>,
  key: string,
  file: string,
): string | undefined {
  if (object[key] === undefined) return undefined;
  return string(object[key], `image.${key}`, file).trim() || undefined;
}

function string(value: unknown, field: string, file: string): string {
  if (typeof value === "string") return value;
  throw invalid(file, field, `${show(value)} is not a string`, 'put it in ""');
}

function object(
  value: unknown,
  field: string,
  file: string,
): Record<string, unknown> {
  if (isObject(value)) return value;
  const hint = "see docs/consuming.md for the whole shape";
  throw invalid(file, field, `${show(value)} is not an object`, hint);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A misspelt `operations` would allow every tool: unknown fields are errors. */
function onlyKnown(
  object: Record<string, unknown>,
  known: string[],
  prefix: string,
  file: string,
) {
  for (const key of Object.keys(object)) {
    if (known.includes(key)) continue;
    throw invalid(
      file,
      prefix + key,
      "no such field",
      `the fields are ${known.map((name) => prefix + name).join(", ")}`,
    );
  }
}

function show(value: unknown): string {
  const text = JSON.stringify(value);
  return text.length > 60 ? `${text.slice(0, 57)}…` : text;
}

function notFound(file: string): ToolsmithError {
  return new ToolsmithError(
    "manifest_not_found",
    `Cannot read manifest ${file}: no such file`,
    {
      hint:
        "name it with --manifest PATH or TOOLSMITH_MANIFEST, or write one: toolsmith init --ref oci://REGISTRY/REPO:TAG",
    },
  );
}

function invalid(
  file: string,
  field: string,
  why: string,
  hint: string,
): ToolsmithError {
  const where = field ? `${file}: ${field}` : file;
  return new ToolsmithError("manifest_invalid", `${where}: ${why}`, { hint });
}
