/**
 * Names that are the same file on every system.
 *
 * Source of the rules: Microsoft, "Naming Files, Paths, and Namespaces".
 *
 * @module
 */

import { printable } from "./text.ts";

/** Windows drops dots and spaces at the end, and takes `:` for a stream's name. */
const PLAIN = /^[^/\\:*?"<>|\p{Cc}]{1,255}(?<![. ])$/u;
/** Windows keeps these names for devices, whatever follows the dot. */
const DEVICE =
  /^(?:con|prn|aux|nul|(?:com|lpt)[\d¹²³]|conin\$|conout\$) *(?:\.|$)/i;

/**
 * Tells whether a name can be one file or directory, and no other one, on every
 * system.
 *
 * @param name A name without directories.
 * @returns `false` for `..`, `a/b`, `a:b`, `a.`, `nul.txt`, an empty name, one
 * that would steer a terminal, and the like.
 */
export function isPortableName(name: string): boolean {
  return PLAIN.test(name) && !DEVICE.test(name) && name.isWellFormed() &&
    printable(name) === name;
}

/**
 * Folds what some file systems and programs take for the same: case, and ways
 * to write accents.
 *
 * @param name The name.
 * @returns Equal for names that may be one.
 */
export function foldName(name: string): string {
  // Upper case first: it folds what has no lower case of its own, such as ſ.
  return name.normalize("NFC").toUpperCase().toLowerCase().normalize("NFC");
}
