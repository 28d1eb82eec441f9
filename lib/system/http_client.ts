/** HTTP client with a private CA and Go's proxy rules. */
import { processEnvironment } from "../environment.ts";
import { systemError, ToolsmithError } from "../errors.ts";
import { toTransportError } from "./http_errors.ts";
import { findProxy } from "./find_proxy.ts";

/** Options of a request; its signal is required. */
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
    const known = clients.get(proxy?.href);
    if (known) return known;
    const all = { ...options, caCerts, ...denoProxyOption(proxy) };
    const client = createClientIgnoringProxyEnv(all);
    clients.set(proxy?.href, client);
    return client;
  };
  const close = () => clients.forEach((client) => client.close());
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
    [Symbol.dispose]: close,
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
  const hidden = PROXY_ENV_NAMES.flatMap((name) => {
    const value = processEnvironment.get(name);
    return value === undefined ? [] : [[name, value]];
  });
  // Set to "" instead of deleted: another thread may read the environment.
  for (const [name] of hidden) Deno.env.set(name, "");
  try {
    return Deno.createHttpClient(options);
  } finally {
    for (const [name, value] of hidden) Deno.env.set(name, value);
  }
}

function denoProxyOption(proxy: URL | undefined): { proxy?: Deno.Proxy } {
  if (!proxy) return {};
  const { protocol, host, username, password } = proxy;
  const url = `${protocol}//${host}`;
  try {
    if (!/^(?:https?|socks5h?):$/.test(protocol)) throw new TypeError(protocol);
    const login = {
      username: decodeURIComponent(username),
      password: decodeURIComponent(password),
    };
    return { proxy: { url, basicAuth: username ? login : undefined } };
  } catch (cause) {
    const message = `Cannot use the proxy ${url}`;
    const hint =
      "set HTTPS_PROXY or HTTP_PROXY to an http://, https:// or socks5:// URL; percent-encode a user name and password";
    throw new ToolsmithError("usage", message, { hint, cause });
  }
}
