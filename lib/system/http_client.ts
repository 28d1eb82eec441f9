/** HTTP client with a private CA and Go's proxy rules. */
import { processEnvironment } from "../environment.ts";
import { systemError, ToolsmithError } from "../errors.ts";
import { toTransportError } from "./http_errors.ts";
import { findProxy } from "./find_proxy.ts";

export type HttpRequestInit = RequestInit & { signal: AbortSignal };

export type HttpClient = Awaited<ReturnType<typeof createHttpClient>>;

/** Variables that make Deno use a proxy by its own rules. */
const PROXY_ENV_NAMES = [
  ...["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"],
  ...["https_proxy", "http_proxy", "all_proxy", "no_proxy"],
];

/**
 * Creates a client that also trusts the certificate authority of a PEM file; disposing
 * closes its connections. The proxy variables need `--allow-env`: Deno would use the
 * variables that Toolsmith may not read.
 */
export async function createHttpClient(
  caFile: string | undefined,
  options: Omit<Deno.CreateHttpClientOptions, "proxy" | "caCerts"> = {},
) {
  const caCerts = caFile === undefined ? [] : [await readCertificate(caFile)];
  /** Clients by proxy URL; `undefined` is the direct connection. */
  const clients = new Map<string | undefined, Deno.HttpClient>();
  const clientFor = (proxy: URL | undefined) => {
    const client = clients.get(proxy?.href) ?? createClientIgnoringProxyEnv({
      ...options,
      caCerts,
      proxy: proxy && toDenoProxy(proxy),
    });
    clients.set(proxy?.href, client);
    return client;
  };
  try {
    // Reports an invalid certificate early.
    clientFor(undefined);
  } catch (cause) {
    if (cause instanceof Deno.errors.NotCapable) throw cause;
    const { message: why } = cause as Error;
    const message = `Cannot use the certificate authority ${caFile}: ${why}`;
    const hint = "pass a PEM file to --ca-file";
    throw new ToolsmithError("tls_failed", message, { hint, cause });
  }
  return {
    [Symbol.dispose]: () => clients.forEach((client) => client.close()),
    /**
     * Sends one request and does not follow redirects. `shown` is the URL for error
     * messages, without secrets.
     */
    async fetch(url: URL, request: HttpRequestInit, shown = url.host) {
      const proxy = findProxy(url);
      const client = clientFor(proxy);
      try {
        return await fetch(url, { ...request, client, redirect: "manual" });
      } catch (error) {
        request.signal.throwIfAborted();
        const via = proxy ? `${shown} through the proxy ${proxy.host}` : shown;
        throw toTransportError(error, via, false);
      }
    },
  };
}

async function readCertificate(caFile: string): Promise<string> {
  return await Deno.readTextFile(caFile).catch((cause) => {
    const messagePrefix = `Cannot read the certificate authority ${caFile}`;
    const hint = "check the path in --ca-file";
    throw systemError(cause, { messagePrefix, hint });
  });
}

/** Hides the proxy variables while Deno creates the client. */
function createClientIgnoringProxyEnv(options: Deno.CreateHttpClientOptions) {
  using restored = new DisposableStack();
  for (const name of PROXY_ENV_NAMES) {
    const value = processEnvironment.get(name);
    if (value === undefined) continue;
    // Set to "" instead of deleted: another thread may read the environment.
    Deno.env.set(name, "");
    restored.defer(() => Deno.env.set(name, value));
  }
  return Deno.createHttpClient(options);
}

function toDenoProxy(proxy: URL): Deno.Proxy {
  const { protocol, host, username, password } = proxy;
  const url = `${protocol}//${host}`;
  try {
    if (!/^(?:https?|socks5h?):$/.test(protocol)) throw new TypeError(protocol);
    const basicAuth = {
      username: decodeURIComponent(username),
      password: decodeURIComponent(password),
    };
    return username ? { url, basicAuth } : { url };
  } catch (cause) {
    const message = `Cannot use the proxy ${url}`;
    const hint =
      "set HTTPS_PROXY or HTTP_PROXY to an http://, https:// or socks5:// URL; percent-encode a user name and password";
    throw new ToolsmithError("usage", message, { hint, cause });
  }
}
