/**
 * Reads JSON of files that people write.
 *
 * @module
 */

/** An object of JSON. */
export type JsonObject = Record<string, unknown>;

/**
 * Whether a value of JSON is an object.
 *
 * @param value Any value.
 * @returns `false` for `null` and lists, too.
 */
export function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * Parses the text of a file.
 *
 * @param text The text; a byte order mark before it is ignored.
 * @param file The file, for errors.
 * @returns The value.
 * @throws {SyntaxError} Says file, line and column. Nothing of the text but the
 * unexpected character is in it, as a configuration may hold secrets.
 */
export function parseJson(text: string, file: string): unknown {
  const body = text.replace(/^\uFEFF/, "");
  const found = syntaxError(body);
  if (found === undefined) return JSON.parse(body);
  const before = body.slice(0, positionOf(found, body)).split("\n");
  const column = before[before.length - 1].length + 1;
  const why = found.message
    .replace(/(?: (?:in|after) JSON at|, (?:\.{3})?").*/s, "")
    .replace(/\s+/g, " ");
  throw new SyntaxError(`${file}:${before.length}:${column}: not JSON: ${why}`);
}

function syntaxError(text: string): Error | undefined {
  try {
    JSON.parse(text);
  } catch (error) {
    return error as Error;
  }
}

/** Finds where bad syntax begins: V8 does not say it of an unexpected token. */
function positionOf({ message }: Error, text: string): number {
  const position = /position (\d+)/.exec(message)?.[1];
  if (position !== undefined) return Number(position);
  const token = /^Unexpected token/;
  if (!token.test(message)) return text.length;
  // The shortest beginning of the text that fails so has the token at its end.
  let [good, bad] = [0, text.length];
  while (bad - good > 1) {
    const middle = (good + bad) >> 1;
    const failed = syntaxError(text.slice(0, middle));
    if (token.test(failed?.message ?? "")) bad = middle;
    else good = middle;
  }
  return good;
}
