/**
 * Reads a file behind an `https://` address, going on where a cut transfer
 * ended.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { httpClient } from "../system/http_client.ts";
import { pauseAfter, type RetryOptions } from "../system/retry.ts";
import { sleep } from "../system/time.ts";
import { requestFile, type Transfer } from "./_https_request.ts";

/** What {@linkcode openHttps} takes. */
export interface HttpsOptions extends RetryOptions {
  /** A PEM file with the certificate authority to trust. @default {undefined} */
  caFile?: string;
  /** Time without a byte after which it is aborted, in milliseconds. @default {60_000} */
  stallTimeoutMs?: number;
  /**
   * What is there of it: so many bytes of a file of that size. Where the server
   * has another one, or no ranges, it begins at its start. @default {undefined}
   */
  resume?: { from: number; size: number };
  /** The most that is read, in bytes. @default {256 * 1024 ** 3} */
  maxBytes?: number;
}

const MAX_BYTES = 256 * 1024 ** 3;

/** A file that is being read. */
export interface HttpsFile extends Disposable {
  /** Its size, in bytes; `null` where the server does not say. */
  bytes: number | null;
  /** Where the bytes begin. */
  from: number;
  /** Its bytes; after a cut the rest is asked for. */
  chunks: AsyncIterable<Uint8Array<ArrayBuffer>>;
}

/** Asks for a file from a position on. */
type Connect = (from: number, etag: string | null) => Promise<Transfer>;

/**
 * Opens a file behind an address.
 *
 * Needs `--allow-net` for its host, and for those it redirects to.
 *
 * @param url The address.
 * @param options Retries, time limits, and whom to trust.
 * @returns The file; disposing it ends the transfer.
 * @throws {ToolsmithError} `file_unreadable` for the authority's file;
 * `unauthorized`, `forbidden`, `not_found`, `rate_limited`,
 * `registry_unavailable`, `tls_failed`, `dns_failed`, `connection_failed`,
 * `redirect_refused`, `transfer_interrupted`, `transfer_stalled`;
 * `artifact_unsafe` for more than `maxBytes`.
 */
export async function openHttps(
  url: URL,
  options: HttpsOptions = {},
): Promise<HttpsFile> {
  const { stallTimeoutMs = 60_000, maxBytes = MAX_BYTES } = options;
  const { signal, caFile, resume } = options;
  const client = await httpClient(caFile);
  const pause = retryPauses(options);
  let current: Transfer | undefined;
  const connect: Connect = async (from, etag) => {
    while (true) {
      try {
        const rest = { from, etag, client, stallTimeoutMs, signal };
        return current = await requestFile(url, rest);
      } catch (error) {
        await pause(error);
      }
    }
  };
  try {
    let first = await connect(resume?.from ?? 0, null);
    if (first.from > 0 && sizeOf(first) !== resume?.size) {
      first.cancel();
      first = await connect(0, null);
    }
    const bytes = sizeOf(first);
    if ((bytes ?? 0) > maxBytes) {
      first.cancel();
      throw tooLarge(first.shown, maxBytes);
    }
    return {
      bytes,
      from: first.from,
      chunks: resuming(first, { connect, pause, maxBytes }),
      [Symbol.dispose]() {
        current?.cancel();
        client[Symbol.dispose]();
      },
    };
  } catch (error) {
    client[Symbol.dispose]();
    throw error;
  }
}

/** Size of the whole file, in bytes, if the server says that. */
function sizeOf({ from, bytes }: Transfer): number | null {
  return bytes === null ? null : from + bytes;
}

/** Reads a transfer to its end, through as many requests as that takes. */
async function* resuming(
  first: Transfer,
  { connect, pause, maxBytes }: {
    connect: Connect;
    pause: (error: unknown) => Promise<void>;
    maxBytes: number;
  },
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const { etag, shown } = first;
  const bytes = sizeOf(first);
  let current = first;
  let position = first.from;
  while (true) {
    let skip = position - current.from;
    try {
      for await (const chunk of current.body) {
        const rest = chunk.subarray(Math.min(skip, chunk.length));
        skip -= chunk.length - rest.length;
        position += rest.length;
        if (position > (bytes ?? maxBytes)) {
          throw bytes === null
            ? tooLarge(shown, maxBytes)
            : tooLong(shown, bytes);
        }
        if (rest.length > 0) yield rest;
      }
      if (bytes === null || position >= bytes) return;
      throw new ToolsmithError(
        "transfer_interrupted",
        `The transfer of ${shown} was cut at ${position} of ${bytes} bytes`,
        { hint: "try again" },
      );
    } catch (error) {
      await pause(error);
      current = await connect(position, etag);
    }
  }
}

/** Pauses after a failure that may pass, as often as is allowed in all. */
function retryPauses(options: RetryOptions) {
  let attempt = 1;
  return async (error: unknown) => {
    options.signal?.throwIfAborted();
    await sleep(pauseAfter(error, attempt++, options), options.signal);
  };
}

function tooLarge(shown: string, maxBytes: number): ToolsmithError {
  return new ToolsmithError(
    "artifact_unsafe",
    `Cannot download ${shown}: it has more than ${maxBytes} bytes`,
    {
      hint:
        "fetch it yourself: a manifest can name a file, and --sha256 a digest",
    },
  );
}

function tooLong(shown: string, bytes: number): ToolsmithError {
  return new ToolsmithError(
    "checksum_mismatch",
    `Cannot download ${shown}: the server sent more than the ${bytes} bytes it announced`,
    { hint: "nothing was kept; the server or a proxy on the way is broken" },
  );
}
