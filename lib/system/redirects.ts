/**
 * The one policy for redirects, of images, blobs and mirrors alike: not out of
 * HTTPS, and not nearer to this host than the address that was asked for.
 * Whoever serves an image must not choose what this host asks in its own network.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { type Network, networkOf, NETWORKS } from "./address_network.ts";
import { abortable } from "./time.ts";

/** Sends one request. It follows no redirect, and decides which headers go where. */
export type Ask = (at: URL) => Promise<Response>;

/** As many as `curl` and browsers follow at least. */
const MAX_REDIRECTS = 10;
const REDIRECTS = new Set([301, 302, 303, 307, 308]);

/**
 * Checks whether a status leads elsewhere.
 *
 * @param status The status of an answer.
 */
export function isRedirect(status: number): boolean {
  return REDIRECTS.has(status);
}

/**
 * Asks for an address, and for those that it redirects to.
 *
 * Needs `--allow-net` for their hosts.
 *
 * @param url The address.
 * @param ask Sends a request.
 * @param signal Ends the resolving of names when aborted.
 * @returns The first answer that is no redirect, and its address.
 * @throws {ToolsmithError} `redirect_refused`.
 * @throws What `ask` throws.
 */
export async function fetchFollowing(
  url: URL,
  ask: Ask,
  signal: AbortSignal,
): Promise<[Response, URL]> {
  let at = url;
  for (let hops = 0;; hops++) {
    const response = await ask(at);
    const location = response.headers.get("location");
    if (!isRedirect(response.status) || location === null) {
      return [response, at];
    }
    await response.body?.cancel();
    if (hops === MAX_REDIRECTS) {
      throw refused(url, `it was redirected more than ${MAX_REDIRECTS} times`);
    }
    const next = URL.parse(location, at);
    if (!next) {
      throw refused(url, "it is redirected to what is not an address");
    }
    const why = await whyRefused(next, { origin: url, from: at, signal });
    if (why) {
      const shown = `${next.protocol}//${next.host}`;
      throw refused(url, `it is redirected to ${shown}, ${why}`);
    }
    at = next;
  }
}

/** Where a server's word comes from, and who waits for the verdict. */
export interface RedirectOptions {
  /** The address that the user named. */
  origin: URL;
  /** The address whose answer leads elsewhere. @default {origin} */
  from?: URL;
  /** Ends the resolving of names when aborted. */
  signal: AbortSignal;
}

/**
 * Says why a server may not send this host to an address.
 *
 * @param next The address.
 * @param options Who sends it there.
 * @returns The reason, to follow the address and a comma; `undefined` if it may.
 */
export async function whyRefused(
  next: URL,
  { origin, from = origin, signal }: RedirectOptions,
): Promise<string | undefined> {
  const secure = next.protocol === "https:" ||
    next.protocol === "http:" && from.protocol === "http:";
  if (!secure) return "which is not HTTPS";
  if (next.host === from.host) return undefined;
  const near = (network: Network) => NETWORKS.indexOf(network);
  const to = near((await networksOf(next, signal)).at(-1)!);
  // Names may have several addresses: the farthest is what it proves to be.
  if (to === 0 || to <= near((await networksOf(origin, signal))[0])) {
    return undefined;
  }
  return `which is an address of ${
    to === 1 ? "a private network" : "this host or its link"
  }`;
}

/** The networks that a host is in, from the farthest to the nearest. */
async function networksOf(
  { hostname }: URL,
  signal: AbortSignal,
): Promise<Network[]> {
  const found = (await addressesOf(hostname, signal)).map(networkOf);
  // Where a proxy alone resolves names, there is nothing to be seen here.
  if (found.length === 0) return ["internet"];
  return NETWORKS.filter((network) => found.includes(network));
}

/** A name counts as what it resolves to; TLS then holds the server to it. */
async function addressesOf(
  hostname: string,
  signal: AbortSignal,
): Promise<string[]> {
  if (/^(?:\[.*\]|[\d.]+)$/.test(hostname)) return [hostname];
  // Whoever resolves them (RFC 6761, section 6.3).
  if (/(?:^|\.)localhost\.?$/.test(hostname)) return ["127.0.0.1"];
  // Without the permission the user would be asked; the request itself needs it.
  const net = { name: "net", host: hostname } as const;
  if ((await Deno.permissions.query(net)).state !== "granted") return [];
  // Redirects between hosts are rare: not loaded at every start.
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

function refused(url: URL, why: string): ToolsmithError {
  return new ToolsmithError(
    "redirect_refused",
    `Cannot download ${url.origin}${url.pathname}: ${why}`,
    {
      hint:
        "if you trust that address, download the image yourself and name its file in image.qcow2",
    },
  );
}
