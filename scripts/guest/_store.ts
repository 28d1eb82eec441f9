/**
 * Where guests are kept once they are built: `.cache/guest/`, in directories
 * that are named by all that decides what is in them.
 *
 * @module
 */
import { join, resolve } from "@std/path";
import { lock } from "../../lib/system/lock.ts";
import { must } from "./_programs.ts";

const STORE = resolve(import.meta.dirname!, "../../.cache/guest");

/** The guests of one kind; disposing it lets another process build them. */
export interface GuestStore extends Disposable {
  /**
   * Builds a directory, or finds it built already.
   *
   * @param name Names the directory, and with it all that is in it.
   * @param build Fills a directory that is empty.
   * @param keep The files to keep of it.
   * @returns Absolute path of the directory.
   */
  directory(
    name: string,
    build: (staging: string) => Promise<void>,
    keep: string[],
  ): Promise<string>;
}

/**
 * Opens the store for one kind of guest, waiting while another process builds
 * that kind.
 *
 * Needs `--allow-read` and `--allow-write`.
 *
 * @param kind Names the kind.
 * @param root Where guests are kept. @default {".cache/guest"}
 */
export async function openStore(
  kind: string,
  root = STORE,
): Promise<GuestStore> {
  await Deno.mkdir(root, { recursive: true });
  const prefix = `.staging-${kind}-`;
  const held = await lock(join(root, `.${kind}.lock`), {
    onWait: () => console.error(`waiting for another build of ${kind}`),
  });
  return {
    async directory(name, build, keep) {
      const dir = join(root, name);
      if (await exists(dir)) return dir;
      // Under the lock, so what lies here was left by a build that was cut off.
      for (const { name } of Deno.readDirSync(root)) {
        if (name.startsWith(prefix)) await remove(join(root, name));
      }
      // A program of that build may live on: it gets no other to write into.
      const staging = join(root, `${prefix}${crypto.randomUUID()}`);
      await Deno.mkdir(staging);
      try {
        await build(staging);
        for (const entry of Deno.readDirSync(staging)) {
          if (!keep.includes(entry.name)) {
            await remove(join(staging, entry.name));
          }
        }
        await Deno.rename(staging, dir);
      } finally {
        await remove(staging);
      }
      return dir;
    },
    [Symbol.dispose]: () => held[Symbol.dispose](),
  };
}

/**
 * A short name for what decides the contents of a guest.
 *
 * @param parts All of it.
 */
export async function keyOf(
  parts: (string | Uint8Array<ArrayBuffer>)[],
): Promise<string> {
  const bytes = await new Blob(parts.flatMap((part) => [part, "\0"])).bytes();
  const hash = await crypto.subtle.digest("SHA-256", bytes);
  return new Uint8Array(hash, 0, 6).toHex();
}

/**
 * The text of files of `scripts/guest/`: a guest is built anew when it changes.
 *
 * Needs `--allow-read`.
 *
 * @param names Names of files, and of directories of files.
 */
export async function textOf(names: string[]): Promise<string> {
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
 * The versions of installed packages that guests are built from.
 *
 * Needs `--allow-run=dpkg-query`.
 *
 * @param packages Names of Debian packages.
 */
export async function installedVersions(packages: string[]): Promise<string> {
  const { stdout } = await must("dpkg-query", {
    args: ["-W", "-f", "${Package} ${Version}\n", ...packages],
  });
  return stdout;
}

async function exists(path: string): Promise<boolean> {
  return await Deno.stat(path).then(() => true, () => false);
}

async function remove(path: string) {
  await Deno.remove(path, { recursive: true }).catch(() => {});
}
