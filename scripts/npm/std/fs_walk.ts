/** `@std/fs/walk` by way of npm. @module */
import * as std from "deno-std/fs/walk.js";
import type { StdFs } from "../signatures.ts";

export const { walk }: Pick<StdFs, "walk"> = std;
