/**
 * Pins an image in a new or existing manifest. An existing file keeps its other
 * fields and all formatting.
 */
import { dirname, resolve } from "../path.ts";
import {
  createManifestJson,
  formatManifestJson,
  type ManifestJson,
  type PinnedImage,
} from "./manifest_json.ts";
import { systemError } from "../errors.ts";
import { orIfNotFound, replaceFileAtomically } from "../system/files.ts";
import { walkJsonMembers } from "../system/json.ts";
import { parseJsonField } from "./_json_field.ts";
import {
  type ManifestImage,
  parseManifest,
  rejectSymlinkedManifest,
} from "./manifest.ts";

export interface WriteManifestOptions {
  /** Also change the image name in an existing manifest. @default {false} */
  setName?: boolean;
}

/** Result of {@linkcode writeManifest}. */
export type ManifestWriteResult = "created" | "updated" | "unchanged";

/**
 * Pins an image in a manifest. An existing file keeps its other fields, their order,
 * indentation and line ends, and is replaced atomically. A missing directory is
 * created.
 */
export async function writeManifest(
  path: string,
  image: PinnedImage,
  options: WriteManifestOptions = {},
): Promise<ManifestWriteResult> {
  const fresh = formatManifestJson(createManifestJson(image));
  return await withManifestFile(path, async (file) => {
    const text = await orIfNotFound(Deno.readTextFile(file));
    if (text === undefined) {
      await Deno.mkdir(dirname(file), { recursive: true });
      await replaceFileAtomically(file, fresh, { mode: 0o666 });
      return "created";
    }
    const after = replaceImageFields(text, file, image, options);
    if (after === text) return "unchanged";
    const { mode } = await Deno.stat(file);
    const kept = (mode ?? 0o644) & 0o777;
    await replaceFileAtomically(file, after, { mode: kept, ignoreUmask: true });
    return "updated";
  });
}

/**
 * Rejects a manifest that cannot be updated, before a long transfer rather than after
 * one. Returns the image, with placeholders for what an update replaces; `undefined`
 * for a missing manifest.
 */
export async function assertManifestUpdatable(
  path: string,
  options: WriteManifestOptions = {},
): Promise<ManifestImage | undefined> {
  return await withManifestFile(path, async (file) => {
    const text = await orIfNotFound(Deno.readTextFile(file));
    if (text === undefined) return undefined;
    // The current source and digest may be placeholders: validate the rest.
    const after = replaceImageFields(text, file, PLACEHOLDER_IMAGE, options);
    return parseManifest(after, file).image;
  });
}

export async function manifestExists(path: string): Promise<boolean> {
  const stat = () => orIfNotFound(Deno.lstat(path));
  return await withManifestFile(path, stat) !== undefined;
}

const PLACEHOLDER_IMAGE: PinnedImage = {
  name: "any",
  source: "oci://localhost/any:any",
  sha256: "0".repeat(64),
};

/** A string, or an object of strings. */
const REPLACEABLE_PATTERN =
  /"(?:[^"\\]|\\.)*"|\{(?:[^"{}]|"(?:[^"\\]|\\.)*")*\}/y;

/**
 * Calls `work` with the path behind the links that the user made; refuses a link in the
 * workspace.
 */
async function withManifestFile<T>(
  path: string,
  work: (file: string) => Promise<T>,
): Promise<T> {
  try {
    await rejectSymlinkedManifest(resolve(path), "write");
    return await work(await Deno.realPath(path).catch(() => path));
  } catch (cause) {
    const messagePrefix = `Cannot write manifest ${path}`;
    throw systemError(cause, { messagePrefix });
  }
}

/**
 * Returns the manifest's text with only source and digest, and on request the name and
 * the signature rule, replaced; the replaced values may be placeholders.
 */
export function replaceImageFields(
  text: string,
  path: string,
  image: PinnedImage,
  options: WriteManifestOptions = {},
): string {
  const values: Record<string, string> = {
    qcow2: JSON.stringify(image.source),
    qcow2_sha256: JSON.stringify(image.sha256),
  };
  if (options.setName) values.name = JSON.stringify(image.name);
  const read = parseJsonField(text, path).value as Partial<ManifestJson> | null;
  if (image.signature) {
    const before = text.slice(0, text.indexOf('"qcow2_sha256"'));
    const indentation = before.slice(before.trimEnd().length);
    values.signature = JSON.stringify(image.signature, null, 2)
      .replaceAll("\n", indentation);
    if (!read?.image?.signature) {
      values.qcow2_sha256 += `,${indentation}"signature": ${values.signature}`;
    }
  }
  let result = "";
  let end = 0;
  // Validation comes last, because this may replace an invalid placeholder.
  for (const { key, parentKeys, valueOffset } of walkJsonMembers(text)) {
    const isInImage = parentKeys.length === 2 && parentKeys[1] === "image";
    if (!isInImage || !Object.hasOwn(values, key)) continue;
    REPLACEABLE_PATTERN.lastIndex = valueOffset;
    const [replaced] = REPLACEABLE_PATTERN.exec(text) ?? [];
    if (replaced === undefined) continue;
    result += text.slice(end, valueOffset) + values[key];
    end = valueOffset + replaced.length;
  }
  result += text.slice(end);
  parseManifest(result, path);
  return result;
}
