/**
 * Path functions for this system. `@std/path` detects the system by `process`, which
 * makes Deno load its Node emulation and doubles the start time.
 */
import * as posix from "@std/path/posix";
import * as windows from "@std/path/windows";

export const {
  basename,
  dirname,
  fromFileUrl,
  isAbsolute,
  join,
  relative,
  resolve,
  SEPARATOR,
} = Deno.build.os === "windows" ? windows : posix;

/** Quotes a word for a POSIX shell if necessary. */
export function quoteShellWord(word: string): string {
  if (/^[\w@%+=:,./-]+$/.test(word)) return word;
  return `'${word.replaceAll("'", `'\\''`)}'`;
}
