/**
 * The version of this program; a test holds it equal to that of deno.json.
 *
 * @module
 */

/** Such as `0.1.0`. */
export const VERSION = "0.1.0";
