/**
 * Credentials for ghcr.io from the environment, and redaction of secrets in output.
 */
import type { Environment } from "../environment.ts";
import { isLoopbackHost } from "../system/ip_address.ts";

/** More than oras prints for any failure. */
const MAX_REDACTED_OUTPUT_CHARS = 16 * 1024;

export interface Login {
  user: string;
  /** Or a token. Must never be printed or passed as an argument. */
  password: string;
}

/**
 * Clears token variables that neither oras nor a credential helper needs. A list of
 * variables to pass on instead would need permission to read the whole environment,
 * and cannot know what helpers need.
 */
export const CLEARED_SECRET_VARIABLES = Object.fromEntries(
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

/** The only registry that gets `GHCR_TOKEN`. */
export function isGhcr(registry: string): boolean {
  return registry.toLowerCase() === "ghcr.io";
}

export function mayReceiveSecrets({ protocol, host }: URL): boolean {
  return protocol === "https:" || isLoopbackHost(host);
}

/**
 * Reads `GHCR_TOKEN`, and `GHCR_USERNAME` or `GITHUB_ACTOR`; `undefined` if one of them
 * is missing, and for any registry but ghcr.io.
 */
export function ghcrCredentialsFromEnv(
  registry: string,
  env: Environment,
): Login | undefined {
  if (!isGhcr(registry)) return undefined;
  const user = env.get("GHCR_USERNAME") || env.get("GITHUB_ACTOR");
  // As oras does; with a trailing newline, redactSecrets() would not find it.
  const password = env.get("GHCR_TOKEN")?.trim();
  return user && password ? { user, password } : undefined;
}

export function unusedGhcrTokenWarning(
  registry: string,
  env: Environment,
): string | undefined {
  return isGhcr(registry) && env.get("GHCR_TOKEN") &&
      !ghcrCredentialsFromEnv(registry, env)
    ? "GHCR_TOKEN is not used: also set GHCR_USERNAME or GITHUB_ACTOR"
    : undefined;
}

/**
 * Returns the environment for publishing: in GitHub Actions, `GITHUB_TOKEN` replaces
 * a missing `GHCR_TOKEN`, because it can publish the repository's packages.
 */
export function withGithubTokenAsGhcrToken(env: Environment): Environment {
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
 * Redacts secrets in the start of a program's output: the token in every encoding,
 * authorization headers, helpers' secrets, and the query strings of signed URLs.
 */
export function redactSecrets(
  text: string,
  login?: Login,
): string {
  let clean = text;
  if (login) {
    const { user, password } = login;
    const forms = [password, encodeURIComponent(password), toBase64(password)];
    forms.push(toBase64(`${user}:${password}`));
    for (const form of forms) clean = clean.replaceAll(form, "***");
  }
  // Truncated first, because the patterns below take more than linear time.
  return clean.slice(0, MAX_REDACTED_OUTPUT_CHARS)
    .replace(/(https?:\/\/[^\s"'?]+)\?[^\s"']*/g, "$1?…")
    .replace(/(authorization:\s*\S+\s+)\S+/gi, "$1***")
    // The output of a credential helper, and oras's quote of a malformed entry.
    .replace(/("secret"\s*:\s*")(?:[^"\\]|\\.)*/gi, "$1***")
    .replace(/auth '.*' does not conform/s, "auth '***' does not conform")
    .trim();
}

function toBase64(text: string): string {
  return new TextEncoder().encode(text).toBase64();
}
