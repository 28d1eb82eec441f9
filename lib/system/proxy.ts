/**
 * Which proxy a request goes through.
 *
 * The rules are those of Go's `golang.org/x/net/http/httpproxy`: `oras` is a Go
 * program, and what one of the two reaches, the other has to reach as well. They
 * differ from Deno's: Go reads no `ALL_PROXY`, never sends what is for this host
 * to a proxy, and knows `HOST:PORT` in `NO_PROXY`.
 *
 * @module
 */
import { type Environment, processEnvironment } from "../environment.ts";
import { addressGroups, isLoopback } from "./address_network.ts";

/** What a request is for, as a rule of `NO_PROXY` is compared with it. */
interface Target {
  host: string;
  port: string;
  /** Where the host is an address: its eight groups. */
  groups: number[] | undefined;
}

/**
 * Finds the proxy for an address.
 *
 * @param url The address, of HTTP or HTTPS.
 * @param env Read for `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, each in lower
 * case too, and for `REQUEST_METHOD`: in CGI, a client sets `HTTP_PROXY`.
 * @returns The proxy's address; `undefined` where there is none.
 */
export function proxyFor(
  url: URL,
  env: Environment = processEnvironment,
): URL | undefined {
  const secure = url.protocol === "https:";
  const named = secure
    ? env.get("HTTPS_PROXY") || env.get("https_proxy")
    : !env.get("REQUEST_METHOD") &&
      (env.get("HTTP_PROXY") || env.get("http_proxy"));
  const proxy = named && parseProxy(named);
  if (!proxy || isLoopback(url.hostname)) return undefined;
  const host = url.hostname.replace(/^\[|\]$/g, "");
  const port = url.port || (secure ? "443" : "80");
  const target = { host, port, groups: addressGroups(host) };
  const rules = (env.get("NO_PROXY") || env.get("no_proxy") || "").split(",")
    .map((rule) => rule.trim().toLowerCase()).filter(Boolean);
  return rules.some((rule) => matches(rule, target)) ? undefined : proxy;
}

/** Reads `http://user:password@host:port`, or `host:port` alone. */
function parseProxy(text: string): URL | undefined {
  const url = URL.parse(text);
  return url?.host ? url : URL.parse(`http://${text}`) ?? undefined;
}

function matches(rule: string, { host, port, groups }: Target): boolean {
  if (rule === "*") return true;
  const [, network, length] = /^([^/]+)\/(\d+)$/.exec(rule) ?? [];
  const first = network && addressGroups(network);
  if (first) {
    const bits = Number(length) + (network.includes(":") ? 0 : 96);
    return groups !== undefined && inRange(groups, first, bits);
  }
  const [, six, other, only] =
    /^(?:\[([^\]]*)\]|([^:[\]]*)):([^:]*)$/.exec(rule) ?? [];
  if (only && only !== port) return false;
  const name = six ?? other ?? rule;
  const address = addressGroups(name);
  if (address || groups) return String(address) === String(groups);
  // `example.com` is the host and all below, `.example.com` what is below.
  const suffix = name.replace(/^\*\./, ".");
  return suffix.startsWith(".")
    ? host.endsWith(suffix)
    : suffix !== "" && `.${host}`.endsWith(`.${suffix}`);
}

/** IPv4 and IPv6 have ranges of their own, though both have eight groups here. */
function inRange(groups: number[], first: number[], bits: number): boolean {
  if (isIpv4(first) !== isIpv4(groups) || bits > 128) return false;
  const prefix = (all: number[]) =>
    all.reduce((sum, group) => sum << 16n | BigInt(group), 0n) >>
    BigInt(128 - bits);
  return prefix(groups) === prefix(first);
}

function isIpv4(groups: number[]): boolean {
  return groups.slice(0, 6).join() === "0,0,0,0,0,65535";
}
