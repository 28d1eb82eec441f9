/**
 * How many connections an image comes over.
 *
 * @module
 */

/** What such a number is, in words. */
export const CONNECTIONS_RANGE = "a number from 1 to 99";

/**
 * Reads how many connections there are at most.
 *
 * @param text The number.
 * @returns It, or `undefined` where it is not {@linkcode CONNECTIONS_RANGE}.
 */
export function parseConnections(text: string): number | undefined {
  return /^[1-9]\d?$/.test(text) ? Number(text) : undefined;
}
