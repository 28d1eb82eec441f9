/**
 * Type-checked only, never run: compares the types of the imported packages, JSR's if
 * reachable, with `signatures.ts`.
 */
import * as assert from "@std/assert";
import { parseArgs } from "@std/cli/parse-args";
import * as crypto from "@std/crypto/crypto";
import { copy } from "@std/fs/copy";
import { walk } from "@std/fs/walk";
import * as path from "@std/path";
import * as posix from "@std/path/posix";
import * as windows from "@std/path/windows";
import * as toml from "@std/toml";
import * as yaml from "@std/yaml";
import type {
  ParseFlags,
  StdAssert,
  StdCrypto,
  StdFs,
  StdPath,
  StdToml,
  StdYaml,
} from "./signatures.ts";

assert satisfies StdAssert;
crypto satisfies StdCrypto;
({ copy, walk }) satisfies StdFs;
path satisfies StdPath;
posix satisfies StdPath;
windows satisfies StdPath;
toml satisfies StdToml;
yaml satisfies StdYaml;

// The return type depends on the options of the call.
export function checkFlags(...[args, options]: Parameters<ParseFlags>) {
  return parseArgs(args, options) satisfies ReturnType<ParseFlags>;
}
