/**
 * Converts the error output of `oras` 1.3 to typed errors, because its exit status
 * is always 1.
 */
import { type ErrorCode, ToolsmithError } from "../errors.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import {
  credentialHelperFor,
  type DockerConfigFile,
} from "./_docker_config.ts";
import { isGhcr } from "./ghcr_credentials.ts";
import { formatReference, type OciReference } from "./reference.ts";

/**
 * What oras prints, the code, the start of the message before the reference, and the
 * hint, if it does not depend on the registry. The first match wins, so specific
 * patterns come first, and the last one matches any words.
 */
const ORAS_ERROR_RULES: [RegExp, ErrorCode, string, string?][] = [
  [
    /invalid config format|failed to open config file/,
    "file_unreadable",
    "Cannot read Docker's config.json to access",
    "fix or delete config.json in the directory DOCKER_CONFIG, or in ~/.docker",
  ],
  [
    /failed to resolve credential: |error getting credentials|docker-credential-/i,
    "credentials_failed",
    "Docker's credential helper failed to get credentials for",
    "fix credsStore or credHelpers in Docker's config.json, or run oras login",
  ],
  [
    /no space left on device|disk quota exceeded/i,
    "disk_full",
    "The disk is full: cannot transfer",
    "free disk space, or move the cache elsewhere: TOOLSMITH_CACHE=DIR",
  ],
  [
    /mismatched digest|digest mismatch|trailing data|mismatch(?:ed)? content-length|does not match the expected/i,
    "checksum_mismatch",
    "The registry sent bytes that do not match the manifest of",
    "try again; if the error repeats, check the registry and any proxy in between; nothing was kept",
  ],
  [
    /toomanyrequests|too many requests|rate.?limit|status code 429/i,
    "rate_limited",
    "The registry's rate limit is reached for",
    "wait, or log in for a higher rate limit: for ghcr.io set GHCR_USERNAME and GHCR_TOKEN, else run oras login",
  ],
  [
    /unauthorized|status code 401|basic credential not found/i,
    "unauthorized",
    "Unauthorized: no access to",
  ],
  [
    /denied:|forbidden|status code 403/i,
    "forbidden",
    "Forbidden: no access to",
  ],
  [
    /no such host|server misbehaving|name resolution|lookup .* on /i,
    "dns_failed",
    "Cannot resolve the registry's host name for",
    "check the registry's name in the reference, and this host's DNS",
  ],
  [
    /status code 5\d\d|\bunavailable: |: (?:internal server error|bad gateway|service unavailable)/i,
    "registry_unavailable",
    "The registry answered with a server error for",
    "try again later",
  ],
  [
    /x509:|tls: |certificate|server gave HTTP response to HTTPS client|first record does not look like a TLS|"http:\/\/": response status code 400/i,
    "tls_failed",
    "Cannot make a trusted TLS connection to",
    "pass --ca-file FILE for a private CA, or --plain-http for a registry without TLS",
  ],
  [
    /connection refused|i\/o timeout|TLS handshake timeout|no route to host|network is unreachable|host is down|context deadline exceeded/i,
    "connection_failed",
    "Cannot connect to the registry for",
    "check that the registry is running and that no firewall or proxy blocks the connection",
  ],
  [
    /unexpected EOF|connection reset|broken pipe|stream error|GOAWAY|use of closed network|: EOF/i,
    "transfer_interrupted",
    "Lost the connection to the registry during the transfer of",
    "try again",
  ],
  [
    /path traversal disallowed|duplicate name|overwrite disallowed/i,
    "artifact_unsafe",
    "oras refuses the file names in",
    "publish the artifact again with plain relative file names",
  ],
  [
    /\b(?:open|read) [^:]+: (?:no such file|permission denied|(?:is|not) a directory)/i,
    "file_unreadable",
    "oras cannot read a required file for",
    "check the file that oras names, such as the one of --ca-file",
  ],
  [
    /not found|status code 404|manifest unknown|name unknown/i,
    "not_found",
    "Not found:",
  ],
  [
    /^/,
    "oras_failed",
    "oras failed on",
    "add --verbose for more of oras's output",
  ],
];

/** oras-go's errors about `config.json`: the file, a field, or an entry. */
const DOCKER_CONFIG_ERROR_PATTERN =
  /^Error: .*?(failed to (?:open|decode|unmarshal) (?:config file |(?:auths?|creds store|cred helpers) field: ).*)/m;

/**
 * oras-go's auth client prints the request that needs credentials, then the error;
 * only for Basic with `failed to resolve credential` in between.
 */
const ORAS_CREDENTIAL_ERROR_PATTERN =
  /^(.*)Error: .*?[A-Z]{3,6} "https?:[^"\s]*": (failed to resolve credential: )?(.+)/s;
/** Errors of the registry or its token service, printed at the same place. */
const REGISTRY_RESPONSE_ERROR_PATTERN =
  /^(?:Get "[^"]*\?|Post "|GET "|POST "|(?:invalid |mismatch |unknown )?response |mismatch Content-Length|request body is|failed to (?:decode response|read response|get request body|parse bearer realm)|bearer realm )/;

export function parseOrasError(
  text: string,
  reference: OciReference,
  loggedIn: boolean,
): ToolsmithError {
  const words = stripReferenceNames(text, reference);
  const [, code, start, hint = registryAccessHint(code, reference, loggedIn)] =
    ORAS_ERROR_RULES.find(([pattern]) => pattern.test(words))!;
  const name = formatReference(reference);
  const message = `${start} ${name} (oras: ${firstErrorLine(text)})`;
  const cause = lastOutputLinesAsError(text);
  return new ToolsmithError(code, message, { hint, cause });
}

/**
 * Recognizes a failure of Docker's configuration or of a credential helper in the output
 * of oras: it quotes a helper without its name, and a helper's message could be mistaken
 * for a network error. The error is not transient; `undefined` for other failures.
 */
export function parseCredentialError(
  text: string,
  registry: string,
  config: DockerConfigFile,
): ToolsmithError | undefined {
  const { path } = config;
  let helper: string | undefined;
  let malformed: string | undefined;
  try {
    helper = credentialHelperFor(config, registry);
  } catch (error) {
    malformed = (error as Error).message;
  }
  const login = `log in again: oras login ${registry}`;
  const why = helper && helperErrorText(text);
  if (why) {
    const command = sanitizeLine(`docker-credential-${helper}`, 60);
    const hint =
      `run the helper to see why: echo ${registry} | ${command} get; or remove the helper from ${path} and ${login}`;
    const message =
      `Cannot get credentials for ${registry}: ${command} failed: ${why}`;
    return new ToolsmithError("credentials_failed", message, { hint });
  }
  const [, found] = DOCKER_CONFIG_ERROR_PATTERN.exec(text) ?? [];
  if (!found) return undefined;
  const problem = malformed ?? `${path} (oras: ${sanitizeLine(found)})`;
  const message = `Cannot read Docker's configuration: ${problem}`;
  const hint = `fix or delete ${path}, then ${login}`;
  return new ToolsmithError("file_unreadable", message, { hint });
}

/** Returns what a credential helper printed, if that is why oras failed. */
function helperErrorText(text: string): string | undefined {
  // The text of a registry's response is untrusted.
  if (text.includes("Error response from registry")) return undefined;
  const [, before, resolving, words] =
    ORAS_CREDENTIAL_ERROR_PATTERN.exec(text) ?? [];
  if (!words || !resolving && REGISTRY_RESPONSE_ERROR_PATTERN.test(words)) {
    return undefined;
  }
  // A helper's standard error precedes oras's own output.
  const isSilent = /^exit status \d+$/.test(words) && before.trim() !== "";
  return sanitizeLine(isSilent ? before : words);
}

/** Returns the last lines of the output, as context for --verbose. */
function lastOutputLinesAsError(text: string): Error | undefined {
  const lines = text.trim().split("\n").slice(-10)
    .map((line) => sanitizeLine(line));
  return lines[0] ? new Error(`oras: ${lines.join("\n")}`) : undefined;
}

/** Names may contain words that match an error pattern. */
function stripReferenceNames(
  text: string,
  { registry, repository, tag, digest }: OciReference,
): string {
  const name = `${registry}/${repository}`;
  return text
    .replace(/(https?:\/\/)[^\s"]+/gi, "$1")
    .replaceAll(`${name}:${tag}`, "")
    .replaceAll(`${name}@${digest}`, "")
    .replaceAll(name, "");
}

function firstErrorLine(text: string): string {
  const lines = text.split("\n").map((line) => line.trim()).filter(Boolean);
  const line = lines.find((line) => /^error/i.test(line)) ?? lines.at(-1);
  const prefix = /^Error(?: response from registry)?:\s*/i;
  return sanitizeLine(line?.replace(prefix, "") ?? "no output");
}

function registryAccessHint(
  code: ErrorCode,
  { registry }: OciReference,
  loggedIn: boolean,
): string {
  const ghcr = isGhcr(registry);
  if (code === "not_found") {
    return "check owner, repository and tag; a private package may look like a missing one" +
      (ghcr && !loggedIn ? ": set GHCR_USERNAME and GHCR_TOKEN" : "");
  }
  if (!ghcr) return `log in first: oras login ${registry}`;
  if (!loggedIn) {
    return "the package is private or does not exist: set GHCR_TOKEN (scope read:packages to pull, write:packages to push) and GHCR_USERNAME or GITHUB_ACTOR";
  }
  return "check the scope of GHCR_TOKEN (read:packages to pull, write:packages to push) and the user name in GHCR_USERNAME or GITHUB_ACTOR; or the package does not exist";
}
