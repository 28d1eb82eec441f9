/** `@std/assert` by way of npm. @module */
import * as std from "deno-std/assert/mod.js";
import type { StdAssert } from "../signatures.ts";

// An assertion narrows types only by a name that declares its own.
export const assert: StdAssert["assert"] = std.assert;
export const {
  assertEquals,
  assertMatch,
  assertRejects,
  assertStringIncludes,
  assertThrows,
}: StdAssert = std;
