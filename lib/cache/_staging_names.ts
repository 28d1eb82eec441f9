/**
 * Names of staging directories. A workspace may come with directories that are
 * called so, and what they hold would be written to: the name of one that this
 * user's Toolsmith made ends in a MAC.
 *
 *     .staging-<sha256>-<id>       8 random digits, and 32 of the MAC
 *
 * The secret is a file of this user alone: `staging.key` in this user's own
 * directory (`$XDG_CACHE_HOME/toolsmith`), or `.staging.key` in a cache outside
 * of workspaces, which may outlive that directory, as the volume of a container
 * does. Without a secret every transfer begins at its start.
 *
 * @module
 */
import { dirname, join, relative, SEPARATOR } from "../path.ts";
import { type Environment, userCacheDir } from "../environment.ts";
import type { Sha256 } from "../system/digest.ts";
import { readOriginal, replaceFile } from "../system/files.ts";
import { lock } from "../system/lock.ts";
import { whyUntrusted } from "../system/ownership.ts";

const NAME = /^\.staging-([0-9a-f]{64})-(.*)$/s;
const NONCE_DIGITS = 8;
const MAC_DIGITS = 32;
const SECRET_BYTES = 32;
const SECRET = /^[0-9a-f]{64} /;

/** What the name of a staging directory says. */
export interface StagingName {
  /** The image that it is for. */
  sha256: Sha256;
  /** What tells it from others, and proves who made it. */
  id: string;
}

/** Reads the name of a staging directory; `undefined` for any other. */
export function parseStagingName(name: string): StagingName | undefined {
  const [, sha256, id] = NAME.exec(name) ?? [];
  return sha256 === undefined ? undefined : { sha256, id };
}

/** Writes the name of a staging directory. */
export function stagingName({ sha256, id }: StagingName): string {
  return `.staging-${sha256}-${id}`;
}

/** The ids of this user's staging directories for one image. */
export interface StagingIds {
  /** Makes a new one. */
  next(sha256: Sha256): Promise<string>;
  /** Whether this user made it, for that image in that directory. */
  isOwn(name: StagingName): Promise<boolean>;
}

/**
 * The ids of this user's staging directories for an image.
 *
 * Needs `--allow-read` and `--allow-write` for the cache and for this user's
 * own, and `--allow-sys=uid`; without these no id is this user's.
 *
 * @param cache The cache's directory.
 * @param image The image's name; its directory exists.
 * @param env Read for `XDG_CACHE_HOME` and `HOME`.
 * @returns Its methods; the secret is made with the first id.
 */
export async function stagingIds(
  cache: string,
  image: string,
  env: Environment,
): Promise<StagingIds> {
  const place = await placeOf(cache, image, env).catch(noSecret);
  let secret = place && await readSecret(place.path).catch(noSecret);
  const sign = async ({ sha256, id }: StagingName) => {
    if (!place || !secret) return undefined;
    const text = JSON.stringify([place.image, sha256, id]);
    const bytes = new TextEncoder().encode(text);
    const mac = await crypto.subtle.sign("HMAC", secret, bytes);
    return new Uint8Array(mac).toHex().slice(0, MAC_DIGITS);
  };
  return {
    async next(sha256) {
      secret ??= place && await makeSecret(place.path).catch(noSecret);
      const id = randomHex(NONCE_DIGITS / 2);
      return id + (await sign({ sha256, id }) ?? randomHex(MAC_DIGITS / 2));
    },
    async isOwn({ sha256, id }) {
      const nonce = id.slice(0, NONCE_DIGITS);
      const mac = await sign({ sha256, id: nonce });
      return mac !== undefined && id === nonce + mac;
    },
  };
}

/** Such as a home that cannot be written: images are fetched from their start. */
function noSecret(): undefined {}

/** Where the secret is, and the image's directory as seen from there. */
interface Place {
  path: string;
  image: string;
}

async function placeOf(
  cache: string,
  image: string,
  env: Environment,
): Promise<Place | undefined> {
  const [top, dir] = [await Deno.realPath(cache), join(cache, image)];
  // A workspace may come with a secret that others know.
  const isNamed = !top.split(SEPARATOR).includes(".toolsmith") &&
    !await whyUntrusted(top);
  const own = isNamed ? top : userCacheDir(env);
  if (own === undefined || !await mayWrite(own)) return undefined;
  const path = join(own, isNamed ? ".staging.key" : "staging.key");
  return { path, image: relative(own, await Deno.realPath(dir)) };
}

/** Tells without asking the user. */
async function mayWrite(path: string): Promise<boolean> {
  for (const name of ["read", "write"] as const) {
    const { state } = await Deno.permissions.query({ name, path });
    if (state !== "granted") return false;
  }
  return true;
}

/** A file that was copied, or came with a workspace, is another secret. */
async function readSecret(path: string): Promise<CryptoKey | undefined> {
  if (await whyUntrusted(path, { secret: true })) return undefined;
  const secret = await readOriginal(path, 2 * SECRET_BYTES) ?? "";
  if (!SECRET.test(secret)) return undefined;
  const raw = new TextEncoder().encode(secret);
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  return await crypto.subtle.importKey("raw", raw, algorithm, false, ["sign"]);
}

async function makeSecret(path: string): Promise<CryptoKey | undefined> {
  await Deno.mkdir(dirname(path), { recursive: true, mode: 0o700 });
  // One that may be good is not replaced where none would be believed.
  if (await whyUntrusted(dirname(path))) return undefined;
  // Two processes at once take the same.
  using _lock = await lock(`${path}.lock`);
  const made = await readSecret(path);
  if (made) return made;
  await replaceFile(path, randomHex(SECRET_BYTES), { mode: 0o600 });
  return await readSecret(path);
}

function randomHex(bytes: number): string {
  return crypto.getRandomValues(new Uint8Array(bytes)).toHex();
}
