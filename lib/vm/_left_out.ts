/**
 * Says what a copy does not have.
 *
 * @module
 */
import { oneLine } from "../system/text.ts";
import type { LeftOut } from "../guest/copy.ts";

/**
 * Words for the end of a message.
 *
 * @param left What was left out.
 * @returns Nothing where that is nothing.
 */
export function leftOut({ count, names }: LeftOut): string {
  return count === 0
    ? ""
    : `; left out: ${count}, such as ${oneLine(names[0], 80)}`;
}
