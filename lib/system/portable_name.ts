/** File names, by the rules of Microsoft's "Naming Files, Paths, and Namespaces". */
import { sanitizeText } from "./sanitize_text.ts";

/** Windows drops trailing dots and spaces, and `:` separates a stream name. */
const PORTABLE_NAME_PATTERN = /^[^/\\:*?"<>|\p{Cc}]{1,255}(?<![. ])$/u;
/** Names that Windows reserves for devices, with any extension. */
const DEVICE_NAME_PATTERN =
  /^(?:con|prn|aux|nul|(?:com|lpt)[\d¹²³]|conin\$|conout\$) *(?:\.|$)/i;

/**
 * Whether a name without directories is valid and unambiguous on every system: not
 * `..`, `a/b`, `a:b`, `a.`, `nul.txt`, an empty name, control characters, and so on.
 */
export function isPortableFileName(name: string): boolean {
  return PORTABLE_NAME_PATTERN.test(name) && !DEVICE_NAME_PATTERN.test(name) &&
    name.isWellFormed() && sanitizeText(name) === name;
}

/**
 * Folds case and Unicode normalization, which some filesystems ignore: names with
 * equal results may be the same file.
 */
export function foldNameCase(name: string): string {
  // Upper case first: it folds letters without a lower-case form, such as ſ.
  return name.normalize("NFC").toUpperCase().toLowerCase().normalize("NFC");
}
