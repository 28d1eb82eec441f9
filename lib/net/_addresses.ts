/**
 * Which addresses of a name the guest may reach.
 *
 * @module
 */
import { lookup } from "node:dns/promises";
import {
  ipNetworkScope,
  parseIpBits,
  unwrapTunneledIpv4,
} from "../system/ip_address.ts";
import { RefusedError } from "./rules.ts";

/**
 * Leaves out addresses of this host, and special ones.
 *
 * @param allowed Whether addresses of private networks are kept.
 * @returns The others, IPv4 first.
 * @throws {RefusedError} When none is left.
 */
export async function reachableAddresses(
  all: string[],
  allowed: { private: boolean },
): Promise<string[]> {
  const own = await hostAddresses();
  const reachable = all.filter((address) => {
    const scope = ipNetworkScope(address);
    const isFarEnough = scope === "internet" ||
      allowed.private && scope === "private";
    const bits = parseIpBits(address);
    return isFarEnough && bits !== undefined &&
      !own.includes(unwrapTunneledIpv4(bits));
  });
  if (reachable.length === 0) {
    throw new RefusedError(`private or this host: ${all.join(", ")}`);
  }
  return reachable.sort((a, b) => +a.includes(":") - +b.includes(":"));
}

/** Asks the host's resolver. */
export async function lookUpAddresses(name: string): Promise<string[]> {
  return (await lookup(name, { all: true })).map(({ address }) => address);
}

/** Addresses of this host's interfaces; none without permission to list them. */
async function hostAddresses(): Promise<(bigint | undefined)[]> {
  const name = { name: "sys", kind: "networkInterfaces" } as const;
  const { state } = await Deno.permissions.query(name);
  if (state !== "granted") return [];
  return Deno.networkInterfaces().map(({ address }) => parseIpBits(address));
}
