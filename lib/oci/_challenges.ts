/**
 * What a server offers as ways to log in.
 *
 * Format: RFC 9110, section 11.6.1 (`WWW-Authenticate`): several challenges in
 * one header, or in several.
 *
 * @module
 */
import { RangesUnavailable } from "./_ranges_unavailable.ts";

/** One way to log in. */
export interface Challenge {
  /** Its scheme, as the server writes it. */
  scheme: string;
  /** Its parameters, with names in lower case. */
  params: Map<string, string>;
}

/** A challenge that can be met. */
export interface KnownChallenge extends Challenge {
  /** Its scheme. */
  scheme: "basic" | "bearer";
}

const TOKEN = "[\\w!#$%&'*+.^`|~-]+";
const PARAM = new RegExp(
  `(${TOKEN})\\s*=\\s*(?:"((?:[^"\\\\]|\\\\.)*)"|([^\\s,"]+))\\s*(?=,|$)`,
  "sy",
);
/** A scheme, alone or with all its data in one word, such as `Negotiate YII=`. */
const SCHEME = new RegExp(
  `(${TOKEN})(?: +[\\w.~+/-]+=*\\s*(?=,|$))?(?=[\\s,]|$)`,
  "y",
);

/**
 * Reads the challenges of an answer.
 *
 * @param text `WWW-Authenticate`; several headers are joined with commas.
 * @returns The challenges in the server's order, up to what is malformed.
 */
export function parseChallenges(text: string): Challenge[] {
  const challenges: Challenge[] = [];
  let at = 0;
  const next = (pattern: RegExp) => {
    pattern.lastIndex = at;
    const found = pattern.exec(text);
    if (found) at = pattern.lastIndex;
    return found;
  };
  for (;;) {
    next(/[\s,]*/y);
    const param = challenges.length > 0 && next(PARAM);
    if (param) {
      const [, key, quoted, plain] = param;
      const value = quoted?.replace(/\\(.)/gs, "$1") ?? plain;
      challenges.at(-1)!.params.set(key.toLowerCase(), value);
      continue;
    }
    const scheme = next(SCHEME);
    if (!scheme) return challenges;
    challenges.push({ scheme: scheme[1], params: new Map() });
  }
}

/**
 * Chooses the challenge to meet: Bearer before Basic, as that works without
 * credentials too.
 *
 * @param challenges What a server offers.
 * @returns The challenge.
 * @throws {RangesUnavailable} When none can be met; names their schemes.
 */
export function chooseChallenge(challenges: Challenge[]): KnownChallenge {
  for (const scheme of ["bearer", "basic"] as const) {
    const found = challenges.find((it) => it.scheme.toLowerCase() === scheme);
    if (found) return { scheme, params: found.params };
  }
  throw new RangesUnavailable(
    `it offers ${schemesOf(challenges)}, not Basic or Bearer`,
  );
}

/**
 * Whether a challenge can be met, by oras as well.
 *
 * @param challenge The challenge.
 */
export function isKnownScheme({ scheme }: Challenge): boolean {
  return /^(?:basic|bearer)$/i.test(scheme);
}

/**
 * Names the schemes of challenges.
 *
 * @param challenges The challenges.
 * @returns Such as `Negotiate, Digest`, for a message.
 */
export function schemesOf(challenges: Challenge[]): string {
  return challenges.slice(0, 5).map(({ scheme }) => scheme.slice(0, 40))
    .join(", ") || "no authentication";
}
