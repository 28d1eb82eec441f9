/** The version of this program; a test compares it with deno.json. */

/** Such as `0.1.0`. */
export const VERSION = "0.1.0";
