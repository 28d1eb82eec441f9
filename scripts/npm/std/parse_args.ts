/** `@std/cli/parse-args` by way of npm. @module */
import * as std from "deno-std/cli/parse_args.js";
import type { StdParseArgs } from "../signatures.ts";

export const { parseArgs }: StdParseArgs = std;
