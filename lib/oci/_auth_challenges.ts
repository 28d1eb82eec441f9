/**
 * Parses the authentication challenges of a server.
 *
 * Format: RFC 9110, section 11.6.1 (`WWW-Authenticate`): one or several
 * challenges in each header.
 */
import { RangesUnavailableError } from "../transfer/byte_source.ts";

export interface AuthChallenge {
  /** Scheme, in the server's letter case. */
  scheme: string;
  /** Parameters, with lower-case names. */
  params: Map<string, string>;
}

const HTTP_TOKEN_PATTERN = "[\\w!#$%&'*+.^`|~-]+";
const AUTH_PARAM_PATTERN =
  `(${HTTP_TOKEN_PATTERN})\\s*=\\s*(?:"((?:[^"\\\\]|\\\\.)*)"|([^\\s,"]+))\\s*(?=,|$)`;
/** A scheme, alone or with a token68 value, such as `Negotiate YII=`. */
const AUTH_SCHEME_PATTERN =
  `(${HTTP_TOKEN_PATTERN})(?: +[\\w.~+/-]+=*\\s*(?=,|$))?(?=[\\s,]|$)`;
/** Sticky, so that the matches end at the first malformed part. */
const AUTH_PART_PATTERN = new RegExp(
  `[\\s,]*(?:${AUTH_PARAM_PATTERN}|${AUTH_SCHEME_PATTERN})`,
  "gsy",
);

/**
 * Parses `WWW-Authenticate`, where several headers are joined with commas. Returns the
 * challenges in the server's order, up to the first malformed one.
 */
export function parseAuthChallenges(text: string): AuthChallenge[] {
  const challenges: AuthChallenge[] = [];
  for (const part of text.matchAll(AUTH_PART_PATTERN)) {
    const [, name, quoted, plain, scheme] = part;
    if (scheme !== undefined) {
      challenges.push({ scheme, params: new Map() });
      continue;
    }
    // A parameter without a scheme is malformed.
    if (challenges.length === 0) break;
    const value = quoted?.replace(/\\(.)/gs, "$1") ?? plain;
    challenges.at(-1)!.params.set(name.toLowerCase(), value);
  }
  return challenges;
}

/**
 * Chooses the challenge to answer: Bearer before Basic, because Bearer also works
 * without credentials. Throws {@linkcode RangesUnavailableError} if no scheme is
 * supported.
 */
export function chooseAuthChallenge(challenges: AuthChallenge[]) {
  for (const scheme of ["bearer", "basic"] as const) {
    const found = challenges.find((it) => it.scheme.toLowerCase() === scheme);
    if (found) return { scheme, params: found.params };
  }
  const offered = formatAuthSchemes(challenges);
  const why = `the server offers ${offered}, not Basic or Bearer`;
  throw new RangesUnavailableError(why);
}

/** Returns true for Basic and Bearer, which oras supports as well. */
export function hasSupportedScheme({ scheme }: AuthChallenge): boolean {
  return /^(?:basic|bearer)$/i.test(scheme);
}

export function formatAuthSchemes(challenges: AuthChallenge[]): string {
  return challenges.slice(0, 5).map(({ scheme }) => scheme.slice(0, 40))
    .join(", ") || "no authentication";
}
