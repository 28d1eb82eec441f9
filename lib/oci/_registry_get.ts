/**
 * Sends GET requests to one registry or mirror: says who asks, and follows
 * redirects by hand, so that nobody else learns it.
 *
 * @module
 */
import { transportError } from "../system/http_errors.ts";
import type { RegistryCredentials } from "./_docker_config.ts";
import { RangesUnavailable } from "./_ranges_unavailable.ts";
import { authorizer } from "./_token.ts";

/** A repository, and how it is reached. */
export interface RegistryAccess {
  /** The address that paths of the API follow, such as `https://ghcr.io/v2`. */
  base: string;
  /** The repository's path. */
  repository: string;
  /** Sent as the query of each request, such as `ns=ghcr.io` to a mirror. */
  query?: string;
  /** Whom to trust, and over how many connections. */
  client: Deno.HttpClient;
  /** Finds the credentials, once they are asked for. */
  credentials: () => Promise<RegistryCredentials>;
  /** Ends requests for tokens, which are for all connections. */
  signal?: AbortSignal;
  /** Time after which such a request is aborted, in milliseconds. */
  stallMs: number;
}

/** A request. */
export interface GetOptions {
  /** Its headers. */
  headers: HeadersInit;
  /** Ends it when aborted. */
  signal: AbortSignal;
}

/** A repository of a registry. */
export interface RegistryGet {
  /** Its host, as a person may see it. */
  readonly host: string;
  /**
   * Asks for a path of the repository, such as `blobs/sha256:…`.
   *
   * @returns The answer that is no redirect, and its address.
   */
  get(path: string, options: GetOptions): Promise<[Response, URL]>;
  /** Asks an address that the registry has redirected to. */
  getDirect(url: URL, options: GetOptions): Promise<Response>;
  /** Whether an address is the registry's own. */
  isOwn(url: URL): boolean;
}

const MAX_REDIRECTS = 5;
const MAX_RENEWALS = 2;
const REDIRECTS = new Set([301, 302, 303, 307, 308]);

/**
 * Prepares requests to a repository. Nothing is sent yet.
 *
 * Needs `--allow-net` for the registry's host, that of its token service, and
 * those that it redirects to. Nothing is asked for: a host that is not permitted
 * is refused.
 *
 * @param access The repository.
 * @returns Its methods; they throw {@linkcode RangesUnavailable}, and
 * `ToolsmithError`s for what may pass.
 */
export function registryGet(access: RegistryAccess): RegistryGet {
  const { base, repository, query = "", client, signal, stallMs } = access;
  const home = new URL(base);
  const { header, renew } = authorizer({
    repository,
    plainHttp: home.protocol === "http:",
    credentials: access.credentials,
    send: (url, init) => send(url, { ...init, client }),
    signal,
    stallMs,
  });
  const isOwn = (url: URL) => url.origin === home.origin;

  return {
    host: home.host,
    isOwn,
    getDirect: (url, options) => send(url, { ...options, client }),
    async get(path, { headers, signal }) {
      let url = new URL(`${base}/${repository}/${path}`);
      url.search = query;
      for (let hops = 0, renewed = 0;;) {
        const own = isOwn(url);
        const sent = own ? await header() : undefined;
        const all = new Headers(headers);
        if (sent) all.set("authorization", sent);
        const response = await send(url, { headers: all, signal, client });
        const location = response.headers.get("location");
        if (own && response.status === 401 && renewed++ < MAX_RENEWALS) {
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
    },
  };
}

/**
 * Tells whether a host may be asked, without asking the user.
 *
 * @param url An address of it.
 */
export async function isPermitted(url: URL): Promise<boolean> {
  const port = url.port || (url.protocol === "https:" ? "443" : "80");
  const host = `${url.hostname}:${port}`;
  const { state } = await Deno.permissions.query({ name: "net", host });
  return state === "granted";
}

async function send(
  url: URL,
  init: RequestInit & { client: Deno.HttpClient; signal: AbortSignal },
): Promise<Response> {
  if (!await isPermitted(url)) {
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
