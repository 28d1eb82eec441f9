/**
 * Flags as data: the parser, `--help`, shell completion and the types of flag
 * values all derive from them.
 */
import { ToolsmithError } from "../errors.ts";

/** The help's heading that a flag is listed below. */
export type FlagGroup = "command" | "vm" | "image" | "transfer" | "output";

export interface Flag<Value = unknown> {
  /** Without dashes. */
  name: string;
  /**
   * The value's name in the help, which also selects its completion; absent for a
   * switch. `a|b` lists the only possible values.
   */
  placeholder?: string;
  /** @default {undefined} specific to the command */
  group?: FlagGroup;
  repeatable?: boolean;
  /** One line for `--help`. */
  help: string;
  /** Parses the given values, or throws `usage`; a switch that is given has one. */
  parse(values: string[]): Value;
}

/** Flags by the name of the option that the command receives. */
export type Flags = Record<string, Flag>;

export type FlagValues<F extends Flags> = {
  [Key in keyof F]: ReturnType<F[Key]["parse"]>;
};

type ValueParser<T> = (text: string, flag: string) => T;

/** A switch: `true` if it is given. */
export function switchFlag(name: string, help: string): Flag<boolean> {
  return { name, help, parse: (values) => values.length > 0 };
}

/** A `--no-…` switch: `false` if it is given. */
export function negatedSwitchFlag(name: string, help: string): Flag<boolean> {
  return { name, help, parse: (values) => values.length === 0 };
}

/** A flag with a value; its shape is such as `retries N`. */
export function valueFlag(
  shape: string,
  help: string,
): Flag<string | undefined>;
export function valueFlag<T>(
  shape: string,
  help: string,
  read: ValueParser<T>,
): Flag<T | undefined>;
export function valueFlag(
  shape: string,
  help: string,
  read: ValueParser<unknown> = (text) => text,
): Flag {
  const all = repeatableFlag(shape, help, read);
  return { ...all, repeatable: false, parse: (values) => all.parse(values)[0] };
}

export function repeatableFlag<T>(
  shape: string,
  help: string,
  read: ValueParser<T>,
): Flag<T[]> {
  const [name, value] = shape.split(" ");
  const readAll = (values: string[]) => values.map((text) => read(text, name));
  return { name, placeholder: value, help, repeatable: true, parse: readAll };
}

export function keyValueFlag(
  shape: string,
  help: string,
): Flag<Record<string, string>> {
  const all = repeatableFlag(shape, help, (text, name) => {
    const [, key, value] = /^([^=\s]+)=(.*)$/s.exec(text) ?? [];
    if (key !== undefined) return [key, value];
    throw usageError(
      `--${name} ${text} is not KEY=VALUE`,
      `write --${name} a=b, for example`,
    );
  });
  return { ...all, parse: (values) => Object.fromEntries(all.parse(values)) };
}

/** Parses a whole number of up to six digits. */
export const parseCount = createValueParser(
  "a whole number up to 999999",
  "5",
  (text) => /^\d{1,6}$/.test(text) ? Number(text) : undefined,
);

/** Parses seconds; returns milliseconds. */
export const parseSecondsToMs = createValueParser(
  "a number of seconds above zero",
  "5",
  (text) =>
    /^(?=.*[1-9])\d{1,7}(\.\d+)?$/.test(text) ? Number(text) * 1000 : undefined,
);

const AGE_UNIT_MS: Record<string, number> = {
  s: 1000,
  m: 60_000,
  h: 3_600_000,
  d: 86_400_000,
};

/** Parses an age such as `30d`; returns milliseconds. */
export const parseAgeToMs = createValueParser("an age", "30d", (text) => {
  const [, count, unit] = /^(\d{1,6})([smhd])$/.exec(text) ?? [];
  return count ? Number(count) * AGE_UNIT_MS[unit] : undefined;
});

/** Parses a size such as `512M` or `2G`; returns MiB. */
export const parseSizeToMib = createValueParser("a size", "512M", (text) => {
  const [, digits, unit] = /^([1-9]\d{0,6})([MG]?)$/i.exec(text) ?? [];
  return digits ? Number(digits) * (/g/i.test(unit) ? 1024 : 1) : undefined;
});

/** Parses a time: ISO 8601, or seconds since 1970. */
export const parseTimeToDate = createValueParser(
  "a time",
  "2026-01-31T12:00:00Z",
  (text) => {
    const seconds = /^\d{1,11}$/.test(text);
    const time = new Date(seconds ? Number(text) * 1000 : text);
    return isNaN(time.getTime()) ? undefined : time;
  },
);

/**
 * Creates a parser that throws `usage` where `read` returns `undefined`; the error
 * describes a valid value (`what`) and gives an example.
 */
export function createValueParser<T>(
  what: string,
  example: string,
  read: (text: string) => T | undefined,
): ValueParser<T> {
  return (text, name) => {
    const value = read(text);
    if (value !== undefined) return value;
    throw usageError(
      `--${name} ${text} is not ${what}`,
      `write --${name} ${example}, for example`,
    );
  };
}

/** Returns the word if it is in the list; `who` is the subject of the error. */
export function parseChoice<const T extends string>(
  words: readonly T[],
  word: string,
  who: string,
): T {
  const found = words.find((candidate) => candidate === word);
  if (found !== undefined) return found;
  const close = closestMatch(word, words);
  throw usageError(
    `${who} does not accept "${word}"`,
    close ? `did you mean ${close}?` : `use one of: ${words.join(", ")}`,
  );
}

export function usageError(message: string, hint: string): ToolsmithError {
  return new ToolsmithError("usage", message, { hint });
}

/**
 * Returns the candidate that starts with the word, or has the smallest edit
 * distance; `undefined` if none is close.
 */
export function closestMatch(
  word: string,
  candidates: readonly string[],
): string | undefined {
  const distanceTo = (name: string) =>
    word.length > 1 && name.startsWith(word) ? 0 : editDistance(word, name);
  const [best = ""] = candidates
    .toSorted((a, b) => distanceTo(a) - distanceTo(b));
  const isClose = distanceTo(best) <= Math.max(1, best.length / 3);
  return isClose && best ? best : undefined;
}

/**
 * Damerau-Levenshtein distance: unlike `levenshteinDistance` of `@std/text`, a swap
 * of neighbours (`--jsno`) counts as one edit.
 */
function editDistance(a: string, b: string): number {
  const rows = [Array.from({ length: b.length + 1 }, (_, j) => j)];
  for (let i = 1; i <= a.length; i++) {
    const [above, row] = [rows[i - 1], [i]];
    for (let j = 1; j <= b.length; j++) {
      const changed = above[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1);
      row[j] = Math.min(changed, above[j] + 1, row[j - 1] + 1);
      // Indexes before the first letter are undefined and match nothing.
      if (a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        row[j] = Math.min(row[j], rows[i - 2][j - 2] + 1);
      }
    }
    rows.push(row);
  }
  return rows[a.length][b.length];
}
