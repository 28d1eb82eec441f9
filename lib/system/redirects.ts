/**
 * The redirect policy for images, blobs and mirrors: no redirect out of HTTPS, and
 * none to a network closer to this host than the requested URL. A server must not
 * make this host send requests into its own network (SSRF).
 */
import { ToolsmithError } from "../errors.ts";
import { ipNetworkScope, NETWORK_SCOPES } from "./ip_address.ts";
import { isPermissionGranted } from "../environment.ts";
import { abortable } from "./time.ts";

/** `curl` and browsers allow at least as many. */
const MAX_REDIRECTS = 10;
export const REDIRECT_STATUSES = new Set([301, 302, 303, 307, 308]);

/**
 * Requests a URL and follows its redirects. Returns the first response that is not a
 * redirect, and its URL. `sendRequest` follows none, and selects its headers by URL.
 */
export async function fetchFollowingRedirects(
  url: URL,
  sendRequest: (at: URL) => Promise<Response>,
  signal: AbortSignal,
): Promise<[Response, URL]> {
  const refused = (why: string) => {
    const message = `Cannot download ${url.origin}${url.pathname}: ${why}`;
    const hint =
      "if you trust the redirect target, download the image manually and set image.qcow2 to the file";
    return new ToolsmithError("redirect_refused", message, { hint });
  };
  let at = url;
  for (let hops = 0;; hops++) {
    const response = await sendRequest(at);
    const location = response.headers.get("location");
    if (!REDIRECT_STATUSES.has(response.status) || location === null) {
      return [response, at];
    }
    await response.body?.cancel();
    if (hops === MAX_REDIRECTS) {
      throw refused(`redirected more than ${MAX_REDIRECTS} times`);
    }
    const next = URL.parse(location, at);
    if (!next) throw refused("redirected to an invalid URL");
    const urls = { requestedUrl: url, redirectingUrl: at };
    const why = await redirectRefusalReason(next, { ...urls, signal });
    const shown = `${next.protocol}//${next.host}`;
    if (why) throw refused(`redirected to ${shown}, ${why}`);
    at = next;
  }
}

/**
 * Returns why a redirect to a URL is refused, as a relative clause; `undefined` if
 * allowed. The user requested `requestedUrl`; the response of `redirectingUrl` redirects.
 * May resolve host names.
 */
export async function redirectRefusalReason(
  next: URL,
  { requestedUrl, redirectingUrl = requestedUrl, signal }: {
    requestedUrl: URL;
    redirectingUrl?: URL;
    signal: AbortSignal;
  },
): Promise<string | undefined> {
  const secure = next.protocol === "https:" ||
    next.protocol === "http:" && redirectingUrl.protocol === "http:";
  if (!secure) return "which is not HTTPS";
  if (next.host === redirectingUrl.host) return undefined;
  const target = Math.max(...await resolveScopeRanks(next, signal));
  if (target === 0) return undefined;
  // The requested host may have several addresses; compare with the farthest.
  const farthest = Math.min(...await resolveScopeRanks(requestedUrl, signal));
  if (target <= farthest) return undefined;
  const network = target === 1
    ? "a private network"
    : "this host or its link-local network";
  return `which is an address of ${network}`;
}

/** Ranks of a host's addresses in NETWORK_SCOPES: 0 is the internet. */
async function resolveScopeRanks({ hostname }: URL, signal: AbortSignal) {
  const addresses = await resolveHostAddresses(hostname, signal);
  // Names may only be resolvable by the proxy.
  if (addresses.length === 0) return [0];
  return addresses.map((it) => NETWORK_SCOPES.indexOf(ipNetworkScope(it)));
}

/** Resolves a host name; TLS then authenticates the server by that name. */
async function resolveHostAddresses(hostname: string, signal: AbortSignal) {
  if (/^(?:\[.*\]|[\d.]+)$/.test(hostname)) return [hostname];
  // Always loopback (RFC 6761, section 6.3).
  if (/(?:^|\.)localhost\.?$/.test(hostname)) return ["127.0.0.1"];
  // Avoids a permission prompt; the request itself needs the same permission.
  if (!isPermissionGranted({ name: "net", host: hostname })) return [];
  // Imported late: redirects between hosts are rare.
  const { default: dns } = await import("node:dns/promises");
  signal.throwIfAborted();
  try {
    const found = await abortable(dns.lookup(hostname, { all: true }), signal);
    return found.map(({ address }) => address);
  } catch {
    signal.throwIfAborted();
    return [];
  }
}
