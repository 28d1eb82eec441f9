/**
 * Reads flags and arguments by a command's table.
 *
 * @module
 */
import { parseArgs } from "@std/cli/parse-args";
import { ToolsmithError } from "../errors.ts";
import { type CommandSpec, COMMON, type Flag } from "./flags.ts";

/** The flags and arguments that a command line holds. */
export interface ParsedFlags {
  /** Arguments that belong to no flag. */
  positionals: string[];
  /** What follows `--`. */
  rest: string[];
  /** Whether a switch is given. */
  has(name: string): boolean;
  /** The value of a flag. */
  text(name: string): string | undefined;
  /** The values of a flag that may be given several times. */
  texts(name: string): string[];
  /** A whole number. */
  count(name: string): number | undefined;
  /** A number of seconds, in milliseconds. */
  duration(name: string): number | undefined;
  /** An age such as `30d`, in milliseconds. */
  age(name: string): number | undefined;
  /** A size such as `512M` or `2G`, in MiB. */
  mebibytes(name: string): number | undefined;
  /** A time in ISO 8601, or in seconds since 1970. */
  time(name: string): Date | undefined;
  /** A word, if it is one of these. */
  oneOf<const T extends string>(words: readonly T[], word: string): T;
}

const AGES: Record<string, number> = {
  s: 1000,
  m: 60_000,
  h: 3_600_000,
  d: 86_400_000,
};

/**
 * Reads a command's flags and arguments.
 *
 * @param spec The command.
 * @param args What follows its name.
 * @returns What is given, to ask for by name.
 * @throws {ToolsmithError} `usage`, with a suggestion.
 */
export function readFlags(spec: CommandSpec, args: string[]): ParsedFlags {
  const flags = [...spec.flags, ...COMMON];
  const valued = flags.filter((flag) => flag.value);
  const parsed: Record<string, unknown> & { _: string[]; "--"?: string[] } =
    parseArgs(args, {
      string: [...valued.map((flag) => flag.name), "_"],
      boolean: flags.filter((flag) => !flag.value).map((flag) => flag.name),
      collect: valued.map((flag) => flag.name),
      alias: { help: "h" },
      "--": true,
      unknown: (arg: string, key?: string) => {
        if (key === undefined) return true;
        throw unknownFlag(arg, spec, flags);
      },
    });
  const rest = parsed["--"] ?? [];
  if (rest.length > 0 && !spec.rest) {
    throw usage(
      `${spec.name} takes nothing after --`,
      `toolsmith ${spec.name} --help`,
    );
  }
  const texts = (name: string): string[] => {
    const flag = valued.find((flag) => flag.name === name);
    const values = (parsed[name] ?? []) as string[];
    if (values.includes("")) {
      throw usage(`--${name} needs a value`, `--${name} ${flag?.value}`);
    }
    if (values.length > 1 && !flag?.many) {
      throw usage(`--${name} is given ${values.length} times`, "give it once");
    }
    return values;
  };
  // A value is checked even where the command would not ask for it.
  for (const { name } of valued) texts(name);
  const text = (name: string) => texts(name)[0];
  const number = (name: string, pattern: RegExp, what: string) => {
    const value = text(name);
    if (value === undefined || pattern.test(value)) return value;
    throw usage(`--${name} ${value} is not ${what}`, `--${name} 5`);
  };
  return {
    positionals: parsed._.map(String),
    rest,
    has: (name) => parsed[name] === true,
    text,
    texts,
    count(name) {
      const value = number(name, /^\d{1,6}$/, "a whole number");
      return value === undefined ? undefined : Number(value);
    },
    duration(name) {
      const what = "a number of seconds above zero";
      const value = number(name, /^(?=.*[1-9])\d{1,7}(\.\d+)?$/, what);
      return value === undefined ? undefined : Number(value) * 1000;
    },
    age(name) {
      const value = text(name);
      if (value === undefined) return undefined;
      const match = /^(\d{1,6})([smhd])$/.exec(value);
      if (match) return Number(match[1]) * AGES[match[2]];
      throw usage(`--${name} ${value} is not an age`, `--${name} 30d`);
    },
    mebibytes(name) {
      const value = text(name);
      if (value === undefined) return undefined;
      const [, digits, unit] = /^([1-9]\d{0,6})([MG]?)$/i.exec(value) ?? [];
      if (digits) return Number(digits) * (/g/i.test(unit) ? 1024 : 1);
      throw usage(`--${name} ${value} is not a size`, `--${name} 512M`);
    },
    time(name) {
      const value = text(name);
      if (value === undefined) return undefined;
      const time = /^\d{1,11}$/.test(value)
        ? new Date(Number(value) * 1000)
        : new Date(value);
      if (!isNaN(time.getTime())) return time;
      throw usage(
        `--${name} ${value} is not a time`,
        `--${name} 2026-01-31T12:00:00Z`,
      );
    },
    oneOf(words, word) {
      const found = words.find((candidate) => candidate === word);
      if (found !== undefined) return found;
      const close = closest(word, words);
      throw usage(
        `${spec.name} does not know "${word}"`,
        close ? `did you mean ${close}?` : `it knows ${words.join(", ")}`,
      );
    },
  };
}

function unknownFlag(arg: string, spec: CommandSpec, flags: Flag[]) {
  const name = arg.replace(/=.*/s, "");
  const help = `toolsmith ${spec.name} --help`;
  // Such as `--manifest=`, with nothing behind it.
  if (flags.some((flag) => `--${flag.name}` === name)) {
    return usage(`${name} needs a value behind =`, help);
  }
  const close = closest(
    name.replace(/^-+/, ""),
    flags.map((flag) => flag.name),
  );
  return usage(
    `${spec.name} has no flag ${name}`,
    close ? `did you mean --${close}?` : help,
  );
}

/**
 * Makes the error of a wrong command line.
 *
 * @param message What is wrong, with the value.
 * @param hint What to write instead.
 */
export function usage(message: string, hint: string): ToolsmithError {
  return new ToolsmithError("usage", message, { hint });
}

/** The candidate that a word is most likely a misspelling of, if any. */
export function closest(
  word: string,
  candidates: readonly string[],
): string | undefined {
  const ranked = candidates
    .map((name) => ({
      name,
      far: word.length > 1 && name.startsWith(word) ? 0 : distance(word, name),
    }))
    .sort((a, b) => a.far - b.far);
  const [best] = ranked;
  return best && best.far <= Math.max(1, best.name.length / 3)
    ? best.name
    : undefined;
}

/** How many letters to add, drop, change or swap with the next. */
function distance(a: string, b: string): number {
  const rows = [Array.from({ length: b.length + 1 }, (_, j) => j)];
  for (let i = 1; i <= a.length; i++) {
    const [above, row] = [rows[i - 1], [i]];
    for (let j = 1; j <= b.length; j++) {
      const changed = above[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1);
      row[j] = Math.min(changed, above[j] + 1, row[j - 1] + 1);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        row[j] = Math.min(row[j], rows[i - 2][j - 2] + 1);
      }
    }
    rows.push(row);
  }
  return rows[a.length][b.length];
}
