/**
 * Walks the members of the objects in a JSON text: where each stands, and what
 * `JSON.parse()` does not report.
 *
 * @module
 */

/** A member of an object. */
export interface JsonMember {
  /** Its key. */
  key: string;
  /** Keys of what it lies in, from the outside; valid until the next one. */
  around: readonly string[];
  /** The first token of its value: all of it, if that is a string. */
  value: string;
  /** Where that token begins in the text. */
  from: number;
  /** Whether the object has had the key before. */
  isRepeated: boolean;
}

const TOKENS = /"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\],:]|[^\s{}[\],:"]+/gs;

/**
 * How deeply a text is nested: what reads a value of it may go down as far.
 *
 * @param text JSON that has been parsed.
 * @returns The depth; 0 for a plain value.
 */
export function jsonDepth(text: string): number {
  let depth = 0;
  let deepest = 0;
  for (const [token] of text.matchAll(TOKENS)) {
    if (token === "{" || token === "[") deepest = Math.max(deepest, ++depth);
    else if (token === "}" || token === "]") depth--;
  }
  return deepest;
}

/**
 * Walks the members, in time that grows with the text's length.
 *
 * @param text JSON that has been parsed.
 * @returns Each member, in the order of the text.
 */
export function* jsonMembers(text: string): Generator<JsonMember> {
  const around: string[] = [];
  const seen: Set<string>[] = [];
  let key: string | undefined;
  let before = "";
  for (const { 0: token, index: from } of text.matchAll(TOKENS)) {
    const isValue = before === ":";
    if (isValue && key !== undefined) {
      const keys = seen[seen.length - 1];
      const isRepeated = keys.has(key);
      keys.add(key);
      yield { key, around, value: token, from, isRepeated };
    }
    if (token === "{" || token === "[") {
      // What stands in a list has no key.
      around.push(isValue ? key ?? "" : "");
      seen.push(new Set());
    } else if (token === "}" || token === "]") {
      around.pop();
      seen.pop();
    } else if (token.startsWith('"') && !isValue) key = JSON.parse(token);
    before = token;
  }
}
