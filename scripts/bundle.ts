/**
 * Writes `dist/toolsmith.js`: the whole program in one file, which `deno run`
 * starts without a network, an import map or a cache.
 *
 *     deno task bundle
 *
 * @module
 */
import { deno, ROOT } from "./deno.ts";

/** Where the bundle is written. */
export const BUNDLE = `${ROOT}/dist/toolsmith.js`;

/**
 * Writes the bundle, whole or not at all: tests that run at the same time write
 * and read it.
 *
 * @returns Whether it worked; Deno has said what did not.
 */
export async function bundle(): Promise<boolean> {
  await Deno.mkdir(`${ROOT}/dist`, { recursive: true });
  const staging = `${BUNDLE}.${crypto.randomUUID()}`;
  const args = ["--quiet", "--output", staging, `${ROOT}/cli.ts`];
  if ((await deno("bundle", ...args)).code !== 0) return false;
  await Deno.rename(staging, BUNDLE);
  return true;
}

if (import.meta.main) {
  if (await bundle()) console.error(`wrote ${BUNDLE}`);
  else Deno.exitCode = 1;
}
