/**
 * What goes wrong with HTTP and HTTPS, as typed errors.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { isTransient } from "./retry.ts";
import { BusyError, retryAfterMs } from "./retry_after.ts";
import { oneLine } from "./text.ts";

/**
 * Makes a typed error of an answer.
 *
 * @param answer The answer; its status is none of those that mean success.
 * @param shown The address, as a person may see it.
 * @returns The error; a {@linkcode BusyError} where the server asks to wait.
 */
export function statusError(
  { status, headers }: Pick<Response, "status" | "headers">,
  shown: string,
): ToolsmithError {
  const error = errorOf(status, shown);
  const pauseMs = retryAfterMs(headers.get("retry-after"));
  return pauseMs > 0 && isTransient(error)
    ? new BusyError(error, pauseMs)
    : error;
}

function errorOf(status: number, shown: string): ToolsmithError {
  const words = `Cannot download ${shown}: the server answered ${status}`;
  const hint = "check the address, and who may read it";
  if (status === 401) {
    return new ToolsmithError("unauthorized", `Unauthorized: ${words}`, {
      hint: "serve the image without credentials, or from a registry",
    });
  }
  if (status === 403) {
    return new ToolsmithError("forbidden", `Forbidden: ${words}`, { hint });
  }
  if (status === 404 || status === 410) {
    return new ToolsmithError("not_found", words, { hint });
  }
  if (status === 429) {
    return new ToolsmithError("rate_limited", words, { hint: "wait a while" });
  }
  if (status >= 500 || status === 408) {
    return new ToolsmithError("registry_unavailable", words, {
      hint: "try again later",
    });
  }
  return new ToolsmithError("failed", words, { hint });
}

/**
 * Reads in which encoding an answer is sent, though none was asked for: its
 * bytes are not those of the file, and neither are its length and ranges.
 *
 * @param headers The answer's headers.
 * @returns The encoding, fit to be shown; `undefined` where there is none.
 */
export function contentEncoding(headers: Headers): string | undefined {
  const encoding = oneLine(headers.get("content-encoding") ?? "", 40);
  return /^(?:identity)?$/i.test(encoding) ? undefined : encoding;
}

/**
 * Makes a typed error of what `fetch` threw. Deno's failures differ in their
 * words alone.
 *
 * @param error What was thrown.
 * @param shown The address, as a person may see it.
 * @param begun Whether the answer had begun.
 * @returns The error; a missing permission as it is.
 */
export function transportError(
  error: unknown,
  shown: string,
  begun: boolean,
): unknown {
  if (error instanceof Deno.errors.NotCapable) return error;
  const { message, cause } = error as Error;
  // What stands before may be the address, which can hold any words.
  const said = (cause instanceof Error ? cause.message : message)
    .replace(/.*client error \((\w+)\): /s, "$1: ")
    .replace(/https?:\/\/\S+/g, "");
  const failure = begun
    ? CUT
    : FAILURES.find(({ match }) => match.test(said)) ?? CUT;
  const { code, what, hint } = failure;
  const words = `Cannot download ${shown}: ${what} (${said})`;
  return new ToolsmithError(code, words, { hint, cause: error });
}

const CUT = {
  code: "transfer_interrupted",
  what: "it was cut",
  hint: "try again",
} as const;

/** The first row that matches counts. */
const FAILURES = [
  {
    match: /dns error|failed to lookup|name or service not known/i,
    code: "dns_failed",
    what: "no such host",
    hint: "check the spelling of the host, and this host's DNS",
  },
  {
    match:
      /certificate|corrupt message|alert|\btls(?! handshake eof| close_notify)/i,
    code: "tls_failed",
    what: "no trusted TLS connection",
    hint: "a private CA needs --ca-file FILE",
  },
  {
    match: /^Connect:|refused|unreachable|timed out/i,
    code: "connection_failed",
    what: "no connection",
    hint: "is the server running, and does a firewall let you through?",
  },
] as const;
