/**
 * A store of built guests in `.cache/guest/`; a hash of all inputs names each
 * directory.
 */
import { join, resolve } from "@std/path";
import { acquireFileLock } from "../../lib/system/lock.ts";
import { runOrThrow } from "./_programs.ts";

const GUEST_STORE_DIR = resolve(import.meta.dirname!, "../../.cache/guest");

/** The guests of one kind; disposing it releases the lock. */
export interface GuestStore extends Disposable {
  /**
   * Builds a directory unless it exists.
   *
   * @param name The directory's name, with a hash of all inputs.
   * @param build Fills an empty directory.
   * @param keep The files to keep.
   * @returns Absolute path of the directory.
   */
  directory(
    name: string,
    build: (staging: string) => Promise<void>,
    keep: string[],
  ): Promise<string>;
}

/**
 * Opens and locks the store for one kind of guest.
 *
 * Needs `--allow-read` and `--allow-write`.
 *
 * @param root The store's directory. @default {".cache/guest"}
 */
export async function openGuestStore(
  kind: string,
  root = GUEST_STORE_DIR,
): Promise<GuestStore> {
  await Deno.mkdir(root, { recursive: true });
  const prefix = `.staging-${kind}-`;
  const held = await acquireFileLock(join(root, `.${kind}.lock`), {
    onWait: () => console.error(`waiting for another build of ${kind}`),
  });
  return {
    async directory(name, build, keep) {
      const dir = join(root, name);
      if (await pathExists(dir)) return dir;
      // The lock is held, so a staging directory is from an interrupted build.
      for (const { name } of Deno.readDirSync(root)) {
        if (name.startsWith(prefix)) await removeIfExists(join(root, name));
      }
      // A program of that build may still run: use a new directory.
      const staging = join(root, `${prefix}${crypto.randomUUID()}`);
      await Deno.mkdir(staging);
      try {
        await build(staging);
        for (const entry of Deno.readDirSync(staging)) {
          if (!keep.includes(entry.name)) {
            await removeIfExists(join(staging, entry.name));
          }
        }
        await Deno.rename(staging, dir);
      } finally {
        await removeIfExists(staging);
      }
      return dir;
    },
    [Symbol.dispose]: () => held[Symbol.dispose](),
  };
}

/**
 * Hashes all inputs of a guest to a short key.
 */
export async function guestKey(
  parts: (string | Uint8Array<ArrayBuffer>)[],
): Promise<string> {
  const bytes = await new Blob(parts.flatMap((part) => [part, "\0"])).bytes();
  const hash = await crypto.subtle.digest("SHA-256", bytes);
  return new Uint8Array(hash, 0, 6).toHex();
}

/**
 * Reads files of `scripts/guest/`, which are part of a guest's key.
 *
 * Needs `--allow-read`.
 *
 * @param names Files and directories.
 */
export async function readSourceTexts(names: string[]): Promise<string> {
  const paths = names.map((name) => join(import.meta.dirname!, name))
    .flatMap((path) =>
      Deno.statSync(path).isFile ? [path] : Array.from(
        Deno.readDirSync(path),
        ({ name }) => join(path, name),
      )
    );
  const texts = paths.sort().map((path) => Deno.readTextFile(path));
  return (await Promise.all(texts)).join("\0");
}

/**
 * Returns the versions of installed packages, which are part of a guest's key.
 *
 * Needs `--allow-run=dpkg-query`.
 *
 * @param packages Names of Debian packages.
 */
export async function installedPackageVersions(
  packages: string[],
): Promise<string> {
  const { stdout } = await runOrThrow("dpkg-query", {
    args: ["-W", "-f", "${Package} ${Version}\n", ...packages],
  });
  return stdout;
}

async function pathExists(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, () => false);
}

async function removeIfExists(path: string) {
  await Deno.remove(path, { recursive: true }).catch(() => {});
}
