/**
 * Asks a registry for a range of a blob, and believes only an answer that is
 * what was asked.
 *
 * Formats: RFC 9110, section 14 (ranges); OCI Distribution Specification 1.1,
 * "Pulling blobs".
 *
 * @module
 */
import { contentEncoding, statusError } from "../system/http_errors.ts";
import { isRedirect } from "../system/redirects.ts";
import { isTransient } from "../system/retry.ts";
import { RangesUnavailable } from "./_ranges_unavailable.ts";
import type { RegistryGet } from "./_registry_get.ts";

/** A blob. */
export interface BlobName {
  /** Its digest, with the algorithm. */
  digest: string;
  /** Size, in bytes. */
  size: number;
}

/** A place that serves a blob. */
export interface BlobSource {
  /** Its host, as a person may see it. */
  readonly host: string;
  /** Asks for bytes; the one after the last is `to`. */
  open(from: number, to: number, signal: AbortSignal): Promise<BlobAnswer>;
}

/** An answer that has begun. */
export interface BlobAnswer {
  /** The bytes that were asked for, or all from the first on. */
  kind: "range" | "whole";
  /** The bytes. */
  body: ReadableStream<Uint8Array<ArrayBuffer>>;
}

/** A signed address that has expired answers one of these. */
const EXPIRED = new Set([400, 401, 403, 404, 410]);

/**
 * Makes a source of a repository that holds a blob. Nothing is sent yet.
 *
 * @param registry The repository.
 * @param blob The blob.
 * @returns The source; it throws what the repository does, and
 * {@linkcode RangesUnavailable} for an answer that cannot be used.
 */
export function blobSource(registry: RegistryGet, blob: BlobName): BlobSource {
  /** Where the registry has redirected to: asked directly until it expires. */
  let direct: URL | undefined;
  return {
    host: registry.host,
    async open(from, to, signal) {
      const headers = {
        // Encoded bytes would have neither the size nor the ranges of the blob.
        "accept-encoding": "identity",
        // Closed: some registries answer 416 to one without an end.
        range: `bytes=${from}-${to - 1}`,
      };
      const range: [number, number] = [from, to];
      if (direct) {
        const response = await registry.getDirect(direct, { headers, signal });
        const { status } = response;
        if (!isRedirect(status) && !EXPIRED.has(status)) {
          return await accepted(response, blob, range, direct);
        }
        await response.body?.cancel();
        direct = undefined;
      }
      const path = `blobs/${blob.digest}`;
      const [response, url] = await registry.get(path, { headers, signal });
      const answer = await accepted(response, blob, range, url);
      if (!registry.isOwn(url)) direct = url;
      return answer;
    },
  };
}

/** Refuses an answer that is not what was asked. */
async function accepted(
  response: Response,
  { size }: BlobName,
  [from, to]: [number, number],
  { host }: URL,
): Promise<BlobAnswer> {
  const { status, headers, body } = response;
  try {
    const wrong = status === 206
      ? wrongRange(headers, size, [from, to])
      : status === 200
      ? wrongLength(headers, size)
      : await refusal(response, host);
    if (wrong) throw new RangesUnavailable(`${host} ${wrong}`);
    if (!body) throw new RangesUnavailable(`${host} answers with no body`);
    return { kind: status === 206 ? "range" : "whole", body };
  } catch (error) {
    await body?.cancel();
    throw error;
  }
}

function wrongRange(
  headers: Headers,
  size: number,
  [from, to]: [number, number],
): string | undefined {
  const text = headers.get("content-range") ?? "";
  const range = /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(text);
  if (!range || Number(range[1]) !== from || Number(range[2]) !== to - 1) {
    return `answers ${from}-${to - 1} with ${
      JSON.stringify(text.slice(0, 60))
    }`;
  }
  if (range[3] !== "*" && Number(range[3]) !== size) {
    return `has ${range[3]} bytes, the manifest says ${size}`;
  }
  return wrongLength(headers, to - from);
}

function wrongLength(headers: Headers, bytes: number): string | undefined {
  const encoding = contentEncoding(headers);
  if (encoding) return `sends it in the encoding ${encoding}`;
  const length = headers.get("content-length");
  if (length === null || Number(length) === bytes) return undefined;
  return `announces ${Number(length)} bytes, not ${bytes}`;
}

/** Throws what may pass, and says what does not. */
function refusal(response: Response, host: string): string {
  const error = statusError(response, host);
  if (isTransient(error) && response.status !== 501) throw error;
  return `answers ${response.status}`;
}
