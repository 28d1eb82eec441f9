/**
 * The files of an artifact, their titles, its creation time, and the directory to push
 * them from.
 */
import { basename, dirname, join, resolve } from "../path.ts";
import { isPortableTitle } from "../oci/artifact.ts";
import type { Environment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import { sanitizeText } from "../system/sanitize_text.ts";
import { foldNameCase, isPortableFileName } from "../system/portable_name.ts";
import { makeLockedTemporaryDir } from "./_temporary_dir.ts";

export const CREATED_ANNOTATION = "org.opencontainers.image.created";

/** A file to publish along with the image. */
export interface ExtraFile {
  /** The file's path. */
  path: string;
  /** The file's media type, such as `application/json`. */
  mediaType: string;
}

export interface ArtifactFile extends ExtraFile {
  /** The file's name in the artifact. */
  title: string;
}

const MEDIA_TYPE_PATTERN = /^[a-z0-9][\w!#$&^.+-]*\/[a-z0-9][\w!#$&^.+-]*$/i;

/**
 * Parses `path:mediaType`, the form that `oras push` takes.
 *
 * @param text The pair; the path may contain colons.
 * @returns Path and media type.
 * @throws {ToolsmithError} `usage`.
 *
 * @example
 * ```ts
 * import { parseExtraFile } from "./artifact_files.ts";
 *
 * const { path, mediaType } = parseExtraFile("a:b.json:application/json");
 * if (path !== "a:b.json" || mediaType !== "application/json") throw "";
 * ```
 */
export function parseExtraFile(text: string): ExtraFile {
  const colon = text.lastIndexOf(":");
  const path = text.slice(0, Math.max(0, colon));
  const mediaType = text.slice(colon + 1);
  if (path !== "" && MEDIA_TYPE_PATTERN.test(mediaType)) {
    return { path, mediaType };
  }
  const message = `Cannot publish extra file "${text}": expected PATH:TYPE`;
  const hint = `write ${path || text || "PATH"}:application/json, for example`;
  throw new ToolsmithError("usage", message, { hint });
}

/**
 * Returns the image's title: its file name, made portable and with the ending
 * `.qcow2`, as consumers require.
 */
export function imageLayerTitle(path: string): string {
  const name = basename(path).toWellFormed();
  const title = /\.qcow2$/i.test(name) ? name : `${name}.qcow2`;
  const plain = sanitizeText(title).replace(/[\\:*?"<>|\p{Cc}]/gu, "-");
  // It may be a reserved device name, or too long.
  const names = [plain, `image-${plain}`, "image.qcow2"];
  return names.find(isPortableFileName)!;
}

/**
 * Adds titles to the extra files, and rejects two files with the same title. The image
 * is the first file.
 */
export function addExtraFiles(
  image: ArtifactFile,
  extras: ExtraFile[],
): ArtifactFile[] {
  // Compare folded names, as some file systems ignore case.
  const files = new Map([[foldNameCase(image.title), image]]);
  for (const extra of extras) {
    const title = basename(extra.path);
    if (!isPortableTitle(title)) {
      const message =
        `Cannot publish extra file ${extra.path}: its name is not valid on every system`;
      const hint =
        "rename the file: use ASCII letters, digits, dots and dashes";
      throw new ToolsmithError("usage", message, { hint });
    }
    const key = foldNameCase(title);
    const same = files.get(key);
    if (same) {
      const message = `Cannot publish both ${same.path} and ${extra.path}: ` +
        "their names collide in the consumer's directory";
      const hint = "rename one of the two files";
      throw new ToolsmithError("usage", message, { hint });
    }
    files.set(key, { ...extra, title });
  }
  return [...files.values()];
}

/**
 * Prepares the directory to push from, as `oras` records the paths it is given, which
 * are relative to it: the files' own directory if all are in it under their titles,
 * else a temporary one with links, which `undo` removes.
 */
export async function preparePushDir(
  artifactFiles: ArtifactFile[],
  undo: AsyncDisposableStack,
) {
  const files = artifactFiles.map(({ title, mediaType }) => ({
    path: `./${title}`,
    mediaType,
  }));
  const home = dirname(resolve(artifactFiles[0].path));
  const isAtHome = ({ path, title }: ArtifactFile) =>
    resolve(path) === join(home, title);
  if (artifactFiles.every(isAtHome)) return { cwd: home, files };
  const { path: cwd } = undo.use(await makeLockedTemporaryDir("publish"));
  for (const { path, title } of artifactFiles) {
    const [from, to] = [resolve(path), join(cwd, title)];
    await Deno.symlink(from, to).catch(async (error) => {
      if (Deno.build.os !== "windows") throw error;
      // This user may not make symbolic links.
      await Deno.copyFile(from, to);
    });
  }
  return { cwd, files };
}

/**
 * Returns the given time, else `SOURCE_DATE_EPOCH` in seconds
 * (https://reproducible-builds.org/specs/source-date-epoch/), else the file's
 * modification time, as RFC 3339. So the same bytes give the same manifest.
 */
export function creationTime(
  env: Environment,
  times: { given: Date | undefined; modified: Date | null },
): string {
  const time = times.given ?? parseSourceDateEpoch(env) ?? times.modified ??
    new Date(0);
  return time.toISOString().replace(/\.\d+Z$/, "Z");
}

function parseSourceDateEpoch(env: Environment): Date | undefined {
  const epoch = env.get("SOURCE_DATE_EPOCH");
  if (!epoch) return undefined;
  const time = new Date(Number(epoch) * 1000);
  if (/^\d+$/.test(epoch) && !isNaN(time.getTime())) return time;
  const message =
    `Cannot use SOURCE_DATE_EPOCH=${epoch}: expected seconds since 1970`;
  const hint =
    "set SOURCE_DATE_EPOCH to the seconds that `git log -1 --format=%ct` prints";
  throw new ToolsmithError("usage", message, { hint });
}
