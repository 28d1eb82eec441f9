/**
 * Selects the proxy of a request by the rules of Go's
 * `golang.org/x/net/http/httpproxy`, because `oras` is a Go program and both must
 * reach the same hosts. Unlike Deno, Go ignores `ALL_PROXY`, never uses a proxy for
 * loopback hosts, and supports `HOST:PORT` in `NO_PROXY`.
 */
import { type Environment, processEnvironment } from "../environment.ts";
import { isInIpRange, isLoopbackHost, parseIpBits } from "./ip_address.ts";

/**
 * Returns the proxy for an HTTP or HTTPS URL; `undefined` for a direct connection.
 * Reads `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, also in lower case, and
 * `REQUEST_METHOD`: in CGI, a client can set `HTTP_PROXY`.
 */
export function findProxy(
  url: URL,
  env: Environment = processEnvironment,
): URL | undefined {
  const secure = url.protocol === "https:";
  const read = (name: string) => env.get(name) || env.get(name.toLowerCase());
  const named = secure
    ? read("HTTPS_PROXY")
    : !env.get("REQUEST_METHOD") && read("HTTP_PROXY");
  const proxy = named && parseProxyUrl(named);
  if (!proxy || isLoopbackHost(url.hostname)) return undefined;
  const rules = (read("NO_PROXY") ?? "").split(",")
    .map((rule) => rule.trim().toLowerCase()).filter(Boolean);
  const isDirect = rules.some((rule) => matchesNoProxyRule(rule, url));
  return isDirect ? undefined : proxy;
}

/** Parses `http://user:password@host:port` or `host:port`. */
function parseProxyUrl(text: string): URL | undefined {
  const url = URL.parse(text);
  return url?.host ? url : URL.parse(`http://${text}`) ?? undefined;
}

function matchesNoProxyRule(rule: string, url: URL): boolean {
  if (rule === "*") return true;
  const host = url.hostname.replace(/^\[|\]$/g, "");
  const port = url.port || (url.protocol === "https:" ? "443" : "80");
  /** The host's IP address; `undefined` for a name. */
  const bits = parseIpBits(host);
  const [, network] = /^([^/]+)\/\d+$/.exec(rule) ?? [];
  if (network && parseIpBits(network) !== undefined) {
    return bits !== undefined && isInIpRange(bits, rule);
  }
  const [, ipv6, hostName, rulePort] =
    /^(?:\[([^\]]*)\]|([^:[\]]*)):([^:]*)$/.exec(rule) ?? [];
  if (rulePort && rulePort !== port) return false;
  const name = ipv6 ?? hostName ?? rule;
  const address = parseIpBits(name);
  if (address !== undefined || bits !== undefined) return address === bits;
  // `example.com` matches the host and its subdomains, `.example.com` only these.
  const suffix = name.replace(/^\*\./, ".");
  return suffix.startsWith(".")
    ? host.endsWith(suffix)
    : suffix !== "" && `.${host}`.endsWith(`.${suffix}`);
}
