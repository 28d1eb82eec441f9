/** Reproducible random numbers: `TOOLSMITH_SEED` repeats a run. */

/** Returns a generator of numbers from 0 to below 1, and prints its seed. */
export function seededRandom(): () => number {
  const given = Deno.env.get("TOOLSMITH_SEED");
  const seed = given ? Number(given) : Date.now() >>> 0;
  console.log(`TOOLSMITH_SEED=${seed}`);
  let state = seed >>> 0;
  // A linear congruential generator (Numerical Recipes, section 7.1).
  return () =>
    (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
}
