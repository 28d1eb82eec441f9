/**
 * Directories of the host that a guest may see: the workspace, and exports.
 *
 * @module
 */
import {
  basename,
  dirname,
  isAbsolute,
  join,
  relative,
  resolve,
  SEPARATOR,
} from "../path.ts";
import { systemError, ToolsmithError } from "../errors.ts";
import type { GuestShare } from "../qemu/args.ts";
import { NETWORK_SLOT } from "../qemu/devices.ts";
import { absentAs } from "../system/files.ts";
import { findHardLink } from "./_hard_links.ts";
import { type HostFiles, hostPaths } from "./_host_files.ts";

export type { HostFiles };

/** A directory that the guest may write to. */
export interface GuestExport {
  /** The directory, on the host. */
  path: string;
  /** Its name: it is mounted at `/mnt/<tag>`. @default {"export"} or its name */
  tag?: string;
}

/** The tag of the workspace. */
export const WORKSPACE_TAG = "work";

/** As many as Linux follows. */
const MAX_LINKS = 40;
const TAG = /^[A-Za-z0-9][A-Za-z0-9_-]{0,30}$/;

/**
 * Reads `DIR` or `DIR:tag`.
 *
 * @param text As it was given.
 * @returns The directory and its tag; without one it is the directory's name.
 */
export function parseExport(text: string): GuestExport {
  const at = text.lastIndexOf(":");
  const tag = text.slice(at + 1);
  return at > 0 && TAG.test(tag)
    ? { path: text.slice(0, at), tag }
    : { path: text };
}

/**
 * Checks directories before a machine is started for them.
 *
 * Needs `--allow-read` for the directories.
 *
 * @param workspace Mounted read-only, if there is one.
 * @param exports Mounted writable; they may not exist yet.
 * @returns The directories, with absolute paths and tags.
 * @throws {ToolsmithError} `usage` for a bad or doubled tag, or too many;
 * `file_unreadable` for what is not a directory.
 */
export async function planShares(
  workspace: string | undefined,
  exports: GuestExport[],
): Promise<GuestShare[]> {
  const shares: GuestShare[] = [];
  if (workspace !== undefined) {
    shares.push({
      path: await dir(workspace),
      tag: WORKSPACE_TAG,
      writable: false,
    });
  }
  for (const { path, tag } of exports) {
    const share = { path: await dir(path, true), writable: true };
    shares.push({ ...share, tag: tag ?? basename(share.path) });
  }
  for (const { tag, path } of shares) {
    if (!TAG.test(tag)) {
      throw new ToolsmithError("usage", `Not a usable tag: ${tag}`, {
        hint: `give one of letters, digits, - and _: --export ${path}:TAG`,
      });
    }
    if (shares.filter((other) => other.tag === tag).length > 1) {
      throw new ToolsmithError("usage", `Two directories have the tag ${tag}`, {
        hint: `give each its own: --export ${path}:TAG`,
      });
    }
  }
  // One slot is for the network card.
  if (shares.length > NETWORK_SLOT) {
    throw new ToolsmithError("usage", `Too many exports: ${exports.length}`);
  }
  return shares;
}

/**
 * Refuses exports through which a guest could decide what this host does next:
 * by writing the manifest, the image, a program or its configuration, by
 * replacing a link that leads there, or by making what is looked for first.
 *
 * Needs `--allow-read` for all that is compared, and `--allow-run=sh`.
 *
 * @param shares From {@linkcode planShares}.
 * @param files What is the host's own.
 * @throws {ToolsmithError} `usage`.
 * @throws The signal's reason when it is aborted.
 */
export async function assertSafeExports(
  shares: GuestShare[],
  files: HostFiles,
): Promise<void> {
  const exports = shares.filter(({ writable }) => writable)
    .map(({ path }) => path);
  if (exports.length === 0) return;
  const { own, large, searched } = await hostPaths(files);
  const places = await allPlaces(own);
  const closed = [...places, ...await allPlaces(large)];
  const exportAbove = await finderOf(exports);
  for (const place of closed) {
    const dir = await exportAbove(place) ??
      exports.find((it) => holds(place, it));
    if (dir !== undefined) throw unsafe(dir, place);
  }
  for (const place of await allPlaces(searched)) {
    const dir = await exportAbove(place);
    if (dir !== undefined) throw unsafe(dir, place);
  }
  const link = await findHardLink(exports, places, files);
  if (!link) return;
  const { dir, file } = link;
  throw unsafe(dir, file, `remove the hard link to ${file} from ${dir}`);
}

/**
 * Finds the export that a path is in, also where it is mounted under another name.
 */
async function finderOf(exports: string[]) {
  const known = new Map<string, Promise<string | undefined>>();
  const identity = (path: string) => {
    if (!known.has(path)) {
      const found = Deno.lstat(path).then(({ dev, ino }) => `${dev} ${ino}`);
      known.set(path, found.catch(() => undefined));
    }
    return known.get(path)!;
  };
  const identities = await Promise.all(exports.map(identity));
  return async (path: string): Promise<string | undefined> => {
    for (let at = path;; at = dirname(at)) {
      const one = await identity(at);
      const dir = exports.find((dir, index) =>
        dir === at || one !== undefined && identities[index] === one
      );
      if (dir !== undefined || at === dirname(at)) return dir;
    }
  };
}

function unsafe(
  dir: string,
  file: string,
  hint = "export a directory that holds nothing but results",
): ToolsmithError {
  const message = `Cannot export ${dir}: the guest could write to ${file}`;
  return new ToolsmithError("usage", message, { hint });
}

async function allPlaces(paths: string[]): Promise<string[]> {
  return [...new Set((await Promise.all(paths.map(placesOf))).flat())];
}

/** Where a path leads, and every link on the way. */
async function placesOf(path: string): Promise<string[]> {
  const links: string[] = [];
  const names = resolve(path).split(SEPARATOR);
  let at = names.shift() + SEPARATOR;
  while (names.length > 0) {
    const entry = join(at, names.shift()!);
    const target = await Deno.readLink(entry).catch(() => undefined);
    if (target === undefined || links.length > MAX_LINKS) {
      at = entry;
      continue;
    }
    links.push(entry);
    names.unshift(...target.split(SEPARATOR));
    if (isAbsolute(target)) at = names.shift() + SEPARATOR;
  }
  return [...links, at];
}

/** Is a path a directory, or does it lie below? */
export function holds(dir: string, path: string): boolean {
  const inside = relative(dir, path);
  return inside !== ".." && !inside.startsWith(`..${SEPARATOR}`);
}

async function dir(path: string, mayBeMissing = false): Promise<string> {
  const found = await Deno.stat(path).catch((error) => error);
  if (found.isDirectory) return await Deno.realPath(resolve(path));
  if (found instanceof Error && !isNotFound(found)) throw systemError(found);
  // A link that leads nowhere is there, and is not followed.
  const missing = await Deno.lstat(path).then(() => false, isNotFound);
  if (missing && mayBeMissing) {
    const whole = resolve(path);
    return join(await dir(dirname(whole), true), basename(whole));
  }
  throw new ToolsmithError("file_unreadable", `Not a directory: ${path}`, {
    hint: "name a directory; that of an export is made where none exists",
  });
}

function isNotFound(error: unknown): boolean {
  return error instanceof Deno.errors.NotFound;
}

/**
 * Makes the directories of exports that do not exist yet.
 *
 * Needs `--allow-read` and `--allow-write` for them.
 *
 * @param shares From {@linkcode planShares}, and found to be safe.
 * @returns The paths of those that were made.
 * @throws {ToolsmithError} `file_unreadable`.
 */
export async function makeExports(shares: GuestShare[]): Promise<string[]> {
  const made: string[] = [];
  for (const { path, writable } of shares) {
    if (!writable || await absentAs(undefined, Deno.lstat(path))) continue;
    await Deno.mkdir(path, { recursive: true }).catch((error) => {
      throw systemError(error, { what: `Cannot make the export ${path}` });
    });
    made.push(path);
  }
  return made;
}
