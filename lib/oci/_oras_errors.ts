/**
 * Typed errors for what `oras` 1.3 prints when it fails: its exit status is 1
 * whatever happened.
 *
 * @module
 */
import { type ErrorCode, ToolsmithError } from "../errors.ts";
import { oneLine } from "../system/text.ts";
import { isGhcr } from "./credentials.ts";
import { formatReference, type OciReference } from "./reference.ts";

interface Failure {
  /** Found in what oras printed. */
  match: RegExp;
  code: ErrorCode;
  /** What could not be done, before the reference. */
  message: string;
  hint: string;
}

/** The first row that matches counts: the more specific stand first. */
const FAILURES: Failure[] = [
  {
    match: /invalid config format|failed to open config file/,
    code: "file_unreadable",
    message: "Cannot read Docker's configuration for",
    hint: "fix or remove config.json in DOCKER_CONFIG, or in ~/.docker",
  },
  {
    match:
      /failed to resolve credential: |error getting credentials|docker-credential-/i,
    code: "credentials_failed",
    message: "The Docker credential helper failed for",
    hint:
      "fix credsStore or credHelpers in Docker's config.json, or log in again",
  },
  {
    match: /no space left on device|disk quota exceeded/i,
    code: "disk_full",
    message: "Disk full while pulling",
    hint: "free some space, or put the cache elsewhere: TOOLSMITH_CACHE=DIR",
  },
  {
    match:
      /mismatched digest|digest mismatch|trailing data|mismatch(?:ed)? content-length|does not match the expected/i,
    code: "checksum_mismatch",
    message: "The registry sent other bytes than its manifest promises for",
    hint:
      "nothing was kept; try again, and if it repeats, the registry or a proxy on the way is broken",
  },
  {
    match: /toomanyrequests|too many requests|rate.?limit|status code 429/i,
    code: "rate_limited",
    message: "Rate limit reached at",
    hint:
      "wait, or log in: registries allow more to those they know (GHCR_USERNAME and GHCR_TOKEN)",
  },
  {
    match: /unauthorized|status code 401|basic credential not found/i,
    code: "unauthorized",
    message: "Unauthorized: no access to",
    hint: "",
  },
  {
    match: /denied:|forbidden|status code 403/i,
    code: "forbidden",
    message: "Forbidden: no access to",
    hint: "",
  },
  {
    match: /no such host|server misbehaving|name resolution|lookup .* on /i,
    code: "dns_failed",
    message: "Cannot find the host of",
    hint: "check the spelling of the registry, and this host's DNS",
  },
  {
    match:
      /status code 5\d\d|\bunavailable: |: (?:internal server error|bad gateway|service unavailable)/i,
    code: "registry_unavailable",
    message: "The registry answered with a server error for",
    hint: "try again later",
  },
  {
    match:
      /x509:|tls: |certificate|server gave HTTP response to HTTPS client|first record does not look like a TLS|"http:\/\/": response status code 400/i,
    code: "tls_failed",
    message: "Cannot make a trusted TLS connection to",
    hint:
      "a private CA needs --ca-file FILE; a registry without TLS needs --plain-http",
  },
  {
    match:
      /connection refused|i\/o timeout|TLS handshake timeout|no route to host|network is unreachable|host is down|context deadline exceeded/i,
    code: "connection_failed",
    message: "Cannot connect to the registry of",
    hint: "is it running, and does a firewall or proxy let you through?",
  },
  {
    match:
      /unexpected EOF|connection reset|broken pipe|stream error|GOAWAY|use of closed network|: EOF/i,
    code: "transfer_interrupted",
    message: "The transfer was cut for",
    hint: "try again",
  },
  {
    match: /path traversal disallowed|duplicate name|overwrite disallowed/i,
    code: "artifact_unsafe",
    message: "oras refuses the file names in",
    hint: "publish the files under plain names",
  },
  {
    match:
      /\b(?:open|read) [^:]+: (?:no such file|permission denied|(?:is|not) a directory)/i,
    code: "file_unreadable",
    message: "oras cannot read a file that it needs for",
    hint: "check the path in --ca-file, and oras's own configuration",
  },
  {
    match: /not found|status code 404|manifest unknown|name unknown/i,
    code: "not_found",
    message: "Not found:",
    hint: "",
  },
];

/**
 * Makes a typed error of what oras printed.
 *
 * @param text Its standard error, without secrets.
 * @param reference What it was asked for.
 * @param loggedIn Whether credentials were given.
 * @returns The error, with oras's own words in its message.
 */
export function orasError(
  text: string,
  reference: OciReference,
  loggedIn: boolean,
): ToolsmithError {
  const said = firstErrorLine(text);
  const name = formatReference(reference);
  const words = withoutNames(text, reference);
  const failure = FAILURES.find((row) => row.match.test(words));
  if (!failure) {
    return new ToolsmithError("oras_failed", `oras failed on ${name}: ${said}`);
  }
  return new ToolsmithError(
    failure.code,
    `${failure.message} ${name} (oras: ${said})`,
    { hint: failure.hint || accessHint(failure.code, reference, loggedIn) },
  );
}

/** Names may hold the very words that tell failures apart. */
function withoutNames(
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
  const errors = lines.filter((line) => /^error/i.test(line));
  const line = (errors[0] ?? lines.at(-1) ?? "it printed nothing")
    .replace(/^Error(?: response from registry)?:\s*/i, "");
  return oneLine(line);
}

function accessHint(
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
  return "verify the scope of GHCR_TOKEN (read:packages to pull, write:packages to push) and the user name in GHCR_USERNAME or GITHUB_ACTOR; the package may also not exist";
}
