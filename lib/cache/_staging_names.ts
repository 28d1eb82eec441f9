/**
 * Names of staging directories. A workspace from someone else may contain planted
 * staging directories, which a resumed download would write to. So the name of an
 * image's staging directory ends in a MAC with a secret of this user.
 *
 *     .staging-<sha256>-<id>       id: 8 random digits and 32 digits of the MAC
 *     .<sha256>.lock               held by the process that fills the directory
 *
 * The secret is a private file of this user: `staging.key` in the user's cache
 * (`$XDG_CACHE_HOME/toolsmith`), or `.staging.key` in a cache outside workspaces,
 * such as a container volume that outlives the home directory. Without a secret
 * no download is resumed.
 */
import { dirname, join, relative, SEPARATOR } from "../path.ts";
import { type Environment, isPermissionGranted } from "../environment.ts";
import type { Sha256 } from "../system/digest.ts";
import {
  readTextWithFileIdentity,
  replaceFileAtomically,
} from "../system/files.ts";
import { acquireFileLock } from "../system/lock.ts";
import { untrustedReason } from "../system/ownership.ts";
import { userCacheDir } from "../system/program_files.ts";

const STAGING_NAME_PATTERN = /^\.staging-([0-9a-f]{64})-(.*)$/s;
const NONCE_DIGITS = 8;
const HMAC_DIGITS = 32;
const SECRET_BYTES = 32;
const SECRET_PATTERN = /^[0-9a-f]{64} /;

export interface StagingName {
  /** The image's digest, or the snapshot's key. */
  sha256: Sha256;
  /** Random digits and, for an image, the MAC that proves who created it. */
  id: string;
}

export function lockFileName(sha256: Sha256): string {
  return `.${sha256}.lock`;
}

export function parseStagingName(name: string): StagingName | undefined {
  const [, sha256, id] = STAGING_NAME_PATTERN.exec(name) ?? [];
  return sha256 === undefined ? undefined : { sha256, id };
}

export function formatStagingName({ sha256, id }: StagingName): string {
  return `.staging-${sha256}-${id}`;
}

/**
 * Creates and checks the ids of this user's staging directories for an image, whose
 * directory must exist. Without access to the cache and the user's own cache, or
 * without `--allow-sys=uid`, no id is recognized as this user's.
 */
export async function stagingIdSigner(
  cache: string,
  image: string,
  env: Environment,
) {
  const found = await locateSecret(cache, image, env).catch(treatAsNoSecret);
  let key = found && await readStagingSecret(found.path).catch(treatAsNoSecret);
  const sign = async ({ sha256, id }: StagingName) => {
    if (!found || !key) return undefined;
    const text = JSON.stringify([found.image, sha256, id]);
    const bytes = new TextEncoder().encode(text);
    const mac = await crypto.subtle.sign("HMAC", key, bytes);
    return new Uint8Array(mac).toHex().slice(0, HMAC_DIGITS);
  };
  return {
    /** Returns a new random id; writes the secret if there is none. */
    async createId(sha256: Sha256): Promise<string> {
      key ??= found &&
        await createStagingSecret(found.path).catch(treatAsNoSecret);
      const id = randomHex(NONCE_DIGITS / 2);
      return id + (await sign({ sha256, id }) ?? randomHex(HMAC_DIGITS / 2));
    },
    /** Whether this user created the id, for this image directory. */
    async isOwn({ sha256, id }: StagingName): Promise<boolean> {
      const nonce = id.slice(0, NONCE_DIGITS);
      const mac = await sign({ sha256, id: nonce });
      return mac !== undefined && id === nonce + mac;
    },
  };
}

/** Any failure, such as a read-only home, only means that nothing is resumed. */
function treatAsNoSecret(): undefined {}

/** Returns the secret's path, and the image's directory relative to its directory. */
async function locateSecret(cache: string, image: string, env: Environment) {
  const realCache = await Deno.realPath(cache);
  // A secret in a workspace may be known to others.
  const isOutside = !realCache.split(SEPARATOR).includes(".toolsmith") &&
    !await untrustedReason(realCache);
  const dir = isOutside ? realCache : userCacheDir(env);
  if (dir === undefined) return undefined;
  const isPermitted = (["read", "write"] as const)
    .every((name) => isPermissionGranted({ name, path: dir }));
  if (!isPermitted) return undefined;
  const path = join(dir, isOutside ? ".staging.key" : "staging.key");
  const imageDir = await Deno.realPath(join(cache, image));
  return { path, image: relative(dir, imageDir) };
}

/** The key includes the file's identity: a copied secret is a different one. */
async function readStagingSecret(path: string): Promise<CryptoKey | undefined> {
  if (await untrustedReason(path, { requirePrivate: true })) return undefined;
  const secret = await readTextWithFileIdentity(path, 2 * SECRET_BYTES) ?? "";
  if (!SECRET_PATTERN.test(secret)) return undefined;
  const raw = new TextEncoder().encode(secret);
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  return await crypto.subtle.importKey("raw", raw, algorithm, false, ["sign"]);
}

async function createStagingSecret(path: string) {
  await Deno.mkdir(dirname(path), { recursive: true, mode: 0o700 });
  // Keep an existing secret in a directory where none would be trusted.
  if (await untrustedReason(dirname(path))) return undefined;
  // Concurrent processes must use the same secret.
  using _lock = await acquireFileLock(`${path}.lock`);
  const existing = await readStagingSecret(path);
  if (existing) return existing;
  await replaceFileAtomically(path, randomHex(SECRET_BYTES), { mode: 0o600 });
  return await readStagingSecret(path);
}

function randomHex(bytes: number): string {
  return crypto.getRandomValues(new Uint8Array(bytes)).toHex();
}
