/**
 * Says what a copy does not have.
 *
 * @module
 */
import { oneLine } from "../system/text.ts";

/**
 * Words for the end of a message.
 *
 * @param names What was left out.
 * @returns Nothing where that is nothing.
 */
export function leftOut(names: string[]): string {
  return names.length === 0
    ? ""
    : `; left out: ${names.length}, such as ${oneLine(names[0], 80)}`;
}
