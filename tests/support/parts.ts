/**
 * The real programs that tests run. `deno task test` brings them; a test file
 * that runs alone takes what is there.
 *
 * @module
 */
import { findTools, type Part, type Tools } from "../../scripts/setup.ts";
import { PARTS } from "../../scripts/setup/parts.ts";

/** Where each program is; absent where it is missing, or not to be used. */
export const parts: Tools = await findTools();
const unwanted = Deno.env.get("TOOLSMITH_TEST_WITHOUT") ?? "";
for (const part of unwanted.split(",")) delete parts[part as Part];

const said = new Set<Part>();

/**
 * What a test that needs programs spreads into its definition: it is skipped
 * where one is missing, and that is said. A build farm must have them all.
 *
 * @param names The programs.
 * @returns The part of a test's definition.
 * @throws {Error} On a build farm, when one is missing.
 * @example
 * ```ts
 * Deno.test({ name: "pushes", ...needs("oras", "registry"), fn: () => {} });
 * ```
 */
export function needs(...names: Part[]): { ignore: boolean } {
  const absent = names.filter((name) => !parts[name]);
  for (const name of absent) {
    const line = `${name} is missing: install ${PARTS[name].remedy}`;
    if (Deno.env.get("CI") === "true") throw new Error(line);
    if (!said.has(name)) console.error(`skipping tests: ${line}`);
    said.add(name);
  }
  return { ignore: absent.length > 0 };
}
