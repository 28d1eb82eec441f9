/** The rules of `--allow-net`: which hosts a guest may reach. */
import { ToolsmithError } from "../errors.ts";
import { parseIpBits } from "../system/ip_address.ts";

/** One rule, parsed. */
export interface EgressRule {
  /** The rule as it was written. */
  text: string;
  /** Lower-case name in ASCII, or an IPv4 address. */
  host: string;
  /** Does the rule stand for all names below `host`, and not for `host`? */
  isWildcard: boolean;
  /** @default {undefined} every port */
  port?: number;
  /** Where the guest gets connected to instead. @default {undefined} the host itself */
  target?: { hostname: string; port: number };
}

/** The rule of `--network`, whatever the host. */
export const ANY_HOST: EgressRule = {
  ...{ text: "--network", host: "", isWildcard: true },
};

/** Why a connection is refused. */
export class RefusedError extends Error {}

/** `*.` and host, port, address and port of the target. */
const RULE_PATTERN =
  /^(\*\.)?([^\s*%:/?#@\\[\]=,]+)(?::(\d{1,5})(?:=(\[[^\]]+\]|[\d.]+):(\d{1,5}))?)?$/;

/**
 * Parses a rule: `HOST`, `HOST:PORT`, `*.HOST`, an IPv4 address, or
 * `NAME:PORT=ADDRESS:PORT`, which connects the guest to another address.
 *
 * @throws {ToolsmithError} `usage`.
 */
export function parseEgressRule(text: string): EgressRule {
  const [, wildcard, written = "", ...rest] = RULE_PATTERN.exec(text) ?? [];
  const [port, address, targetPort] = rest;
  const host = normalizeName(URL.parse(`http://${written}`)?.hostname ?? "");
  const hostname = address?.replace(/^\[|\]$/g, "");
  const isAddress = parseIpBits(host) !== undefined;
  const isValid = host !== "" && host.length < 254 &&
    // A URL's host may be an address in octal, or with fewer parts.
    (!isAddress || host === written && !wildcard) &&
    [port, targetPort].every((it = "1") => 0 < +it && +it < 65536) &&
    (!address || !wildcard && parseIpBits(hostname) !== undefined);
  if (!isValid) {
    throw new ToolsmithError("usage", `Invalid network rule: "${text}"`, {
      hint:
        "write HOST, HOST:PORT, *.HOST, or NAME:PORT=ADDRESS:PORT; --network allows every host",
    });
  }
  return {
    ...{ text, host, isWildcard: wildcard !== undefined },
    ...port && { port: Number(port) },
    ...address && { target: { hostname, port: Number(targetPort) } },
  };
}

/**
 * Finds the rule that allows a host, or one that maps it.
 *
 * @param port The port. @default {undefined} any that a rule allows
 */
export function findRule(
  rules: EgressRule[] | "all",
  host: string,
  port?: number,
): EgressRule | undefined {
  if (rules === "all") return ANY_HOST;
  const allowing = rules.filter((rule) =>
    (rule.isWildcard ? host.endsWith(`.${rule.host}`) : host === rule.host) &&
    (port === undefined || port === (rule.port ?? port))
  );
  return allowing.find((rule) => rule.target) ?? allowing[0];
}

/** Names differ neither by case nor by a final dot. */
export function normalizeName(name: string): string {
  return name.toLowerCase().replace(/\.$/, "");
}
