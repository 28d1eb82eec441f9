/** Reads a manifest field by field. Each error names the file and the field. */
import { ToolsmithError } from "../errors.ts";
import {
  isJsonObject,
  isNestedDeeper,
  type JsonObject,
  parseJsonText,
  walkJsonMembers,
} from "../system/json.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";

/** A manifest has three levels. */
const MAX_NESTING_DEPTH = 64;
const FORMAT_HINT = "see docs/consuming.md for the manifest format";

/** Parses a file's text; a syntax error names line and column. */
export function parseJsonField(text: string, file: string): JsonField {
  let value: unknown;
  try {
    value = parseJsonText(text, file);
  } catch (cause) {
    const hint =
      "fix the JSON syntax at this position; comments are not allowed";
    const { message } = cause as Error;
    throw new ToolsmithError("manifest_invalid", message, { hint, cause });
  }
  const json = new JsonField(file, "", value);
  if (isNestedDeeper(value, MAX_NESTING_DEPTH)) {
    throw json.error("JSON is nested too deeply", FORMAT_HINT);
  }
  for (const { key, parentKeys, isDuplicateKey } of walkJsonMembers(text)) {
    if (!isDuplicateKey || parentKeys.some(isExtensionField)) continue;
    const path = [...parentKeys.filter((name) => name), key].join(".");
    throw json.error("duplicate key", "remove one of the duplicate keys", path);
  }
  return json;
}

/** A field of a JSON file, which may be absent. Its methods throw `manifest_invalid`. */
export class JsonField {
  constructor(
    readonly file: string,
    /** Such as `image.name`; empty for the whole file. */
    readonly path: string,
    readonly value: unknown,
  ) {}

  error(why: string, hint: string, path = this.path): ToolsmithError {
    const where = path ? `${this.file}: ${sanitizeLine(path, 120)}` : this.file;
    return new ToolsmithError("manifest_invalid", `${where}: ${why}`, { hint });
  }

  /** The field of this object with a name. */
  child(name: string, value: unknown): JsonField {
    const path = this.path ? `${this.path}.${name}` : name;
    return new JsonField(this.file, path, value);
  }

  object(): JsonObject {
    if (isJsonObject(this.value)) return this.value;
    const why = `${toShortJson(this.value)} is not an object`;
    throw this.error(why, FORMAT_HINT);
  }

  /** Reads an object whose other fields are all named `x-…`. */
  fields<Name extends string>(...names: Name[]): Record<Name, JsonField> {
    const object = this.object();
    const known = names.map((name) => this.child(name, object[name]));
    for (const key of Object.keys(object)) {
      if (names.some((name) => name === key) || isExtensionField(key)) continue;
      const paths = known.map(({ path }) => path).join(", ");
      const hint = `use one of these fields: ${paths}`;
      throw this.child(key, undefined).error("unknown field", hint);
    }
    const entries = names.map((name, index) => [name, known[index]]);
    return Object.fromEntries(entries);
  }

  /** Reads text that is not blank; the hint describes it. */
  requiredText(hint: string): string {
    if (this.value === undefined) throw this.error("missing", hint);
    const text = this.#string();
    if (text.trim() === "") throw this.error("empty", hint);
    return text;
  }

  /** Reads text and trims it; blank text counts as missing. */
  optionalText(): string | undefined {
    if (this.value === undefined) return undefined;
    return this.#string().trim() || undefined;
  }

  #string(): string {
    if (typeof this.value === "string") return this.value;
    const hint = "write the value as a string in double quotes";
    throw this.error(`${toShortJson(this.value)} is not a string`, hint);
  }
}

/** Whether a field belongs to another program (`x-…`) and is not validated. */
export function isExtensionField(key: string): boolean {
  return key.startsWith("x-");
}

/** Formats a value for a message: its JSON, truncated to 60 characters. */
export function toShortJson(value: unknown): string {
  const text = String(JSON.stringify(value));
  return text.length > 60 ? `${text.slice(0, 57)}…` : text;
}
