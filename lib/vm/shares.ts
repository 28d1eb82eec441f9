/**
 * Host directories that are shared with the guest: the workspace and exports.
 */
import {
  basename,
  dirname,
  isAbsolute,
  join,
  resolve,
  SEPARATOR,
} from "../path.ts";
import { systemError, ToolsmithError } from "../errors.ts";
import type { GuestShare } from "../qemu/args.ts";
import { NETWORK_SLOT } from "../qemu/device_ids.ts";
import { orIfNotFound } from "../system/files.ts";
import { runProcess } from "../system/process.ts";
import {
  protectedPaths,
  type ProtectedPathsOptions,
} from "./_protected_paths.ts";
import type { GuestExport } from "./boot_options.ts";

export const WORKSPACE_TAG = "work";

/** Linux's own limit. */
const MAX_SYMLINKS = 40;
const SEARCH_TIMEOUT_MS = 30_000;
/** Every system allows command lines of this length. */
const MAX_FILES_PER_FIND = 100;
/** Tests of `find` for a regular file with several hard links. */
const SEVERAL_LINKS_ARGS = ["-type", "f", "-links", "+1"];
const MOUNT_TAG_PATTERN = /^[A-Za-z0-9][A-Za-z0-9_-]{0,30}$/;

/** Parses `DIR` or `DIR:tag`. */
export function parseExport(text: string): GuestExport {
  const at = text.lastIndexOf(":");
  const tag = text.slice(at + 1);
  return at > 0 && MOUNT_TAG_PATTERN.test(tag)
    ? { path: text.slice(0, at), tag }
    : { path: text };
}

/**
 * Validates directories, and resolves their paths and tags. Exports need not exist yet.
 */
export async function resolveShares(
  workspace: string | undefined,
  exports: GuestExport[],
): Promise<GuestShare[]> {
  const shares: GuestShare[] = [];
  if (workspace !== undefined) {
    const path = await resolveDirectory(workspace);
    shares.push({ path, tag: WORKSPACE_TAG, writable: false });
  }
  for (const { path, tag } of exports) {
    const share = { path: await resolveDirectory(path, true), writable: true };
    shares.push({ ...share, tag: tag ?? basename(share.path) });
  }
  for (const { tag, path } of shares) {
    if (!MOUNT_TAG_PATTERN.test(tag)) {
      throw new ToolsmithError("usage", `Invalid mount tag: ${tag}`, {
        hint: `use up to 31 letters, digits, - or _: --export ${path}:TAG`,
      });
    }
    if (shares.filter((other) => other.tag === tag).length > 1) {
      const message = `Two directories have the same tag: ${tag}`;
      const hint = `give each directory its own tag: --export ${path}:TAG`;
      throw new ToolsmithError("usage", message, { hint });
    }
  }
  // One hot-plug slot is for the network card.
  if (shares.length > NETWORK_SLOT) {
    const most = NETWORK_SLOT - shares.length + exports.length;
    const message = `Too many exports: ${exports.length}, at most ${most}`;
    throw new ToolsmithError("usage", message);
  }
  return shares;
}

/**
 * Rejects exports through which a guest could control this host: by writing the
 * manifest, the image, a program or its configuration, by replacing a symlink to them,
 * or by creating a file that is looked up first.
 */
export async function assertSafeExports(
  shares: GuestShare[],
  files: ProtectedPathsOptions,
): Promise<void> {
  const exports = shares.filter(({ writable }) => writable)
    .map(({ path }) => path);
  if (exports.length === 0) return;
  const paths = await protectedPaths(files);
  const checked = await symlinkChains(paths.hardLinkChecked);
  const kept = [...checked, ...await symlinkChains(paths.hardLinkUnchecked)];
  const findExportAbove = makeContainingDirFinder(exports);
  for (const path of [...kept, ...await symlinkChains(paths.lookupDirs)]) {
    const dir = findExportAbove(path);
    if (dir !== undefined) throw unsafeExportError(dir, path);
  }
  const findKeptAbove = makeContainingDirFinder(kept);
  for (const dir of exports) {
    const path = findKeptAbove(dir);
    if (path !== undefined) throw unsafeExportError(dir, path);
  }
  const link = await findHardLink(exports, checked, files);
  if (!link) return;
  const { exportDir, file } = link;
  const hint = `remove the hard link to ${file} from ${exportDir}`;
  throw unsafeExportError(exportDir, file, hint);
}

/**
 * Finds which of some directories a path equals or lies in: by inode, to see through
 * bind mounts.
 */
function makeContainingDirFinder(dirs: string[]) {
  const known = new Map(dirs.map((dir) => [fileKey(dir), dir]));
  return (path: string): string | undefined => {
    for (let at = path;; at = dirname(at)) {
      const dir = known.get(fileKey(at));
      if (dir !== undefined || at === dirname(at)) return dir;
    }
  };
}

/** A file's device and inode; its path if it does not exist. */
function fileKey(path: string): string {
  try {
    const { dev, ino } = Deno.lstatSync(path);
    return `${dev} ${ino}`;
  } catch {
    return path;
  }
}

function unsafeExportError(
  dir: string,
  file: string,
  hint = "export a directory that contains only results",
): ToolsmithError {
  const message = `Cannot export ${dir}: the guest could write to ${file}`;
  return new ToolsmithError("usage", message, { hint });
}

/**
 * Finds a file in `paths`, which need not exist, that an export has a hard link to: the
 * guest could write to it. Exports are only searched if any of the files has several
 * links; unreadable directories in them are skipped. The search runs `find` in a shell,
 * which handles names that are not UTF-8 and paths of any length.
 */
export async function findHardLink(
  dirs: string[],
  paths: string[],
  { signal }: { signal?: AbortSignal } = {},
): Promise<{ exportDir: string; file: string } | undefined> {
  try {
    const args = [...paths, ...SEVERAL_LINKS_ARGS, "-print0"];
    const listed = await runFind(args, signal);
    const files = await existingFiles(listed.split("\0"));
    for (let from = 0; from < files.length; from += MAX_FILES_PER_FIND) {
      const tested = files.slice(from, from + MAX_FILES_PER_FIND);
      const tests = tested.flatMap((file, index) => [
        ...[index === 0 ? "(" : "-o", "-samefile", file],
        ...["-exec", "echo", `${index}`, ";"],
      ]);
      for (const dir of dirs) {
        const args = [dir, ...SEVERAL_LINKS_ARGS, ...tests, ")"];
        const found = await runFind(args, signal);
        if (found) return { exportDir: dir, file: tested[parseInt(found)] };
      }
    }
  } catch (cause) {
    signal?.throwIfAborted();
    if (!(cause instanceof ToolsmithError)) throw cause;
    throw new ToolsmithError(
      "usage",
      `Cannot export ${dirs.join(", ")}: the search for hard links failed`,
      { hint: "export a directory with fewer files", cause },
    );
  }
}

async function runFind(args: string[], signal?: AbortSignal): Promise<string> {
  const script = ["-c", 'exec find "$@"', "sh", ...args];
  const how = { args: script, timeoutMs: SEARCH_TIMEOUT_MS, signal };
  return (await runProcess("sh", how)).stdout;
}

/** Drops missing files and names that are not UTF-8, as `find -samefile` fails on them. */
async function existingFiles(paths: string[]): Promise<string[]> {
  const found = await Promise.all(
    paths.map((path) => Deno.lstat(path).catch(() => undefined)),
  );
  return paths.filter((_, index) => found[index]?.isFile);
}

async function symlinkChains(paths: string[]): Promise<string[]> {
  return [...new Set((await Promise.all(paths.map(symlinkChain))).flat())];
}

/** Returns the real path, and every symlink on the way. */
async function symlinkChain(path: string): Promise<string[]> {
  const links: string[] = [];
  const names = resolve(path).split(SEPARATOR);
  let at = names.shift() + SEPARATOR;
  while (names.length > 0) {
    const entry = join(at, names.shift()!);
    const target = await Deno.readLink(entry).catch(() => undefined);
    if (target === undefined || links.length > MAX_SYMLINKS) {
      at = entry;
      continue;
    }
    links.push(entry);
    names.unshift(...target.split(SEPARATOR));
    if (isAbsolute(target)) at = names.shift() + SEPARATOR;
  }
  return [...links, at];
}

async function resolveDirectory(
  path: string,
  mayBeMissing = false,
): Promise<string> {
  const found = await orIfNotFound(Deno.stat(path)).catch((error) => {
    throw systemError(error);
  });
  if (found?.isDirectory) return await Deno.realPath(resolve(path));
  // A dangling symlink exists and is not followed.
  const exists = found ?? await orIfNotFound(Deno.lstat(path));
  if (!exists && mayBeMissing) {
    const whole = resolve(path);
    return join(await resolveDirectory(dirname(whole), true), basename(whole));
  }
  throw new ToolsmithError("file_unreadable", `Not a directory: ${path}`, {
    hint: "pass an existing directory; Toolsmith creates only missing exports",
  });
}

/** Creates the missing directories of exports and returns their paths. */
export async function makeExportDirs(shares: GuestShare[]): Promise<string[]> {
  const created: string[] = [];
  for (const { path, writable } of shares) {
    if (!writable || await orIfNotFound(Deno.lstat(path))) continue;
    await Deno.mkdir(path, { recursive: true }).catch((error) => {
      const messagePrefix = `Cannot create the export directory ${path}`;
      throw systemError(error, { messagePrefix });
    });
    created.push(path);
  }
  return created;
}
