/**
 * Lists of digests, as distributions publish them beside their images.
 *
 * Formats: GNU coreutils, "cksum output modes": `DIGEST  NAME`, `DIGEST *NAME`,
 * and the tagged `SHA256 (NAME) = DIGEST`.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import type { Sha256 } from "../system/digest.ts";
import { type HttpsOptions, openHttps } from "./_https.ts";

/** Far above the lists of all images of a distribution. */
const MAX_BYTES = 1024 * 1024;
const UNTAGGED = /^\\?([0-9a-f]{64}) [ *](?:\.\/)?(.+)$/i;
const TAGGED = /^SHA256 \((?:\.\/)?(.+)\) = ([0-9a-f]{64})$/i;

/**
 * Reads the digest of a file from the list that is published beside it.
 *
 * Needs `--allow-net` for the list's host.
 *
 * @param list The list's address.
 * @param file The file's address; its last part is its name in the list.
 * @param options How to reach the server.
 * @returns The digest.
 * @throws {ToolsmithError} `checksum_mismatch` when the list does not name the
 * file, or names it with two digests, and what `openHttps` throws.
 */
export async function publishedDigest(
  list: URL,
  file: URL,
  options: HttpsOptions = {},
): Promise<Sha256> {
  const name = lastPart(file);
  const digests = digestsOf(name, await readText(list, options));
  if (digests.length === 1) return digests[0];
  throw new ToolsmithError(
    "checksum_mismatch",
    `${list.origin}${list.pathname} has ${digests.length} SHA-256 of ${name}`,
    { hint: "name the list beside the image, or the digest: --sha256 DIGEST" },
  );
}

/**
 * Finds the digests of a file in the text of a list.
 *
 * @param name The file's name.
 * @param text The list; lines that are something else are passed over.
 * @returns Those that differ.
 */
export function digestsOf(name: string, text: string): Sha256[] {
  const found = new Set<Sha256>();
  for (const line of text.split(/\r?\n/)) {
    const [, digest, untagged] = UNTAGGED.exec(line) ?? [];
    const [, tagged, digestOfTagged] = TAGGED.exec(line) ?? [];
    if (untagged === name) found.add(digest.toLowerCase());
    if (tagged === name) found.add(digestOfTagged.toLowerCase());
  }
  return [...found];
}

function lastPart({ pathname }: URL): string {
  const last = pathname.split("/").at(-1) ?? "";
  try {
    return decodeURIComponent(last);
  } catch {
    return last;
  }
}

async function readText(url: URL, options: HttpsOptions): Promise<string> {
  using file = await openHttps(url, { ...options, maxBytes: MAX_BYTES });
  const decoder = new TextDecoder();
  let text = "";
  for await (const chunk of file.chunks) {
    text += decoder.decode(chunk, { stream: true });
  }
  return text;
}
