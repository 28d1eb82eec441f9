/**
 * Parses the authentication challenges of a server.
 *
 * Format: RFC 9110, section 11.6.1 (`WWW-Authenticate`): one or several
 * challenges in each header.
 */
import { RangesUnavailableError } from "../transfer/byte_source.ts";

/** One challenge of a `WWW-Authenticate` header. */
export interface AuthChallenge {
  /** Scheme, in the server's letter case. */
  scheme: string;
  /** Parameters, with lower-case names. */
  params: Map<string, string>;
}

/** A challenge that Toolsmith can answer. */
export interface SupportedChallenge extends AuthChallenge {
  scheme: "basic" | "bearer";
}

const HTTP_TOKEN_PATTERN = "[\\w!#$%&'*+.^`|~-]+";
const AUTH_PARAM_PATTERN = new RegExp(
  `(${HTTP_TOKEN_PATTERN})\\s*=\\s*(?:"((?:[^"\\\\]|\\\\.)*)"|([^\\s,"]+))\\s*(?=,|$)`,
  "sy",
);
/** A scheme, alone or with a token68 value, such as `Negotiate YII=`. */
const AUTH_SCHEME_PATTERN = new RegExp(
  `(${HTTP_TOKEN_PATTERN})(?: +[\\w.~+/-]+=*\\s*(?=,|$))?(?=[\\s,]|$)`,
  "y",
);

/**
 * Parses `WWW-Authenticate`, where several headers are joined with commas. Returns the
 * challenges in the server's order, up to the first malformed one.
 */
export function parseAuthChallenges(text: string): AuthChallenge[] {
  const challenges: AuthChallenge[] = [];
  let at = 0;
  const next = (pattern: RegExp) => {
    pattern.lastIndex = at;
    const found = pattern.exec(text);
    if (found) at = pattern.lastIndex;
    return found;
  };
  for (;;) {
    next(/[\s,]*/y);
    const param = challenges.length > 0 && next(AUTH_PARAM_PATTERN);
    if (param) {
      const [, key, quoted, plain] = param;
      const value = quoted?.replace(/\\(.)/gs, "$1") ?? plain;
      challenges.at(-1)!.params.set(key.toLowerCase(), value);
      continue;
    }
    const scheme = next(AUTH_SCHEME_PATTERN);
    if (!scheme) return challenges;
    challenges.push({ scheme: scheme[1], params: new Map() });
  }
}

/**
 * Chooses the challenge to answer: Bearer before Basic, because Bearer also works
 * without credentials. Throws {@linkcode RangesUnavailableError} if no scheme is
 * supported.
 */
export function chooseAuthChallenge(
  challenges: AuthChallenge[],
): SupportedChallenge {
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

/** Lists the schemes of challenges for a message, such as `Negotiate, Digest`. */
export function formatAuthSchemes(challenges: AuthChallenge[]): string {
  return challenges.slice(0, 5).map(({ scheme }) => scheme.slice(0, 40))
    .join(", ") || "no authentication";
}
