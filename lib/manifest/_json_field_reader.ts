/**
 * Reads a JSON file field by field. Each error names the file and the field.
 */
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

export type JsonFieldReader = ReturnType<typeof createJsonFieldReader>;

/**
 * Creates the field readers of a JSON file. Each throws `manifest_invalid`; the hint
 * `help` points to the format's documentation.
 */
export function createJsonFieldReader(file: string, help: string) {
  const fieldError = (field: string, why: string, hint: string) => {
    const where = field ? `${file}: ${sanitizeLine(field, 120)}` : file;
    return new ToolsmithError("manifest_invalid", `${where}: ${why}`, { hint });
  };
  const requireString = (value: unknown, field: string) => {
    if (typeof value === "string") return value;
    const hint = "write the value as a string in double quotes";
    throw fieldError(field, `${toShortJson(value)} is not a string`, hint);
  };
  return {
    fieldError,
    /** Parses the file's text; a syntax error names line and column. */
    parse(text: string): unknown {
      let value: unknown;
      try {
        value = parseJsonText(text, file);
      } catch (cause) {
        const hint =
          "fix the JSON syntax at this position; comments are not allowed";
        const { message } = cause as Error;
        throw new ToolsmithError("manifest_invalid", message, { hint, cause });
      }
      if (isNestedDeeper(value, MAX_NESTING_DEPTH)) {
        throw fieldError("", "JSON is nested too deeply", help);
      }
      for (const { key, parentKeys, isDuplicateKey } of walkJsonMembers(text)) {
        if (!isDuplicateKey || parentKeys.some(isExtensionField)) continue;
        const field = [...parentKeys.filter((name) => name), key].join(".");
        const hint = "remove one of the duplicate keys";
        throw fieldError(field, "duplicate key", hint);
      }
      return value;
    },
    requireObject(value: unknown, field: string): JsonObject {
      if (isJsonObject(value)) return value;
      throw fieldError(field, `${toShortJson(value)} is not an object`, help);
    },
    /** Reads a required field that is not blank; the hint describes its value. */
    requiredText(object: JsonObject, field: string, hint: string): string {
      const value = object[leafFieldName(field)];
      if (value === undefined) throw fieldError(field, "missing", hint);
      const text = requireString(value, field);
      if (text.trim() === "") throw fieldError(field, "empty", hint);
      return text;
    },
    /** Reads an optional field and trims it; blank text counts as missing. */
    optionalText(object: JsonObject, field: string): string | undefined {
      const value = object[leafFieldName(field)];
      if (value === undefined) return undefined;
      return requireString(value, field).trim() || undefined;
    },
    /** Rejects fields that are neither known nor named `x-…`. */
    rejectUnknownFields(object: JsonObject, known: string[], prefix = "") {
      for (const key of Object.keys(object)) {
        if (known.includes(key) || isExtensionField(key)) continue;
        const names = known.map((name) => prefix + name).join(", ");
        const hint = `use one of these fields: ${names}`;
        throw fieldError(prefix + key, "unknown field", hint);
      }
    },
  };
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

/** Returns `name` for the path `image.name`. */
function leafFieldName(field: string): string {
  return field.slice(field.lastIndexOf(".") + 1);
}
