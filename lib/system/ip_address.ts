/**
 * Parses IP addresses and tells internet, private and host-local ones apart.
 *
 * Source of the ranges: IANA IPv4 and IPv6 Special-Purpose Address Registries
 * (RFC 6890), those that are not globally reachable, and multicast.
 */

/** From farthest to nearest; `host` is loopback, link-local and anything else. */
export const NETWORK_SCOPES = ["internet", "private", "host"] as const;

export type NetworkScope = (typeof NETWORK_SCOPES)[number];

/** The first matching range applies. */
const SCOPES_BY_IP_RANGE: [string, NetworkScope][] = [
  ["0.0.0.0/8", "host"],
  ["10.0.0.0/8", "private"],
  ["100.64.0.0/10", "private"],
  ["127.0.0.0/8", "host"],
  ["169.254.0.0/16", "host"],
  ["172.16.0.0/12", "private"],
  ["192.0.0.0/24", "host"],
  ["192.168.0.0/16", "private"],
  ["198.18.0.0/15", "host"],
  ["224.0.0.0/3", "host"],
  ["0.0.0.0/0", "internet"],
  ["64:ff9b:1::/48", "private"],
  // IETF protocol assignments, Teredo among them.
  ["2001::/23", "host"],
  ["fc00::/7", "private"],
  // Global unicast.
  ["2000::/3", "internet"],
];

/**
 * Classifies an IP address: IPv4 in four decimal parts, or IPv6, with or without
 * brackets. Any other text has the scope `"host"`.
 */
export function ipNetworkScope(address: string): NetworkScope {
  const bits = parseIpBits(address.replace(/^\[|\]$|%.*$/g, ""));
  if (bits === undefined) return "host";
  const found = SCOPES_BY_IP_RANGE.find(([range]) =>
    isInIpRange(unwrapTunneledIpv4(bits), range)
  );
  return found?.[1] ?? "host";
}

/**
 * Unwraps the IPv4 address inside a 6to4 or NAT64 address; returns others unchanged.
 */
export function unwrapTunneledIpv4(bits: bigint): bigint {
  if (isInIpRange(bits, "2002::/16")) return ipv4MappedBits(bits >> 80n);
  const translated = isInIpRange(bits, "64:ff9b::/32") &&
    !isInIpRange(bits, "64:ff9b:1::/48");
  return translated ? ipv4MappedBits(bits) : bits;
}

function ipv4MappedBits(bits: bigint): bigint {
  return 0xffffn << 32n | bits & 0xffff_ffffn;
}

/**
 * Parses IPv4 in four decimal parts, or IPv6 without brackets, to 128 bits, with IPv4
 * mapped into `::ffff:0:0/96`; `undefined` for any other text.
 */
export function parseIpBits(address: string): bigint | undefined {
  if (!/[.:]/.test(address)) return undefined;
  const six = address.includes(":") ? address : `::ffff:${address}`;
  const url = URL.parse(`http://[${six}]`);
  if (!url) return undefined;
  const [head, tail] = url.hostname.slice(1, -1).split("::")
    .map((part) => part === "" ? [] : part.split(":"));
  const gap = tail ? Array(8 - head.length - tail.length).fill("0") : [];
  return [...head, ...gap, ...tail ?? []]
    .reduce((sum, group) => sum << 16n | BigInt(`0x${group}`), 0n);
}

/**
 * Whether an address is in a CIDR range such as `10.0.0.0/8`. IPv4 never matches an
 * IPv6 range; a malformed range contains no address.
 */
export function isInIpRange(bits: bigint, range: string): boolean {
  const [first, length] = range.split("/");
  const start = parseIpBits(first);
  const rest = (first.includes(":") ? 128 : 32) - Number(length);
  if (start === undefined || rest < 0) return false;
  const isIpv4 = (bits: bigint) => bits >> 32n === 0xffffn;
  return isIpv4(start) === isIpv4(bits) &&
    start >> BigInt(rest) === bits >> BigInt(rest);
}

/** Whether `HOST` or `HOST:PORT` is `localhost`, in 127.0.0.0/8, or `[::1]`. */
export function isLoopbackHost(host: string): boolean {
  const name = host.replace(/:\d+$/, "").toLowerCase();
  return name === "localhost" || name === "[::1]" ||
    /^127(?:\.\d{1,3}){3}$/.test(name);
}
