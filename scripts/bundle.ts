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
 * Writes the bundle.
 *
 * @returns Whether it worked; Deno has said what did not.
 */
export async function bundle(): Promise<boolean> {
  await Deno.mkdir(`${ROOT}/dist`, { recursive: true });
  const args = ["--quiet", "--output", BUNDLE, `${ROOT}/cli.ts`];
  return (await deno("bundle", ...args)).code === 0;
}

if (import.meta.main) {
  if (await bundle()) console.error(`wrote ${BUNDLE}`);
  else Deno.exitCode = 1;
}
