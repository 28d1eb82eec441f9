/**
 * The files of an artifact: which they are, and under what titles they are
 * published.
 *
 * @module
 */
import { basename, dirname, join, resolve } from "../path.ts";
import { isPlainTitle } from "../oci/artifact.ts";
import { ToolsmithError } from "../errors.ts";
import { printable } from "../system/text.ts";
import { foldName, isPortableName } from "../system/portable_name.ts";
import { makeOwnDir } from "./_own_dir.ts";

/** A file that is published beside the image. */
export interface ExtraFile {
  /** Its path. */
  path: string;
  /** Its media type, such as `application/json`. */
  mediaType: string;
}

/** A file on its way into an artifact. */
export interface ArtifactFile extends ExtraFile {
  /** The name that the artifact records for it. */
  title: string;
}

/** A directory that `oras push` runs in; disposing it removes it if it was made. */
export interface PushDir extends AsyncDisposable {
  /** The directory. */
  cwd: string;
  /** The files, each by a name in the directory. */
  files: ExtraFile[];
}

const MEDIA_TYPE = /^[a-z0-9][\w!#$&^.+-]*\/[a-z0-9][\w!#$&^.+-]*$/i;

/**
 * Reads a pair `path:mediaType`, as `oras push` takes it.
 *
 * @param text The pair; the path may hold colons.
 * @returns Its parts.
 * @throws {ToolsmithError} `usage`.
 *
 * @example
 * ```ts
 * import { parseExtra } from "./layers.ts";
 *
 * const { path, mediaType } = parseExtra("a:b.json:application/json");
 * if (path !== "a:b.json" || mediaType !== "application/json") throw "";
 * ```
 */
export function parseExtra(text: string): ExtraFile {
  const colon = text.lastIndexOf(":");
  const path = text.slice(0, Math.max(0, colon));
  const mediaType = text.slice(colon + 1);
  if (path !== "" && MEDIA_TYPE.test(mediaType)) return { path, mediaType };
  throw new ToolsmithError(
    "usage",
    `Cannot publish extra file "${text}": it is not path:mediaType`,
    { hint: `write ${path || text || "PATH"}:application/json, for example` },
  );
}

/**
 * The title that an image is published under: its bare file name, changed where
 * a consumer would not find it or not take it.
 *
 * @param path The image's path.
 * @returns The title; it ends in `.qcow2`, and every system can have it.
 */
export function imageTitle(path: string): string {
  const name = basename(path).toWellFormed();
  const title = /\.qcow2$/i.test(name) ? name : `${name}.qcow2`;
  const plain = printable(title).replace(/[\\:*?"<>|\p{Cc}]/gu, "-");
  if (isPortableName(plain)) return plain;
  // A device's name, or one that is too long.
  const other = `image-${plain}`;
  return isPortableName(other) ? other : "image.qcow2";
}

/**
 * Gives the extra files their titles, and refuses two files of one title.
 *
 * @param image The image.
 * @param extras The other files.
 * @returns All files, the image first.
 * @throws {ToolsmithError} `usage`.
 */
export function artifactFiles(
  image: ArtifactFile,
  extras: ExtraFile[],
): ArtifactFile[] {
  const files = [image];
  for (const extra of extras) {
    const title = basename(extra.path);
    if (!isPlainTitle(title)) {
      throw new ToolsmithError(
        "usage",
        `Cannot publish extra file ${extra.path}: consumers refuse its name`,
        { hint: "rename it: every system must be able to have it" },
      );
    }
    // Some file systems fold case: there the two would be one file.
    const same = files.find((file) => foldName(file.title) === foldName(title));
    if (same) {
      throw new ToolsmithError(
        "usage",
        `Cannot publish both ${same.path} and ${extra.path}: ` +
          "a consumer gets all files in one directory",
        { hint: "rename one of them" },
      );
    }
    files.push({ ...extra, title });
  }
  return files;
}

/**
 * Finds the directory to push from, as `oras` records the paths that it is given.
 * It is the files' own directory where they have one and their own names, else a
 * new one with links to them.
 *
 * Needs `--allow-read` and `--allow-write`, without limits, where it makes one.
 *
 * @param files The files.
 * @returns The directory, and the files as seen from there.
 */
export async function pushDir(files: ArtifactFile[]): Promise<PushDir> {
  const paths = files.map(({ path }) => resolve(path));
  const home = dirname(paths[0]);
  const named = files.map(({ title, mediaType }) => ({
    path: `./${title}`,
    mediaType,
  }));
  if (files.every(({ title }, at) => join(home, title) === paths[at])) {
    return { cwd: home, files: named, [Symbol.asyncDispose]: async () => {} };
  }
  await using undo = new AsyncDisposableStack();
  const dir = undo.use(await makeOwnDir("publish"));
  for (const [at, { title }] of files.entries()) {
    await link(paths[at], join(dir.path, title));
  }
  const all = undo.move();
  const dispose = () => all.disposeAsync();
  return { cwd: dir.path, files: named, [Symbol.asyncDispose]: dispose };
}

/** Windows lets not everybody make symbolic links; a copy serves as well. */
async function link(from: string, to: string) {
  try {
    await Deno.symlink(from, to);
  } catch (error) {
    if (Deno.build.os !== "windows") throw error;
    await Deno.copyFile(from, to);
  }
}
