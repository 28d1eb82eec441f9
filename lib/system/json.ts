/**
 * Parses untrusted JSON, with error positions, duplicate keys and nesting depth,
 * which `JSON.parse()` does not report.
 */

export type JsonObject = Record<string, unknown>;

/** Whether a parsed JSON value is an object, not `null` or an array. */
export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export function jsonObjectOrEmpty(value: unknown): JsonObject {
  return isJsonObject(value) ? value : {};
}

/**
 * Parses the text of a JSON file, and ignores a byte order mark. The `SyntaxError`
 * names file, line and column. It quotes only the unexpected character, because a
 * configuration may hold secrets.
 */
export function parseJsonText(text: string, file: string): unknown {
  const body = text.replace(/^\uFEFF/, "");
  const found = syntaxErrorMessage(body);
  if (found === undefined) return JSON.parse(body);
  const before = body.slice(0, syntaxErrorOffset(found, body)).split("\n");
  const column = before[before.length - 1].length + 1;
  const why = found
    .replace(/(?: (?:in|after) JSON at|, (?:\.{3})?").*/s, "")
    .replace(/\s+/g, " ");
  throw new SyntaxError(`${file}:${before.length}:${column}: not JSON: ${why}`);
}

function syntaxErrorMessage(text: string): string | undefined {
  try {
    JSON.parse(text);
  } catch (error) {
    return (error as Error).message;
  }
}

/** Finds the error's offset; V8 does not report it for an unexpected token. */
function syntaxErrorOffset(message: string, text: string): number {
  const position = /position (\d+)/.exec(message)?.[1];
  if (position !== undefined) return Number(position);
  const token = /^Unexpected token/;
  if (!token.test(message)) return text.length;
  // Binary search for the shortest prefix that fails with this error.
  let [good, bad] = [0, text.length];
  while (bad - good > 1) {
    const middle = (good + bad) >> 1;
    const failure = syntaxErrorMessage(text.slice(0, middle)) ?? "";
    if (token.test(failure)) bad = middle;
    else good = middle;
  }
  return good;
}

const TOKEN_PATTERN = /"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\],:]|[^\s{}[\],:"]+/gs;

/** Whether a parsed value has more nested levels, which bound a reader's recursion. */
export function isNestedDeeper(value: unknown, levels: number): boolean {
  return typeof value === "object" && value !== null &&
    (levels === 0 ||
      Object.values(value).some((child) => isNestedDeeper(child, levels - 1)));
}

/**
 * Walks all object members of valid JSON in text order, in linear time. `parentKeys` are
 * the keys of the enclosing objects, outermost first, until the next member.
 */
export function* walkJsonMembers(text: string) {
  const parentKeys: string[] = [];
  const seen: (Set<string> | undefined)[] = [];
  let key: string | undefined;
  let previous = "";
  for (const { 0: token, index: valueOffset } of text.matchAll(TOKEN_PATTERN)) {
    const isValue = previous === ":";
    if (isValue && key !== undefined) {
      const keys = seen[seen.length - 1] ??= new Set();
      const isDuplicateKey = keys.has(key);
      keys.add(key);
      yield { key, parentKeys, valueOffset, isDuplicateKey };
    }
    if (token === "{" || token === "[") {
      // An array element has no key.
      parentKeys.push(isValue ? key ?? "" : "");
      seen.push(undefined);
    } else if (token === "}" || token === "]") {
      parentKeys.pop();
      seen.pop();
    } else if (token.startsWith('"') && !isValue) key = JSON.parse(token);
    previous = token;
  }
}
