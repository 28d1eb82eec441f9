/** Loads the certificate authorities and logs that signatures are checked against. */
import { processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import type { RegistryOptions } from "../oci/registry_options.ts";
import { join } from "../path.ts";
import { acquireFileLock } from "../system/lock.ts";
import { untrustedReason } from "../system/ownership.ts";
import { userCacheDir } from "../system/program_files.ts";

/** Where the trusted roots come from. */
export interface TrustOptions extends RegistryOptions {
  /**
   * A file with the trusted roots, as `cosign trusted-root create` and `gh attestation
   * trusted-root` write it.
   *
   * @default {undefined} `TOOLSMITH_TRUSTED_ROOT`, else Sigstore's public root, or GitHub's
   */
  trustedRoot?: string;
}

/**
 * Loads the trusted roots: from the file, or over the network into the user's cache.
 * Without the network, a cached root serves until it expires. `isOfGithub` tells whether
 * GitHub's own instance issued the certificate.
 */
export async function loadTrustedRoots(
  isOfGithub: boolean,
  { trustedRoot, env = processEnvironment, signal }: TrustOptions,
) {
  const file = trustedRoot ?? env.get("TOOLSMITH_TRUSTED_ROOT");
  const host = `tuf-repo${isOfGithub ? ".github.com" : "-cdn.sigstore.dev"}`;
  try {
    if (file !== undefined) {
      const { TrustedRoot } = await import("./_sigstore.ts");
      // GitHub's command line writes one root a line.
      const texts = (await Deno.readTextFile(file)).trim().split(/\n(?=\{)/);
      const roots = texts.map((it) => TrustedRoot.fromJSON(JSON.parse(it)));
      if (roots.every((it) => it.certificateAuthorities[0])) return roots;
      throw new Error("no certificate authority in it");
    }
    const cache = userCacheDir(env);
    if (!cache) throw new Error("no home directory is known");
    const cachePath = join(cache, "tuf");
    await Deno.mkdir(cachePath, { recursive: true, mode: 0o700 });
    const reason = await untrustedReason(cachePath);
    if (reason) throw new Error(reason);
    using _lock = await acquireFileLock(join(cachePath, "lock"), { signal });
    const { getTrustedRoot, GITHUB_TUF_ROOT } = await import("./_tuf.ts");
    const rootPath = isOfGithub ? join(cachePath, "github.json") : undefined;
    if (rootPath) await Deno.writeTextFile(rootPath, GITHUB_TUF_ROOT);
    const tuf = { mirrorURL: `https://${host}`, rootPath, cachePath, retry: 1 };
    const fromCache = () => getTrustedRoot({ ...tuf, forceCache: true });
    return [await getTrustedRoot(tuf).catch(fromCache)];
  } catch (cause) {
    signal?.throwIfAborted();
    let { message, cause: inner } = cause as Error;
    while (inner instanceof Error) ({ message, cause: inner } = inner);
    const subject = `Cannot load the trusted root from ${file ?? host}`;
    const hint = "pass a trusted root for this host: --trusted-root FILE";
    const text = `${subject}: ${message}`;
    throw new ToolsmithError("trust_root_unavailable", text, { hint, cause });
  }
}
