/**
 * Writes an import map for a checkout of denoland/std, to use the real packages,
 * WebAssembly included, when jsr.io is unreachable.
 *
 *     export TOOLSMITH_DEV_IMPORTS=$(deno run -A scripts/deno.ts run -A scripts/npm/checkout.ts DIR)
 *     deno task check
 */
import { dirname } from "@std/path";
import { isOlderVersion } from "../../lib/oci/oras_version.ts";
import { PROJECT_ROOT } from "../deno.ts";
import { VERSIONS } from "./signatures.ts";

/** A package's `deno.json`. */
interface PackageConfig {
  name: string;
  version: string;
  exports: string | Record<string, string>;
}

/**
 * Writes an import map to the files of a checkout.
 *
 * @param dir The checkout.
 * @param map Where to write it.
 * @returns The map's path, for `TOOLSMITH_DEV_IMPORTS`.
 * @throws When a package is missing or older than `deno.json` demands.
 */
export async function checkoutImportMap(
  dir: string,
  map = `${PROJECT_ROOT}/.cache/std_import_map.json`,
): Promise<string> {
  const root = await Deno.realPath(dir);
  const { workspace } = await readJson(`${root}/deno.json`);
  const imports: Record<string, string> = {};
  const versions = new Map<string, string>();
  for (const member of workspace as string[]) {
    const home = new URL(`file://${root}/${member}/`);
    const path = new URL("deno.json", home);
    const { name, version, exports }: PackageConfig = await readJson(path);
    versions.set(name, version);
    const entries = typeof exports === "string" ? { ".": exports } : exports;
    for (const [entry, file] of Object.entries(entries)) {
      imports[name + entry.slice(1)] = new URL(file, home).href;
    }
  }
  for (const [name, wanted] of Object.entries(VERSIONS)) {
    const version = versions.get(name) ?? "none";
    const [major] = wanted.split(".");
    if (version.startsWith(`${major}.`) && !isOlderVersion(version, wanted)) {
      continue;
    }
    throw new Error(`${dir} has ${name} ${version}; deno.json: ^${wanted}`);
  }
  const npm = await readJson(`${PROJECT_ROOT}/scripts/npm/import_map.json`);
  for (const [name, target] of Object.entries<string>(npm.imports)) {
    if (!name.startsWith("@std/")) imports[name] = target;
  }
  await Deno.mkdir(dirname(map), { recursive: true });
  await Deno.writeTextFile(map, JSON.stringify({ imports }, null, 2));
  return map;
}

async function readJson(path: string | URL) {
  return JSON.parse(await Deno.readTextFile(path));
}

if (import.meta.main) {
  const [dir] = Deno.args;
  if (dir === undefined) {
    console.error("usage: checkout.ts DIR, a checkout of denoland/std");
    Deno.exitCode = 2;
  } else console.log(await checkoutImportMap(dir));
}
