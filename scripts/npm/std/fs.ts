/** `@std/fs` by way of npm. @module */
import * as std from "deno-std/fs/mod.js";
import type { StdFs } from "../signatures.ts";

export const { copy, walk }: StdFs = std;
