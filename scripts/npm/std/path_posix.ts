/** `@std/path` for one system, by way of npm. @module */
import * as std from "deno-std/path/posix/mod.js";
import type { StdPath } from "../signatures.ts";

export const {
  SEPARATOR,
  basename,
  dirname,
  fromFileUrl,
  isAbsolute,
  join,
  relative,
  resolve,
}: StdPath = std;
