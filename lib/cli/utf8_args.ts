/** Rejects arguments that are not UTF-8. */
import { usageError } from "./flag.ts";

const REPLACEMENT_CHARACTER = "\ufffd";

/**
 * Rejects arguments that Deno altered: it replaces bytes that are not UTF-8 with
 * U+FFFD, so the argument would name another file. Without `--allow-all` on Linux, a
 * literal U+FFFD is rejected too.
 */
export function assertUtf8Args(args: readonly string[]): void {
  const doubtful = args.filter((arg) => arg.includes(REPLACEMENT_CHARACTER));
  if (doubtful.length === 0) return;
  const given = readUtf8Args();
  const altered = doubtful.find((arg) => !given.has(arg));
  if (altered === undefined) return;
  throw usageError(
    `Argument ${args.indexOf(altered) + 1} is not UTF-8: ${altered}`,
    "use UTF-8 file names: other bytes cannot be passed on exactly",
  );
}

/** This process's valid UTF-8 arguments, from `/proc/self/cmdline` (proc(5)). */
function readUtf8Args(): Set<string> {
  const given = new Set<string>();
  let bytes: Uint8Array;
  try {
    bytes = Deno.readFileSync("/proc/self/cmdline");
  } catch {
    return given;
  }
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  let at = 0;
  // Every argument ends in NUL, including the last.
  for (let end; (end = bytes.indexOf(0, at)) >= 0; at = end + 1) {
    try {
      given.add(decoder.decode(bytes.subarray(at, end)));
    } catch {
      // Not UTF-8.
    }
  }
  return given;
}
