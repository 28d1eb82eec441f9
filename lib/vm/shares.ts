/**
 * Directories of the host that a guest may see: the workspace, and exports.
 *
 * @module
 */
import {
  basename,
  isAbsolute,
  join,
  relative,
  resolve,
  SEPARATOR,
} from "../path.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import type { GuestShare } from "../qemu/args.ts";
import { NETWORK_SLOT } from "../qemu/devices.ts";
import { machineParents } from "../qemu/machine_dir.ts";
import { findProgram, qemuProgram } from "../qemu/program.ts";

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
 * @param exports Mounted writable.
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
    const share = { path: await dir(path), writable: true };
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

/** The caller's part of what {@linkcode assertSafeExports} keeps from a guest. */
export interface HostFiles {
  /** The image. */
  image: string;
  /** The directory with `.toolsmith/`. */
  workspace?: string;
  /** Keeps what the guest writes to its disk. */
  overlay?: string;
  /** Where snapshots are. */
  snapshots?: { dir: string };
  /** More of the kind: the manifest, the cache. */
  hostOnly?: string[];
  /** Read for `TOOLSMITH_ORAS`, `TOOLSMITH_QEMU`, `PATH` and `TMPDIR`. */
  env?: Environment;
}

/**
 * Refuses exports through which a guest could decide what this host does next:
 * by writing the manifest, the image or a program, or by replacing a link that
 * leads there.
 *
 * Needs `--allow-read` for all that is compared.
 *
 * @param shares From {@linkcode planShares}.
 * @param files What is the host's own.
 * @throws {ToolsmithError} `usage`.
 */
export async function assertSafeExports(
  shares: GuestShare[],
  files: HostFiles,
): Promise<void> {
  const exports = shares.filter(({ writable }) => writable);
  if (exports.length === 0) return;
  const { env = processEnvironment } = files;
  for (const place of await allPlaces(await hostFiles(files, env))) {
    const share = exports.find(({ path }) =>
      holds(path, place) || holds(place, path)
    );
    if (share) throw unsafe(share, place);
  }
  // An export may well lie in a directory of temporary files, but not hold it.
  for (const place of await allPlaces(machineParents(env))) {
    const share = exports.find(({ path }) => holds(path, place));
    if (share) throw unsafe(share, place);
  }
}

/** All that a guest must not write. */
async function hostFiles(files: HostFiles, env: Environment) {
  const { image, workspace, overlay, snapshots, hostOnly = [] } = files;
  const programs = [
    qemuProgram(env, "x86_64"),
    qemuProgram(env, "aarch64"),
    env.get("TOOLSMITH_ORAS") || "oras",
  ];
  const found = [
    image,
    overlay,
    snapshots?.dir,
    ...hostOnly,
    ...await Promise.all(programs.map((name) => findProgram(name, env))),
  ];
  if (workspace !== undefined) {
    const dir = join(workspace, ".toolsmith");
    if (await Deno.lstat(dir).then(() => true, () => false)) found.push(dir);
  }
  return found.filter((path) => path !== undefined);
}

function unsafe(share: GuestShare, place: string): ToolsmithError {
  return new ToolsmithError(
    "usage",
    `An export would let the guest write to ${place}: ${share.path}`,
    { hint: "export a directory that holds nothing but results" },
  );
}

async function allPlaces(paths: string[]): Promise<string[]> {
  return (await Promise.all(paths.map(placesOf))).flat();
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
function holds(dir: string, path: string): boolean {
  const inside = relative(dir, path);
  return inside !== ".." && !inside.startsWith(`..${SEPARATOR}`);
}

async function dir(path: string): Promise<string> {
  const found = await Deno.stat(path).catch(() => undefined);
  if (found?.isDirectory) return await Deno.realPath(resolve(path));
  throw new ToolsmithError("file_unreadable", `Not a directory: ${path}`);
}
