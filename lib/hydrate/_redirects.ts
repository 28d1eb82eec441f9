/**
 * Follows redirects, but not out of HTTPS, and not from the internet into a
 * private network: whoever serves an image must not choose what this host asks
 * there.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { isPrivateAddress } from "./_private_address.ts";

/** As many as `curl` and browsers follow at least. */
const MAX_REDIRECTS = 10;
const REDIRECTS = new Set([301, 302, 303, 307, 308]);

/**
 * Asks for an address, and for those that it redirects to.
 *
 * @param url The address.
 * @param init Headers, signal and client; the same for every request.
 * @returns The first answer that is no redirect.
 * @throws {ToolsmithError} `redirect_refused`.
 * @throws What `fetch` throws.
 */
export async function fetchFollowing(
  url: URL,
  init: RequestInit & { signal: AbortSignal; client?: Deno.HttpClient },
): Promise<Response> {
  let at = url;
  for (let hops = 0;; hops++) {
    const response = await fetch(at, { ...init, redirect: "manual" });
    const location = response.headers.get("location");
    if (!REDIRECTS.has(response.status) || location === null) return response;
    await response.body?.cancel();
    if (hops === MAX_REDIRECTS) {
      throw refused(url, `it was redirected more than ${MAX_REDIRECTS} times`);
    }
    if (!URL.canParse(location, at)) {
      throw refused(url, "it is redirected to what is not an address");
    }
    const next = new URL(location, at);
    const shown = `${next.protocol}//${next.host}`;
    if (next.protocol !== "https:") {
      throw refused(url, `it is redirected to ${shown}, which is not HTTPS`);
    }
    if (
      next.host !== at.host && await isPrivateHost(next, init.signal) &&
      !await isPrivateHost(url, init.signal)
    ) {
      throw refused(
        url,
        `it is redirected to ${shown}, which is an address of a private network`,
      );
    }
    at = next;
  }
}

/** A name counts as what it resolves to; TLS then holds the server to it. */
async function isPrivateHost(
  { hostname }: URL,
  signal: AbortSignal,
): Promise<boolean> {
  if (/^(?:\[.*\]|[\d.]+)$/.test(hostname)) return isPrivateAddress(hostname);
  // Redirects between hosts are rare: not loaded at every start.
  const { lookup } = await import("node:dns/promises");
  const aborted = Promise.withResolvers<never>();
  const abort = () => aborted.reject(signal.reason);
  signal.addEventListener("abort", abort, { once: true });
  try {
    const found = await Promise.race([
      lookup(hostname, { all: true }),
      aborted.promise,
    ]);
    return found.some(({ address }) => isPrivateAddress(address));
  } catch (error) {
    signal.throwIfAborted();
    if (error instanceof Deno.errors.NotCapable) throw error;
    // Where a proxy alone resolves names, there is nothing to be seen here.
    return false;
  } finally {
    signal.removeEventListener("abort", abort);
  }
}

function refused(url: URL, why: string): ToolsmithError {
  return new ToolsmithError(
    "redirect_refused",
    `Cannot download ${url.origin}${url.pathname}: ${why}`,
    { hint: "name the address itself in image.qcow2, if you trust it" },
  );
}
