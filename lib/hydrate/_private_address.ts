/**
 * Addresses that are no place on the internet: this host, its link, a private
 * network.
 *
 * Ranges are those of the IANA IPv4 and IPv6 Special-Purpose Address Registries
 * (RFC 6890) that are not globally reachable, and multicast.
 *
 * @module
 */

/** First address and length of prefix. */
const IPV4: [string, number][] = [
  ["0.0.0.0", 8],
  ["10.0.0.0", 8],
  ["100.64.0.0", 10],
  ["127.0.0.0", 8],
  ["169.254.0.0", 16],
  ["172.16.0.0", 12],
  ["192.0.0.0", 24],
  ["192.168.0.0", 16],
  ["198.18.0.0", 15],
  ["224.0.0.0", 3],
];

/**
 * Checks whether an address is this host's, its link's or a private network's.
 *
 * @param address IPv4 in four decimal parts, or IPv6, also in brackets.
 * @returns `true` also for what is not an address.
 */
export function isPrivateAddress(address: string): boolean {
  const bare = address.replace(/^\[|\]$|%.*$/g, "");
  return bare.includes(":") ? isPrivateIpv6(bare) : isPrivateIpv4(bare);
}

function isPrivateIpv4(address: string): boolean {
  if (!/^\d{1,3}(?:\.\d{1,3}){3}$/.test(address)) return true;
  const number = ipv4Number(address);
  return IPV4.some(([first, bits]) =>
    number >>> (32 - bits) === ipv4Number(first) >>> (32 - bits)
  );
}

function ipv4Number(address: string): number {
  return address.split(".").reduce((sum, part) => sum << 8 | Number(part), 0);
}

function isPrivateIpv6(address: string): boolean {
  const groups = ipv6Groups(address);
  if (!groups) return true;
  const [first, second] = groups;
  const zeros = groups.findIndex((group) => group !== 0);
  const ipv4 = (high: number, low: number) =>
    isPrivateIpv4([high >> 8, high & 255, low >> 8, low & 255].join("."));
  if (zeros === 5 && groups[5] === 0xffff) return ipv4(groups[6], groups[7]);
  if (first === 0x64 && second === 0xff9b) return ipv4(groups[6], groups[7]);
  if (first === 0x2002) return ipv4(second, groups[2]);
  // All that is global is 2000::/3 as yet: ::/96 is the loopback and the
  // unspecified address, and an old form of IPv4.
  return first >> 13 !== 1;
}

/** The eight groups, as the URL parser reads the address. */
function ipv6Groups(address: string): number[] | undefined {
  if (!URL.canParse(`http://[${address}]`)) return undefined;
  const { hostname } = new URL(`http://[${address}]`);
  const [head, tail] = hostname.slice(1, -1).split("::")
    .map((part) => part === "" ? [] : part.split(":"));
  const gap = tail ? Array(8 - head.length - tail.length).fill("0") : [];
  return [...head, ...gap, ...tail ?? []].map((group) => parseInt(group, 16));
}
