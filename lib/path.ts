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
