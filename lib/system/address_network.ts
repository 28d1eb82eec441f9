/**
 * Which network an address is in, as seen from this host.
 *
 * Ranges are those of the IANA IPv4 and IPv6 Special-Purpose Address Registries
 * (RFC 6890) that are not globally reachable, and multicast.
 *
 * @module
 */

/** From the farthest to the nearest; `host` is this host, its link, and the rest. */
export const NETWORKS = ["internet", "private", "host"] as const;

/** One of {@linkcode NETWORKS}. */
export type Network = (typeof NETWORKS)[number];

/** First address, length of prefix, network. */
const IPV4: [string, number, Network][] = [
  ["0.0.0.0", 8, "host"],
  ["10.0.0.0", 8, "private"],
  ["100.64.0.0", 10, "private"],
  ["127.0.0.0", 8, "host"],
  ["169.254.0.0", 16, "host"],
  ["172.16.0.0", 12, "private"],
  ["192.0.0.0", 24, "host"],
  ["192.168.0.0", 16, "private"],
  ["198.18.0.0", 15, "host"],
  ["224.0.0.0", 3, "host"],
];

/**
 * Tells which network an address is in.
 *
 * @param address IPv4 in four decimal parts, or IPv6, also in brackets.
 * @returns Its network; `"host"` also for what is not an address.
 */
export function networkOf(address: string): Network {
  const bare = address.replace(/^\[|\]$|%.*$/g, "");
  return bare.includes(":") ? ipv6Network(bare) : ipv4Network(bare);
}

function ipv4Network(address: string): Network {
  if (!/^\d{1,3}(?:\.\d{1,3}){3}$/.test(address)) return "host";
  const number = ipv4Number(address);
  const range = IPV4.find(([first, bits]) =>
    number >>> (32 - bits) === ipv4Number(first) >>> (32 - bits)
  );
  return range?.[2] ?? "internet";
}

function ipv4Number(address: string): number {
  return address.split(".").reduce((sum, part) => sum << 8 | Number(part), 0);
}

function ipv6Network(address: string): Network {
  const groups = addressGroups(address);
  if (!groups) return "host";
  const [first, second] = groups;
  const zeros = groups.findIndex((group) => group !== 0);
  const ipv4 = (high: number, low: number) =>
    ipv4Network([high >> 8, high & 255, low >> 8, low & 255].join("."));
  if (zeros === 5 && groups[5] === 0xffff) return ipv4(groups[6], groups[7]);
  if (first === 0x64 && second === 0xff9b) {
    return groups[2] === 1 ? "private" : ipv4(groups[6], groups[7]);
  }
  // IETF protocol assignments, Teredo among them.
  if (first === 0x2001 && second < 0x200) return "host";
  if (first === 0x2002) return ipv4(second, groups[2]);
  if (first >> 9 === 0xfc >> 1) return "private";
  // All that is global is 2000::/3 as yet: ::/96 is the loopback and the
  // unspecified address, and an old form of IPv4.
  return first >> 13 === 1 ? "internet" : "host";
}

/**
 * Reads an address.
 *
 * @param address IPv4 in four decimal parts, or IPv6, without brackets.
 * @returns Its eight groups, of IPv4 those of `::ffff:0:0/96`; `undefined` for
 * any other text.
 */
export function addressGroups(address: string): number[] | undefined {
  if (!/[.:]/.test(address)) return undefined;
  const six = address.includes(":") ? address : `::ffff:${address}`;
  const url = URL.parse(`http://[${six}]`);
  if (!url) return undefined;
  const [head, tail] = url.hostname.slice(1, -1).split("::")
    .map((part) => part === "" ? [] : part.split(":"));
  const gap = tail ? Array(8 - head.length - tail.length).fill("0") : [];
  return [...head, ...gap, ...tail ?? []].map((group) => parseInt(group, 16));
}

/**
 * Checks whether a host is this very one, by its name or address.
 *
 * @param host Host, and port if any.
 * @returns `true` for `localhost`, 127.0.0.0/8 and `[::1]`.
 */
export function isLoopback(host: string): boolean {
  const name = host.replace(/:\d+$/, "").toLowerCase();
  return name === "localhost" || name === "[::1]" ||
    /^127(?:\.\d{1,3}){3}$/.test(name);
}
