/** `@std/fs/copy` by way of npm. @module */
import * as std from "deno-std/fs/copy.js";
import type { StdFs } from "../signatures.ts";

export const { copy }: Pick<StdFs, "copy"> = std;
