/**
 * Tests with a second user of the host, which only root can play.
 *
 * @module
 */

/** Defines a test that changes owners; it is skipped for other users than root. */
export function asRoot(name: string, fn: () => Promise<void>): void {
  const root = Deno.build.os !== "windows" && Deno.uid() === 0;
  Deno.test({ name, ignore: !root, fn });
}
