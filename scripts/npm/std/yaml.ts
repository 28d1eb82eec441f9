/** `@std/yaml` by way of npm. @module */
import * as std from "deno-std/yaml/mod.js";
import type { StdYaml } from "../signatures.ts";

export const { parse }: StdYaml = std;
