/** `@std/toml` by way of npm. @module */
import * as std from "deno-std/toml/mod.js";
import type { StdToml } from "../signatures.ts";

export const { parse }: StdToml = std;
