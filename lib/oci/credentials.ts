/**
 * Credentials for registries: which registry gets which, and how they are kept
 * out of what is shown.
 *
 * @module
 */
import type { Environment } from "../environment.ts";
import { isLoopback } from "../system/address_network.ts";

/** Above all that oras prints of one failure, in characters. */
const MAX_WORDS = 16 * 1024;

/** A user and a token for a registry. */
export interface Credentials {
  /** User name. */
  user: string;
  /** Token: never to be printed, nor put into an argument. */
  token: string;
}

/**
 * Tokens of the environment that neither oras nor a credential helper reads.
 * They are emptied by name: to pass only what is needed would take the
 * permission to read all of it, and would not know what helpers need.
 */
export const NO_SECRETS = Object.fromEntries(
  [
    "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
    "ACTIONS_RUNTIME_TOKEN",
    "DENO_AUTH_TOKENS",
    "GH_TOKEN",
    "GHCR_TOKEN",
    "GITHUB_TOKEN",
    "JSR_TOKEN",
    "NODE_AUTH_TOKEN",
    "NPM_TOKEN",
  ].map((name) => [name, ""]),
);

/**
 * Checks for GitHub's registry: it alone gets `GHCR_TOKEN`.
 *
 * @param registry Host, and port if any, in either case.
 */
export function isGhcr(registry: string): boolean {
  return registry.toLowerCase() === "ghcr.io";
}

/**
 * Checks whether tokens and passwords may be sent to an address: over HTTPS, or
 * to this host itself.
 *
 * @param url The address of a registry, a mirror or a token service.
 */
export function mayCarrySecrets({ protocol, host }: URL): boolean {
  return protocol === "https:" || isLoopback(host);
}

/**
 * The credentials that the environment holds for a registry.
 *
 * @param registry Its host; only `ghcr.io` gets any.
 * @param env Read for `GHCR_TOKEN`, `GHCR_USERNAME`, `GITHUB_ACTOR`.
 * @returns User and token, or `undefined` where one of both is missing.
 */
export function ghcrCredentials(
  registry: string,
  env: Environment,
): Credentials | undefined {
  if (!isGhcr(registry)) return undefined;
  const user = env.get("GHCR_USERNAME") || env.get("GITHUB_ACTOR");
  // As oras reads it: a line end would keep it from being found in a message.
  const token = env.get("GHCR_TOKEN")?.trim();
  return user && token ? { user, token } : undefined;
}

/**
 * Finds a token that stays unused because no user name goes with it.
 *
 * @param registry The registry's host.
 * @param env The environment.
 * @returns What to warn of, or `undefined`.
 */
export function unusedTokenWarning(
  registry: string,
  env: Environment,
): string | undefined {
  return isGhcr(registry) && env.get("GHCR_TOKEN") &&
      !ghcrCredentials(registry, env)
    ? "GHCR_TOKEN is not used: set GHCR_USERNAME or GITHUB_ACTOR along with it"
    : undefined;
}

/**
 * The environment to publish with: GitHub Actions gives every job a token that
 * can publish.
 *
 * @param env The environment of the process.
 * @returns The same, with `GITHUB_TOKEN` for a `GHCR_TOKEN` that is not set.
 */
export function publishingEnvironment(env: Environment): Environment {
  return {
    get(name) {
      const value = env.get(name);
      return name === "GHCR_TOKEN" && !value &&
          env.get("GITHUB_ACTIONS") === "true"
        ? env.get("GITHUB_TOKEN")
        : value;
    },
  };
}

/**
 * Takes out of a program's words what must not be shown: the token in every
 * form it has on the wire, and the query strings of signed addresses.
 *
 * @param text What the program printed.
 * @param credentials What it was given, if anything.
 * @returns The beginning of the text, without secrets.
 */
export function redactSecrets(text: string, credentials?: Credentials): string {
  let clean = text;
  if (credentials) {
    const { user, token } = credentials;
    const forms = [token, encodeURIComponent(token), base64(token)];
    forms.push(base64(`${user}:${token}`));
    for (const form of forms) clean = clean.replaceAll(form, "***");
  }
  // A registry may have chosen the words: what follows is not linear in them.
  return clean.slice(0, MAX_WORDS)
    .replace(/(https?:\/\/[^\s"'?]+)\?[^\s"']*/g, "$1?…")
    .replace(/(authorization:\s*\S+\s+)\S+/gi, "$1***")
    // What a credential helper prints, and what oras shows of a malformed entry.
    .replace(/("secret"\s*:\s*")(?:[^"\\]|\\.)*/gi, "$1***")
    .replace(/auth '.*' does not conform/s, "auth '***' does not conform")
    .trim();
}

function base64(text: string): string {
  return new TextEncoder().encode(text).toBase64();
}
