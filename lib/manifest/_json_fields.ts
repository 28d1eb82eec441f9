/**
 * Reads a JSON file field by field; what is wrong names the file and the field.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { isObject, type JsonObject, parseJson } from "../system/json.ts";
import { oneLine } from "../system/text.ts";
import { jsonDepth, jsonMembers } from "./_json_members.ts";

/** Far above the three levels that a manifest has. */
const MAX_DEPTH = 64;

/** The readers of one file. Each throws `manifest_invalid`. */
export interface JsonFields {
  /** Parses the text of the file; bad syntax is reported by line and column. */
  parse(text: string): unknown;
  /** Demands an object. */
  object(value: unknown, field: string): JsonObject;
  /** Demands a string. */
  string(value: unknown, field: string): string;
  /** Demands a field of an object, and text in it; the hint says which. */
  required(object: JsonObject, field: string, hint: string): string;
  /** Reads a field that may be missing or empty; blanks around it are cut. */
  optional(object: JsonObject, field: string): string | undefined;
  /** Demands that an object has no other fields than these and `x-…`. */
  onlyKnown(object: JsonObject, known: string[], prefix?: string): void;
  /** Makes the error of a field. */
  invalid(field: string, why: string, hint: string): ToolsmithError;
}

/**
 * Binds the readers to a file.
 *
 * @param file Its absolute path.
 * @param help Where the whole shape is described.
 * @returns The readers.
 */
export function jsonFields(file: string, help: string): JsonFields {
  const invalid = (field: string, why: string, hint: string) => {
    const where = field ? `${file}: ${oneLine(field, 120)}` : file;
    return new ToolsmithError("manifest_invalid", `${where}: ${why}`, { hint });
  };
  const string = (value: unknown, field: string) => {
    if (typeof value === "string") return value;
    throw invalid(field, `${show(value)} is not a string`, 'put it in ""');
  };
  return {
    invalid,
    string,
    parse(text) {
      const value = parse(text, file);
      if (jsonDepth(text) > MAX_DEPTH) {
        throw invalid("", "it is nested too deeply", help);
      }
      for (const { key, around, isRepeated } of jsonMembers(text)) {
        if (!isRepeated || around.some(isForeign)) continue;
        const field = [...around.filter((name) => name), key].join(".");
        throw invalid(field, "stands there twice", "remove one of the two");
      }
      return value;
    },
    object(value, field) {
      if (isObject(value)) return value;
      throw invalid(field, `${show(value)} is not an object`, help);
    },
    required(object, field, hint) {
      const value = object[keyOf(field)];
      if (value === undefined) throw invalid(field, "missing", hint);
      const text = string(value, field);
      if (text.trim() === "") throw invalid(field, "empty", hint);
      return text;
    },
    optional(object, field) {
      const value = object[keyOf(field)];
      if (value === undefined) return undefined;
      return string(value, field).trim() || undefined;
    },
    onlyKnown(object, known, prefix = "") {
      for (const key of Object.keys(object)) {
        if (known.includes(key) || isForeign(key)) continue;
        const names = known.map((name) => prefix + name).join(", ");
        throw invalid(prefix + key, "no such field", `the fields are ${names}`);
      }
    },
  };
}

/**
 * Whether a field is another program's: it is kept, and not looked at.
 *
 * @param key The field's own name.
 */
export function isForeign(key: string): boolean {
  return key.startsWith("x-");
}

/**
 * Writes a value into a message.
 *
 * @param value Any value of JSON, or `undefined`.
 * @returns Its JSON, shortened.
 */
export function show(value: unknown): string {
  const text = String(JSON.stringify(value));
  return text.length > 60 ? `${text.slice(0, 57)}…` : text;
}

/** `image.name` is the field `name` of the object `image`. */
function keyOf(field: string): string {
  return field.slice(field.lastIndexOf(".") + 1);
}

function parse(text: string, file: string): unknown {
  try {
    return parseJson(text, file);
  } catch (cause) {
    throw new ToolsmithError("manifest_invalid", (cause as Error).message, {
      hint: "fix the syntax there; JSON has no comments",
      cause,
    });
  }
}
