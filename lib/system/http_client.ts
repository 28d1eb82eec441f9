/**
 * Sends requests: decides whom to trust, and which proxy they go through.
 *
 * @module
 */
import { processEnvironment } from "../environment.ts";
import { systemError, ToolsmithError } from "../errors.ts";
import { transportError } from "./http_errors.ts";
import { proxyFor } from "./proxy.ts";

/** A request, to be ended by its signal. */
export type HttpRequest = RequestInit & { signal: AbortSignal };

/** Sends requests until it is disposed. */
export interface HttpClient extends Disposable {
  /**
   * Sends one request. Redirects are not followed.
   *
   * Needs `--allow-net` for the address's host, or that of its proxy.
   *
   * @param url The address.
   * @param request The request.
   * @param shown The address, as a person may see it. @default {url.host}
   * @throws {ToolsmithError} `dns_failed`, `tls_failed`, `connection_failed`,
   * `transfer_interrupted`; `usage` for a proxy of an unknown kind.
   * @throws The signal's reason.
   */
  fetch(url: URL, request: HttpRequest, shown?: string): Promise<Response>;
}

/** What makes Deno use a proxy, by rules of its own. */
const VARIABLES = [
  "HTTPS_PROXY",
  "https_proxy",
  "HTTP_PROXY",
  "http_proxy",
  "ALL_PROXY",
  "all_proxy",
  "NO_PROXY",
  "no_proxy",
];

/**
 * Makes a client that trusts a private certificate authority as well.
 *
 * Needs `--allow-read` for its file, and `--allow-env` for the variables that
 * name proxies: Deno follows those that Toolsmith may not read.
 *
 * @param caFile A PEM file with the authority, or `undefined` for none.
 * @param options Of the connections, passed on.
 * @returns The client, to be disposed of.
 * @throws {ToolsmithError} `file_unreadable`, `tls_failed`.
 */
export async function httpClient(
  caFile: string | undefined,
  options: Omit<Deno.CreateHttpClientOptions, "proxy" | "caCerts"> = {},
): Promise<HttpClient> {
  const authority = caFile === undefined
    ? undefined
    : await Deno.readTextFile(caFile)
      .catch((cause) => {
        throw systemError(cause, {
          what: `Cannot read the certificate authority ${caFile}`,
          hint: "check the path in --ca-file",
        });
      });
  const trusting = { ...options, caCerts: authority ? [authority] : [] };
  /** One for each proxy, and one for none. */
  const clients = new Map<string | undefined, Deno.HttpClient>();
  const through = (proxy: URL | undefined) => {
    const known = clients.get(proxy?.href);
    if (known) return known;
    const client = createClient({ ...trusting, ...proxied(proxy) });
    clients.set(proxy?.href, client);
    return client;
  };
  const close = () => clients.forEach((client) => client.close());
  try {
    // An authority that cannot be used is found here.
    through(undefined);
  } catch (cause) {
    if (cause instanceof Deno.errors.NotCapable) throw cause;
    throw new ToolsmithError(
      "tls_failed",
      `Cannot use the certificate authority ${caFile}: ${
        (cause as Error).message
      }`,
      { hint: "--ca-file takes a PEM file", cause },
    );
  }
  return {
    [Symbol.dispose]: close,
    async fetch(url, request, shown = url.host) {
      const proxy = proxyFor(url);
      const client = through(proxy);
      try {
        return await fetch(url, { ...request, client, redirect: "manual" });
      } catch (error) {
        request.signal.throwIfAborted();
        const way = proxy ? `${shown} through the proxy ${proxy.host}` : shown;
        throw transportError(error, way, false);
      }
    },
  };
}

/** The variables are hidden while Deno looks, and the choice is made here. */
function createClient(options: Deno.CreateHttpClientOptions): Deno.HttpClient {
  const hidden = VARIABLES.flatMap((name) => {
    const value = processEnvironment.get(name);
    return value === undefined ? [] : [[name, value]];
  });
  // Emptied, not deleted: a thread that resolves a name may read the others.
  for (const [name] of hidden) Deno.env.set(name, "");
  try {
    return Deno.createHttpClient(options);
  } finally {
    for (const [name, value] of hidden) Deno.env.set(name, value);
  }
}

function proxied(proxy: URL | undefined): { proxy?: Deno.Proxy } {
  if (!proxy) return {};
  const { protocol, host, username, password } = proxy;
  const url = `${protocol}//${host}`;
  try {
    if (!/^(?:https?|socks5h?):$/.test(protocol)) throw new TypeError(protocol);
    const basicAuth = username
      ? {
        username: decodeURIComponent(username),
        password: decodeURIComponent(password),
      }
      : undefined;
    return { proxy: { url, basicAuth } };
  } catch (cause) {
    throw new ToolsmithError("usage", `Cannot use the proxy ${url}`, {
      hint:
        "set HTTPS_PROXY or HTTP_PROXY to an address of http, https or socks5",
      cause,
    });
  }
}
