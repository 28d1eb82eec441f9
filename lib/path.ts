/**
 * Paths of this system. `@std/path` itself looks at `process` to find out which
 * that is, and Deno then loads all of its Node emulation: half of a start.
 *
 * @module
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

/**
 * Quotes a word for a POSIX shell where it needs it.
 *
 * @param word The word.
 */
export function shellWord(word: string): string {
  if (/^[\w@%+=:,./-]+$/.test(word)) return word;
  return `'${word.replaceAll("'", `'\\''`)}'`;
}
