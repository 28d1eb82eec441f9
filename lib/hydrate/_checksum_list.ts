/**
 * Checksum lists such as `SHA256SUMS`, which distributions publish beside their
 * images.
 *
 * Formats: GNU coreutils, "cksum output modes": `DIGEST  NAME`, `DIGEST *NAME`,
 * and the tagged `SHA256 (NAME) = DIGEST`.
 */
import { ToolsmithError } from "../errors.ts";
import type { Sha256 } from "../system/digest.ts";
import { createHttpClient } from "../system/http_client.ts";
import { retryTransient } from "../system/retry.ts";
import type { FetchOptions } from "./_fetch_job.ts";
import { downloadSmallFile } from "./_https_byte_source.ts";

/** Far above the size of any distribution's list. */
const MAX_CHECKSUM_LIST_BYTES = 1024 * 1024;
const UNTAGGED_LINE_PATTERN = /^\\?([0-9a-f]{64}) [ *](?:\.\/)?(.+)$/i;
const TAGGED_LINE_PATTERN = /^SHA256 \((?:\.\/)?(.+)\) = ([0-9a-f]{64})$/i;

/**
 * Downloads a checksum list and returns the digest of the file whose name is the last
 * path segment of `file`. A list that does not contain exactly one digest of it is a
 * `checksum_mismatch`.
 */
export async function fetchDigestFromList(
  list: URL,
  file: URL,
  options: FetchOptions,
): Promise<Sha256> {
  const name = lastPathSegment(file);
  using client = await createHttpClient(options.caFile);
  const download = () =>
    downloadSmallFile(list, client, MAX_CHECKSUM_LIST_BYTES, options);
  const bytes = await retryTransient(download, options);
  const digests = findDigestsInList(name, new TextDecoder().decode(bytes));
  if (digests.length === 1) return digests[0];
  const message =
    `Cannot use the checksum list ${list.origin}${list.pathname}: expected one SHA-256 of ${name}, found ${digests.length}`;
  const hint =
    "use the checksum list published beside the image, or pass the digest: --sha256 DIGEST";
  throw new ToolsmithError("checksum_mismatch", message, { hint });
}

/** Returns the distinct digests of a file; lines in other formats are skipped. */
export function findDigestsInList(name: string, text: string): Sha256[] {
  const found = new Set<Sha256>();
  for (const line of text.split(/\r?\n/)) {
    const [, digest, untaggedName] = UNTAGGED_LINE_PATTERN.exec(line) ?? [];
    const [, taggedName, taggedDigest] = TAGGED_LINE_PATTERN.exec(line) ?? [];
    if (untaggedName === name) found.add(digest.toLowerCase());
    if (taggedName === name) found.add(taggedDigest.toLowerCase());
  }
  return [...found];
}

function lastPathSegment({ pathname }: URL): string {
  const segment = pathname.split("/").at(-1) ?? "";
  try {
    return decodeURIComponent(segment);
  } catch {
    return segment;
  }
}
