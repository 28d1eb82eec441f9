/**
 * Arguments that are not UTF-8.
 *
 * @module
 */
import { usage } from "./flag_values.ts";

const REPLACEMENT = "\ufffd";

/**
 * Refuses arguments that did not arrive as they were given: Deno puts U+FFFD in
 * place of bytes that are not UTF-8, which would name another file.
 *
 * Needs `--allow-all`, on Linux, to tell such bytes from a U+FFFD that was
 * given; else both are refused.
 *
 * @param args The program's arguments.
 * @throws {ToolsmithError} `usage`.
 */
export function assertExactArgs(args: readonly string[]): void {
  const doubtful = args.filter((arg) => arg.includes(REPLACEMENT));
  if (doubtful.length === 0) return;
  const given = givenArgs();
  const altered = doubtful.find((arg) => !given.has(arg));
  if (altered === undefined) return;
  throw usage(
    `Argument ${args.indexOf(altered) + 1} is not UTF-8: ${altered}`,
    "use UTF-8 names; only those can be passed on exactly",
  );
}

/** The arguments of this process that are UTF-8 (proc(5), `/proc/pid/cmdline`). */
function givenArgs(): Set<string> {
  const given = new Set<string>();
  let bytes: Uint8Array;
  try {
    bytes = Deno.readFileSync("/proc/self/cmdline");
  } catch {
    return given;
  }
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  let at = 0;
  // Each ends in a NUL, the last one too.
  for (let end; (end = bytes.indexOf(0, at)) >= 0; at = end + 1) {
    try {
      given.add(decoder.decode(bytes.subarray(at, end)));
    } catch {
      // It is not UTF-8.
    }
  }
  return given;
}
