/**
 * Only ever type-checked: holds the packages that the imports resolve to, which
 * are JSR's wherever JSR can be reached, to the signatures that the code relies
 * on.
 *
 * @module
 */
import * as assert from "@std/assert";
import { parseArgs } from "@std/cli/parse-args";
import * as crypto from "@std/crypto";
import * as fs from "@std/fs";
import * as path from "@std/path";
import * as yaml from "@std/yaml";
import type {
  StdAssert,
  StdCrypto,
  StdFs,
  StdParseArgs,
  StdPath,
  StdYaml,
} from "./signatures.ts";

assert satisfies StdAssert;
crypto satisfies StdCrypto;
fs satisfies StdFs;
path satisfies StdPath;
yaml satisfies StdYaml;

/** The type of what it returns follows from the options of a call. */
export function checkParseArgs(
  ...[args, options]: Parameters<StdParseArgs["parseArgs"]>
) {
  const parsed = parseArgs(args, options);
  return parsed satisfies ReturnType<StdParseArgs["parseArgs"]>;
}
