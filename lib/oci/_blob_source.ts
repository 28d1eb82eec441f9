/**
 * Asks a registry for a range of a blob, and believes only an answer that is
 * what was asked.
 *
 * Formats: RFC 9110, section 14 (ranges) and section 10.2.3 (Retry-After); OCI
 * Distribution Specification 1.1, "Pulling blobs".
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { statusError, transportError } from "../system/http_errors.ts";
import { RangesUnavailable } from "./_ranges_unavailable.ts";
import type { RegistryCredentials } from "./_docker_config.ts";
import { authorizer } from "./_token.ts";

/** A blob, and where it is. */
export interface BlobAddress {
  /** The registry's address, such as `https://ghcr.io`. */
  origin: string;
  /** The repository's path. */
  repository: string;
  /** `sha256:` and the digest in hex. */
  digest: string;
  /** Size, in bytes. */
  size: number;
  /** Sent as the query of each request, such as `ns=ghcr.io` to a mirror. */
  query?: string;
}

/** What {@linkcode blobSource} takes besides the address. */
export interface BlobSourceOptions {
  /** Whom to trust, and over how many connections. */
  client: Deno.HttpClient;
  /** Finds the credentials, once they are asked for. */
  credentials: () => Promise<RegistryCredentials>;
  /** Ends requests for tokens, which are for all connections. */
  signal?: AbortSignal;
  /** Time after which such a request is aborted, in milliseconds. */
  stallMs: number;
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

/** A failure that may pass, with the pause that the server asks for. */
export class BusyError extends ToolsmithError {
  /** The pause, in milliseconds. */
  readonly pauseMs: number;

  /**
   * Makes the error.
   *
   * @param error What happened.
   * @param pauseMs The pause that the server asks for, in milliseconds.
   */
  constructor(error: ToolsmithError, pauseMs: number) {
    super(error.code, error.message, { hint: error.hint, cause: error });
    this.pauseMs = pauseMs;
  }
}

const MAX_REDIRECTS = 5;
const REDIRECTS = new Set([301, 302, 303, 307, 308]);
/** A signed address that has expired answers one of these. */
const EXPIRED = new Set([400, 401, 403, 404, 410]);

/**
 * Opens a blob's place. Nothing is sent yet.
 *
 * Needs `--allow-net` for the registry's host, that of its token service, and
 * those that it redirects to. Nothing is asked for: a host that is not
 * permitted is refused with {@linkcode RangesUnavailable}.
 *
 * @param address The blob.
 * @param options How to connect, and the credentials.
 * @returns The source.
 */
export function blobSource(
  address: BlobAddress,
  { client, credentials, signal, stallMs }: BlobSourceOptions,
): BlobSource {
  const { origin, repository, digest, query } = address;
  const home = new URL(`${origin}/v2/${repository}/blobs/${digest}`);
  if (query) home.search = query;
  const { header, renew } = authorizer({
    repository,
    plainHttp: home.protocol === "http:",
    credentials,
    send(url, init) {
      const late = AbortSignal.timeout(stallMs);
      const either = signal ? AbortSignal.any([signal, late]) : late;
      return send(url, { ...init, signal: either, client });
    },
  });
  /** Where the registry has redirected to: asked directly until it expires. */
  let direct: URL | undefined;

  /** Asks the registry, and follows it by hand: nobody else gets the token. */
  async function ask(
    headers: Headers,
    stop: AbortSignal,
  ): Promise<[Response, URL]> {
    let renewed = 0;
    let url = home;
    for (let hops = 0;;) {
      const own = url.origin === home.origin;
      const sent = own ? await header() : undefined;
      const all = new Headers(headers);
      if (sent) all.set("authorization", sent);
      const response = await send(url, { headers: all, signal: stop, client });
      const location = response.headers.get("location");
      if (own && response.status === 401 && renewed++ < 2) {
        await response.body?.cancel();
        await renew(response.headers.get("www-authenticate"), sent);
      } else if (REDIRECTS.has(response.status) && location !== null) {
        await response.body?.cancel();
        if (++hops > MAX_REDIRECTS) {
          throw new RangesUnavailable("it redirects in a loop");
        }
        url = redirected(url, location);
      } else return [response, url];
    }
  }

  return {
    host: home.host,
    async open(from, to, stop) {
      const headers = new Headers({
        // Encoded bytes would have neither the size nor the ranges of the blob.
        "accept-encoding": "identity",
        // Closed: some registries answer 416 to one without an end.
        range: `bytes=${from}-${to - 1}`,
      });
      if (direct) {
        const response = await send(direct, { headers, signal: stop, client });
        const moved = REDIRECTS.has(response.status);
        if (!moved && !EXPIRED.has(response.status)) {
          return await accepted(response, address, [from, to], direct);
        }
        await response.body?.cancel();
        direct = undefined;
      }
      const [response, url] = await ask(headers, stop);
      const answer = await accepted(response, address, [from, to], url);
      if (url.origin !== home.origin) direct = url;
      return answer;
    },
  };
}

/** Sends a request to a host that is permitted: Deno would ask the user. */
async function send(
  url: URL,
  init: RequestInit & { client: Deno.HttpClient; signal: AbortSignal },
): Promise<Response> {
  const port = url.port || (url.protocol === "https:" ? "443" : "80");
  const host = `${url.hostname}:${port}`;
  const { state } = await Deno.permissions.query({ name: "net", host });
  if (state !== "granted") {
    throw new RangesUnavailable(`--allow-net=${url.host} is not granted`);
  }
  try {
    return await fetch(url, { ...init, redirect: "manual" });
  } catch (error) {
    init.signal.throwIfAborted();
    throw transportError(error, url.host, false);
  }
}

/** Where a redirect leads: not out of HTTPS, and not to a port of its choice. */
function redirected(from: URL, location: string): URL {
  const to = URL.parse(location, from);
  if (!to) throw new RangesUnavailable("it redirects to what is no address");
  const secure = to.protocol === "https:" ||
    to.protocol === "http:" && from.protocol === "http:";
  if (!secure || to.port !== from.port && to.port !== "") {
    const shown = `${to.protocol}//${to.host}`;
    throw new RangesUnavailable(`it redirects to ${shown}`);
  }
  return to;
}

/** Refuses an answer that is not what was asked. */
async function accepted(
  response: Response,
  { size }: BlobAddress,
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
  const encoding = headers.get("content-encoding") ?? "identity";
  if (encoding !== "identity") {
    return `sends it in the encoding ${JSON.stringify(encoding.slice(0, 40))}`;
  }
  const length = headers.get("content-length");
  if (length === null || Number(length) === bytes) return undefined;
  return `announces ${Number(length)} bytes, not ${bytes}`;
}

/** Throws what may pass, and says what does not. */
function refusal({ status, headers }: Response, host: string): string {
  const passes = status === 408 || status === 429 ||
    status >= 500 && status !== 501;
  if (!passes) return `answers ${status}`;
  const pauseMs = retryAfterMs(headers.get("retry-after"));
  throw new BusyError(statusError(status, host), pauseMs);
}

/**
 * Reads how long a server asks to wait.
 *
 * @param text `Retry-After`: seconds, or a date.
 * @param now The time, in milliseconds since the epoch.
 * @returns The pause in milliseconds; 0 where nothing is asked.
 */
export function retryAfterMs(
  text: string | null,
  now: number = Date.now(),
): number {
  if (text === null) return 0;
  const ms = /^\d+$/.test(text) ? Number(text) * 1000 : Date.parse(text) - now;
  return Math.max(0, ms || 0);
}
