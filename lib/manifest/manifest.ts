/**
 * The manifest, `.toolsmith/tools.json`: found, read and validated.
 *
 * The format is described in docs/consuming.md; docs/tools.schema.json is the
 * same for editors.
 *
 * @module
 */
import { dirname, join, resolve } from "../path.ts";
import { parseSha256, type Sha256 } from "../system/digest.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { systemError, ToolsmithError } from "../errors.ts";
import {
  isForeign,
  type JsonFields,
  jsonFields,
  show,
} from "./_json_fields.ts";
import { isObject, type JsonObject } from "../system/json.ts";
import { isPortableName } from "../system/portable_name.ts";
import { whyOutside, workspaceRoot } from "../system/workspace.ts";
import { type ImageSource, parseImageSource } from "./source.ts";

/** The image that a manifest names. */
export interface ManifestImage {
  /** Its name, and its directory's name in the cache. */
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
  /** The workspace: the directory that holds `.toolsmith/`, or the file's own. */
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
  /** The directory to look from. @default {Deno.cwd()} */
  cwd?: string;
  /** Read for `TOOLSMITH_MANIFEST`. @default {processEnvironment} */
  env?: Environment;
}

const USUAL = join(".toolsmith", "tools.json");
const HOW_DIGEST = "it is what `sha256sum IMAGE.qcow2` prints: 64 hex digits";

/**
 * Reads and validates a manifest.
 *
 * Needs `--allow-read` for it.
 *
 * @param path The file. Without it `TOOLSMITH_MANIFEST` names it; without that
 * it is `.toolsmith/tools.json` here or in the nearest directory above.
 * @param options Directory and environment.
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
  await assertInWorkspace(file, "read");
  let text: string;
  try {
    text = await Deno.readTextFile(file);
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) throw notFound(file);
    throw systemError(cause, { what: `Cannot read manifest ${file}` });
  }
  return parseManifest(text, file);
}

/**
 * Refuses a manifest that a workspace has elsewhere, behind a symbolic link.
 *
 * Needs `--allow-read` for it and its directory.
 *
 * @param file Absolute path of the manifest; it may not exist.
 * @param what What cannot be done, for the error.
 * @throws {ToolsmithError} `file_unreadable`.
 */
export async function assertInWorkspace(
  file: string,
  what: "read" | "write",
): Promise<void> {
  const why = await whyOutside(file);
  if (why === undefined) return;
  throw new ToolsmithError(
    "file_unreadable",
    `Cannot ${what} manifest ${file}: ${why}`,
    {
      hint:
        "replace the link by what it leads to, or name that file: --manifest PATH",
    },
  );
}

/**
 * Says which file is the manifest; it may not exist.
 *
 * @param path The file that the caller names, if any.
 * @param options Directory and environment.
 * @returns Its absolute path.
 * @throws {ToolsmithError} `manifest_not_found` when none is named and none is
 * in this directory or above; `file_unreadable` for one that may not be looked at.
 */
export async function locateManifest(
  path?: string,
  options: LoadManifestOptions = {},
): Promise<string> {
  const { cwd = Deno.cwd(), env = processEnvironment } = options;
  const named = path ?? env.get("TOOLSMITH_MANIFEST");
  if (named) return resolve(cwd, named);
  for (let dir = cwd;; dir = dirname(dir)) {
    const candidate = join(dir, USUAL);
    const stat = await Deno.stat(candidate).catch((cause) => {
      // It would be wrong to take one of a directory above instead.
      if (!(cause instanceof Deno.errors.PermissionDenied)) return undefined;
      throw systemError(cause, { what: `Cannot read manifest ${candidate}` });
    });
    if (stat?.isFile) return candidate;
    if (dirname(dir) === dir) throw notFound(join(cwd, USUAL));
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
  const json = jsonFields(file, "see docs/consuming.md for the whole shape");
  const top = json.object(json.parse(text), "");
  if (isObject(top.toolsmith) && Array.isArray(top.toolsmith.images)) {
    throw json.invalid(
      "toolsmith.images",
      "this is a catalog of images, and a manifest names one",
      "copy the entry you want into the `image` of a manifest of its own; `toolsmith init --ref oci://…` writes one",
    );
  }
  // A misspelt `operations` would allow every tool: unknown fields are errors.
  json.onlyKnown(top, ["$schema", "image", "tools", "operations"]);
  json.optional(top, "$schema");
  const tools = parseTools(json, top.tools);
  return {
    path: file,
    root: workspaceRoot(file),
    image: parseImage(json, top.image, dirname(file)),
    tools,
    operations: parseOperations(json, top.operations),
  };
}

/**
 * Whether a name can be a directory of the cache on every system.
 *
 * @param name The name.
 * @returns `false` for `..`, `a/b`, an empty name, and the like.
 */
export function isImageName(name: string): boolean {
  return isPortableName(name) && !/^[. ]|^.{129}/su.test(name);
}

function parseImage(
  json: JsonFields,
  value: unknown,
  dir: string,
): ManifestImage {
  if (value === undefined) {
    throw json.invalid("image", "missing", "see docs/consuming.md");
  }
  const image = json.object(value, "image");
  const known = ["name", "tarball", "sha256", "qcow2", "qcow2_sha256"];
  json.onlyKnown(image, known, "image.");

  const how = "a name for the cache's directory";
  const name = json.required(image, "image.name", how);
  if (!isImageName(name)) {
    throw json.invalid(
      "image.name",
      `${show(name)} is not a plain directory name`,
      "use letters, digits, dashes and dots, and begin with no dot",
    );
  }
  const source = parseSource(json, image, dir);
  const digest = json.required(image, "image.qcow2_sha256", HOW_DIGEST);
  const result: ManifestImage = {
    name,
    source,
    sha256: parseDigest(json, digest, "image.qcow2_sha256"),
  };

  const tarball = json.optional(image, "image.tarball");
  const tarballSha256 = json.optional(image, "image.sha256");
  if (Boolean(tarball) !== Boolean(tarballSha256)) {
    const [there, missing] = tarball
      ? ["tarball", "sha256"]
      : ["sha256", "tarball"];
    throw json.invalid(
      `image.${missing}`,
      `missing, while image.${there} is given`,
      "give both, or leave both empty",
    );
  }
  if (tarball && tarballSha256) {
    result.tarball = tarball;
    result.tarballSha256 = parseDigest(json, tarballSha256, "image.sha256");
  }
  return result;
}

function parseSource(
  json: JsonFields,
  image: JsonObject,
  dir: string,
): ImageSource {
  const field = "image.qcow2";
  const text = json.required(image, field, "oci://REGISTRY/REPO:TAG");
  try {
    return parseImageSource(text, dir);
  } catch (cause) {
    if (!(cause instanceof ToolsmithError)) throw cause;
    const { message } = json.invalid(field, cause.message, "");
    throw new ToolsmithError(cause.code, message, { hint: cause.hint, cause });
  }
}

function parseDigest(json: JsonFields, text: string, field: string): Sha256 {
  const digest = parseSha256(text);
  if (digest) return digest;
  throw json.invalid(field, `${show(text)} is not a SHA-256`, HOW_DIGEST);
}

function parseTools(
  json: JsonFields,
  value: unknown,
): Record<string, string> {
  if (value === undefined) return {};
  const tools = Object.entries(json.object(value, "tools"))
    .filter(([name, tool]) => !isForeign(name) || isPath(tool));
  // Unlike an assignment, this keeps a tool that is called `__proto__`.
  return Object.fromEntries(tools.map(([name, tool]) => {
    const field = `tools.${name}`;
    let path: unknown = tool;
    if (isObject(tool)) {
      json.onlyKnown(tool, ["path"], `${field}.`);
      path = tool.path;
    }
    if (isPath(path)) return [name, path];
    throw json.invalid(
      field,
      `${show(tool)} is not an absolute path in the guest`,
      `write "${name}": "/usr/bin/${name}"`,
    );
  }));
}

function isPath(value: unknown): value is string {
  return typeof value === "string" && value.startsWith("/");
}

function parseOperations(json: JsonFields, value: unknown): string[] {
  if (value === undefined) return [];
  const hint = 'list the names of the tools that may be run: ["NAME"]';
  if (!Array.isArray(value)) {
    throw json.invalid("operations", `${show(value)} is not a list`, hint);
  }
  value.forEach((name, index) => {
    if (typeof name === "string" && name !== "") return;
    const field = `operations[${index}]`;
    throw json.invalid(field, `${show(name)} is not a name`, hint);
  });
  return value;
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
