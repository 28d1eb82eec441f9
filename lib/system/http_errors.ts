/** Converts HTTP status codes and `fetch` failures to typed errors. */
import { type ErrorCode, ToolsmithError } from "../errors.ts";
import {
  isTransientError,
  parseRetryAfterMs,
  RetryAfterError,
} from "./retry.ts";
import { sanitizeLine } from "./sanitize_text.ts";

/**
 * Converts an unsuccessful response to a typed error: a {@linkcode RetryAfterError}
 * where the server asks to wait. `shown` is the URL without secrets.
 */
export function httpStatusError(
  { status, headers }: Pick<Response, "status" | "headers">,
  shown: string,
): ToolsmithError {
  const error = errorForStatus(status, shown);
  const retryAfterMs = parseRetryAfterMs(headers.get("retry-after"));
  return retryAfterMs > 0 && isTransientError(error)
    ? new RetryAfterError(error, retryAfterMs)
    : error;
}

function errorForStatus(status: number, shown: string): ToolsmithError {
  const message = `Cannot download ${shown}: the server answered ${status}`;
  const error = (code: ErrorCode, hint: string, prefix = "") =>
    new ToolsmithError(code, prefix + message, { hint });
  const access = "check the URL and the server's access rules";
  const login =
    "allow anonymous downloads, or log in to the registry: oras login";
  const later = "try again later";
  if (status === 401) return error("unauthorized", login, "Unauthorized: ");
  if (status === 403) return error("forbidden", access, "Forbidden: ");
  if (status === 404 || status === 410) return error("not_found", access);
  if (status === 429) return error("rate_limited", later);
  const isUnavailable = status >= 500 || status === 408;
  if (isUnavailable) return error("registry_unavailable", later);
  return error("failed", access);
}

/**
 * Returns the sanitized Content-Encoding of a response that should have none;
 * `undefined` for none or `identity`. Bytes, length and ranges of an encoded response
 * are not those of the file.
 */
export function unexpectedContentEncoding(headers: Headers) {
  const encoding = sanitizeLine(headers.get("content-encoding") ?? "", 40);
  return /^(?:identity)?$/i.test(encoding) ? undefined : encoding;
}

/**
 * Converts what `fetch` threw to a typed error, by its message: Deno has no error codes
 * for network failures. `NotCapable` is returned unchanged. `shown` is the URL without
 * secrets; `begun` tells whether the response body had begun.
 */
export function toTransportError(
  error: unknown,
  shown: string,
  begun: boolean,
): unknown {
  if (error instanceof Deno.errors.NotCapable) return error;
  const { message: ownMessage, cause } = error as Error;
  // The part before may be the URL, which can contain any words.
  const reason = (cause instanceof Error ? cause.message : ownMessage)
    .replace(/.*client error \((\w+)\): /s, "$1: ")
    .replace(/https?:\/\/\S+/g, "");
  const [code, problem, hint] = TRANSPORT_FAILURES
    .find(([, , , match]) => !match || !begun && match.test(reason))!;
  const message = `Cannot download ${shown}: ${problem} (${reason})`;
  return new ToolsmithError(code, message, { hint, cause: error });
}

/** The first row whose pattern matches applies. */
const TRANSPORT_FAILURES: [ErrorCode, string, string, RegExp?][] = [
  [
    "dns_failed",
    "host not found",
    "check the spelling of the host name, and the DNS settings of this host",
    /dns error|failed to lookup|name or service not known/i,
  ],
  [
    "tls_failed",
    "TLS connection not trusted",
    "pass the certificate of the server's private CA: --ca-file FILE",
    /certificate|corrupt message|alert|\btls(?! handshake eof| close_notify)/i,
  ],
  [
    "connection_failed",
    "connection failed",
    "check that the server is running and that no firewall blocks the connection",
    /^Connect:|refused|unreachable|timed out/i,
  ],
  ["transfer_interrupted", "the transfer was interrupted", "try again"],
];
