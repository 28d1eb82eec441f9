/**
 * Writes an image into a manifest: a new one, or one that a person keeps, of
 * which nothing else changes, to the last blank.
 *
 * @module
 */
import { dirname, resolve } from "../path.ts";
import { consumerManifest, formatManifest, type NewImage } from "./format.ts";
import { systemError } from "../errors.ts";
import { absentAs, replaceFile } from "../system/files.ts";
import { jsonFields } from "./_json_fields.ts";
import { jsonMembers } from "./_json_members.ts";
import { assertInWorkspace, parseManifest } from "./manifest.ts";

/** What {@linkcode writeManifest} takes. */
export interface WriteManifestOptions {
  /** Also change the name in a manifest that exists. @default {false} */
  rename?: boolean;
}

/** What {@linkcode writeManifest} did. */
export type ManifestChange = "created" | "updated" | "unchanged";

/**
 * Makes a manifest name an image. One that exists keeps all else: other fields,
 * their order, indentation and line ends. The file is replaced in one rename.
 *
 * Needs `--allow-read` and `--allow-write` for the file and its directory.
 *
 * @param path The manifest; its directory is made if it is not there.
 * @param image The image.
 * @param options Whether to change the name as well.
 * @returns What was done.
 * @throws {ToolsmithError} `manifest_invalid` when the file is no manifest, also
 * with the new image in it; `file_unreadable`; `usage` for a bad name.
 */
export async function writeManifest(
  path: string,
  image: NewImage,
  options: WriteManifestOptions = {},
): Promise<ManifestChange> {
  const fresh = formatManifest(consumerManifest(image));
  return await typedFailure(path, async () => {
    const { file, text } = await readManifestFile(path);
    if (text === undefined) {
      await Deno.mkdir(dirname(file), { recursive: true });
      await replaceFile(file, fresh, { mode: 0o666 });
      return "created";
    }
    const after = setImage(text, file, image, options);
    if (after === text) return "unchanged";
    const { mode } = await Deno.stat(file);
    const kept = (mode ?? 0o644) & 0o777;
    await replaceFile(file, after, { mode: kept, exact: true });
    return "updated";
  });
}

/**
 * Refuses a file that an image cannot be written into: known before a long
 * transfer, not after it.
 *
 * Needs `--allow-read` for the file.
 *
 * @param path The manifest; it may not exist.
 * @param options Whether the name will be changed as well.
 * @returns The name that its image will keep; `undefined` where it will not, or
 * there is no manifest.
 * @throws {ToolsmithError} `manifest_invalid`, `file_unreadable`.
 */
export async function assertUpdatable(
  path: string,
  options: WriteManifestOptions = {},
): Promise<string | undefined> {
  return await typedFailure(path, async () => {
    const { file, text } = await readManifestFile(path);
    if (text === undefined) return undefined;
    // What is set may be a placeholder as yet, so that only the rest counts.
    const after = setImage(text, file, ANY_IMAGE, options);
    return options.rename ? undefined : parseManifest(after, file).image.name;
  });
}

/**
 * Is there anything that a new manifest would replace?
 *
 * Needs `--allow-read` for it.
 *
 * @param path The manifest.
 * @returns Whether there is.
 * @throws {ToolsmithError} `file_unreadable` where none can be.
 */
export async function manifestExists(path: string): Promise<boolean> {
  return await typedFailure(path, async () => {
    await assertInWorkspace(resolve(path), "write");
    return await absentAs(false, Deno.lstat(path).then(() => true));
  });
}

const ANY_IMAGE: NewImage = {
  name: "any",
  source: "any.qcow2",
  sha256: "0".repeat(64),
};

async function readManifestFile(path: string) {
  await assertInWorkspace(resolve(path), "write");
  const file = await Deno.realPath(path).catch(() => path);
  return { file, text: await absentAs(undefined, Deno.readTextFile(file)) };
}

async function typedFailure<T>(
  path: string,
  work: () => Promise<T>,
): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    throw systemError(cause, { what: `Cannot write manifest ${path}` });
  }
}

/**
 * Puts an image into the text of a manifest.
 *
 * @param text The manifest. A placeholder for what is set may stand in it.
 * @param path The file's path, for errors.
 * @param image The image.
 * @param options Whether to change the name as well.
 * @returns The text, different in those values alone.
 * @throws {ToolsmithError} `manifest_invalid`.
 */
export function setImage(
  text: string,
  path: string,
  image: NewImage,
  options: WriteManifestOptions = {},
): string {
  const values: Record<string, string> = {
    qcow2: image.source,
    qcow2_sha256: image.sha256,
  };
  if (options.rename) values.name = image.name;
  let result = "";
  let end = 0;
  jsonFields(path, "see docs/consuming.md").parse(text);
  // Before it is validated: fixing a placeholder is what this may be for.
  for (const { key, around, value, from } of jsonMembers(text)) {
    const isImages = around.length === 2 && around[1] === "image";
    if (!isImages || !Object.hasOwn(values, key)) continue;
    if (!value.startsWith('"')) continue;
    result += text.slice(end, from) + JSON.stringify(values[key]);
    end = from + value.length;
  }
  result += text.slice(end);
  parseManifest(result, path);
  return result;
}
