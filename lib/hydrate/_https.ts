/**
 * Reads a file behind an `https://` address, going on where a cut transfer
 * ended.
 *
 * Ranges are those of RFC 9110, section 14.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { statusError, transportError } from "./_https_errors.ts";
import { backoffMs, isTransient, type RetryOptions } from "../system/retry.ts";
import { sleep } from "../system/time.ts";

/** What {@linkcode openHttps} takes. */
export interface HttpsOptions extends RetryOptions {
  /** A PEM file with the certificate authority to trust. @default {undefined} */
  caFile?: string;
  /** Time without a byte after which it is given up, in milliseconds. @default {60_000} */
  stallTimeoutMs?: number;
}

/** A file that is being read. */
export interface HttpsFile extends Disposable {
  /** Its size, in bytes; `null` where the server does not say. */
  bytes: number | null;
  /** Its bytes; a cut is mended by asking for the rest. */
  chunks: AsyncIterable<Uint8Array>;
}

/**
 * Opens a file behind an address.
 *
 * Needs `--allow-net` for its host.
 *
 * @param url The address.
 * @param options Patience, and whom to trust.
 * @returns The file; disposing it ends the transfer.
 * @throws {ToolsmithError} `file_unreadable` for the authority's file;
 * `unauthorized`, `forbidden`, `not_found`,
 * `rate_limited`, `registry_unavailable`, `tls_failed`, `dns_failed`,
 * `connection_failed`, `transfer_interrupted`, `transfer_stalled`.
 */
export async function openHttps(
  url: URL,
  options: HttpsOptions = {},
): Promise<HttpsFile> {
  const { retries = 3, caFile } = options;
  const shown = `${url.origin}${url.pathname}`;
  const client = caFile === undefined ? undefined : await trusting(caFile);
  let attempt = 1;
  /** Pauses after a failure, or gives up. */
  const again = async (error: unknown) => {
    options.signal?.throwIfAborted();
    if (!isTransient(error) || attempt > retries) throw error;
    const delayMs = backoffMs(attempt, options.retryDelayMs);
    attempt++;
    options.onRetry?.({ error, attempt, attempts: retries + 1, delayMs });
    await sleep(delayMs, options.signal);
  };
  const connect = async (from: number, etag: string | null) => {
    while (true) {
      try {
        return await request(url, shown, from, etag, client, options);
      } catch (error) {
        await again(error);
      }
    }
  };

  let current: Transfer;
  try {
    current = await connect(0, null);
  } catch (error) {
    client?.close();
    throw error;
  }
  const { bytes, etag } = current;
  async function* chunks() {
    let position = 0;
    while (true) {
      let skip = position - current.from;
      try {
        for await (const chunk of current.body) {
          const rest = chunk.subarray(Math.min(skip, chunk.length));
          skip -= chunk.length - rest.length;
          position += rest.length;
          if (rest.length > 0) yield rest;
        }
        if (bytes === null || position >= bytes) return;
        throw new ToolsmithError(
          "transfer_interrupted",
          `The transfer of ${shown} was cut at ${position} of ${bytes} bytes`,
          { hint: "try again" },
        );
      } catch (error) {
        await again(error);
        current = await connect(position, etag);
      }
    }
  }
  return {
    bytes,
    chunks: chunks(),
    [Symbol.dispose]() {
      current.cancel();
      client?.close();
    },
  };
}

interface Transfer {
  /** The first byte's position in the file. */
  from: number;
  /** How many come, if that is known. */
  bytes: number | null;
  etag: string | null;
  body: AsyncIterable<Uint8Array>;
  cancel(): void;
}

async function request(
  url: URL,
  shown: string,
  from: number,
  etag: string | null,
  client: Deno.HttpClient | undefined,
  options: HttpsOptions,
): Promise<Transfer> {
  const { stallTimeoutMs = 60_000, signal } = options;
  const stop = new AbortController();
  const cancel = () => stop.abort(signal?.reason);
  signal?.throwIfAborted();
  signal?.addEventListener("abort", cancel, { once: true });
  let stalled = false;
  const arm = () =>
    setTimeout(() => {
      stalled = true;
      stop.abort();
    }, stallTimeoutMs);
  let timer = arm();
  const release = () => {
    clearTimeout(timer);
    signal?.removeEventListener("abort", cancel);
  };
  let response: Response | undefined;
  const explain = (error: unknown) => {
    if (signal?.aborted) return signal.reason;
    if (!stalled) return transportError(error, shown, response !== undefined);
    return new ToolsmithError(
      "transfer_stalled",
      `Cannot download ${shown}: nothing arrived for ${
        stallTimeoutMs / 1000
      } s`,
      { hint: "try again, or allow more time: --stall-timeout SECONDS" },
    );
  };

  try {
    // Encoded bytes would have neither the size nor the ranges of the file.
    const headers: HeadersInit = { "accept-encoding": "identity" };
    if (from > 0) headers.range = `bytes=${from}-`;
    if (from > 0 && etag) headers["if-range"] = etag;
    response = await fetch(url, { headers, signal: stop.signal, client });
    if (!response.ok || !response.body) {
      await response.body?.cancel();
      throw statusError(response.status, shown);
    }
    if (response.status === 206 && rangeStart(response) !== from) {
      await response.body.cancel();
      throw new ToolsmithError(
        "transfer_interrupted",
        `Cannot go on with ${shown} at byte ${from}: the server sent others`,
        { hint: "try again" },
      );
    }
  } catch (error) {
    release();
    throw error instanceof ToolsmithError ? error : explain(error);
  }

  const length = response.headers.get("content-length");
  const source = response.body;
  async function* body() {
    try {
      for await (const chunk of source) {
        clearTimeout(timer);
        yield chunk;
        timer = arm();
      }
    } catch (error) {
      throw explain(error);
    } finally {
      release();
    }
  }
  return {
    from: response.status === 206 ? from : 0,
    bytes: length === null ? null : Number(length),
    etag: response.headers.get("etag"),
    body: body(),
    cancel() {
      release();
      stop.abort();
    },
  };
}

/** The position of the first byte that a partial answer holds. */
function rangeStart({ headers }: Response): number | undefined {
  const range = /^bytes (\d+)-/.exec(headers.get("content-range") ?? "");
  return range ? Number(range[1]) : undefined;
}

async function trusting(caFile: string): Promise<Deno.HttpClient> {
  let authority: string;
  try {
    authority = await Deno.readTextFile(caFile);
  } catch (cause) {
    if (cause instanceof Deno.errors.NotCapable) throw cause;
    throw new ToolsmithError(
      "file_unreadable",
      `Cannot read the certificate authority ${caFile}: ${
        (cause as Error).message
      }`,
      { hint: "check the path in --ca-file", cause },
    );
  }
  try {
    return Deno.createHttpClient({ caCerts: [authority] });
  } catch (cause) {
    throw new ToolsmithError(
      "tls_failed",
      `Cannot use the certificate authority ${caFile}: ${
        (cause as Error).message
      }`,
      { hint: "--ca-file takes a PEM file", cause },
    );
  }
}
