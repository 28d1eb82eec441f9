/** Connects the host to a name or an address, on behalf of the guest. */
import {
  ipNetworkScope,
  parseIpBits,
  unwrapTunneledIpv4,
} from "../system/ip_address.ts";
import { startDeadline } from "../system/time.ts";
import { ANY_HOST, type EgressRule, RefusedError } from "./rules.ts";

const MAX_ADDRESSES_TRIED = 4;
const DIAL_TIMEOUT_MS = 10_000;

/**
 * Connects to one of the addresses that the guest may reach.
 *
 * @param options `rule` allows the connection; `resolve` looks up a name.
 * @throws {RefusedError} When none of the addresses is allowed.
 */
export async function dial(
  to: { host: string; port: number },
  options: {
    rule: EgressRule;
    resolve: (name: string) => Promise<string[]>;
    signal: AbortSignal;
  },
): Promise<Deno.TcpConn> {
  const { rule, resolve, signal } = options;
  const addresses = async () => {
    const isName = parseIpBits(to.host) === undefined;
    const all = isName ? await resolve(to.host) : [to.host];
    if (rule === ANY_HOST) return reachableAddresses(all, "private");
    // A rule that is not for a name is for this address.
    return isName ? reachableAddresses(all, "internet") : all;
  };
  const endpoints = rule.target
    ? [rule.target]
    : (await addresses()).map((hostname) => ({ hostname, port: to.port }));
  let failure: unknown;
  for (const endpoint of endpoints.slice(0, MAX_ADDRESSES_TRIED)) {
    using limit = startDeadline(DIAL_TIMEOUT_MS, "The connection", signal);
    try {
      const peer = await Deno.connect({ ...endpoint, signal: limit.signal });
      peer.setNoDelay();
      return peer;
    } catch (error) {
      signal.throwIfAborted();
      failure = error;
    }
  }
  throw failure;
}

/** Asks the host's resolver. */
export async function lookUpAddresses(name: string): Promise<string[]> {
  // Imported lazily, as Node modules cost milliseconds at every start.
  const { lookup } = await import("node:dns/promises");
  return (await lookup(name, { all: true })).map(({ address }) => address);
}

/** Leaves out addresses of this host, and special ones; IPv4 comes first. */
function reachableAddresses(
  all: string[],
  nearest: "internet" | "private",
): string[] {
  const query = { name: "sys", kind: "networkInterfaces" } as const;
  const canList = Deno.permissions.querySync(query).state === "granted";
  const own = (canList ? Deno.networkInterfaces() : [])
    .map(({ address }) => parseIpBits(address));
  const reachable = all.filter((address) => {
    const scope = ipNetworkScope(address);
    const bits = parseIpBits(address);
    return (scope === "internet" || scope === nearest) && bits !== undefined &&
      !own.includes(unwrapTunneledIpv4(bits));
  });
  if (reachable.length === 0) {
    throw new RefusedError(`private or this host: ${all.join(", ")}`);
  }
  return reachable.sort((a, b) => +a.includes(":") - +b.includes(":"));
}
