/**
 * Reads flags and arguments by a command's table, and their values by type.
 *
 * @module
 */
import { parseArgs } from "@std/cli/parse-args";
import { ToolsmithError } from "../errors.ts";
import { CONNECTIONS_RANGE, parseConnections } from "../oci/connections.ts";
import { type CommandSpec, COMMON, type Flag } from "./spec.ts";
import { closest } from "./suggest.ts";

/** What a value has to be, and how it is read. */
interface ValueKind<T> {
  what: string;
  example: string;
  /** Returns `undefined` for what it is not. */
  read(text: string): T | undefined;
}

const COUNT: ValueKind<number> = {
  what: "a whole number",
  example: "5",
  read: (text) => /^\d{1,6}$/.test(text) ? Number(text) : undefined,
};

const CONNECTIONS: ValueKind<number> = {
  what: CONNECTIONS_RANGE,
  example: "4",
  read: parseConnections,
};

const DURATION: ValueKind<number> = {
  what: "a number of seconds above zero",
  example: "5",
  read: (text) =>
    /^(?=.*[1-9])\d{1,7}(\.\d+)?$/.test(text) ? Number(text) * 1000 : undefined,
};

const AGE_UNITS: Record<string, number> = {
  s: 1000,
  m: 60_000,
  h: 3_600_000,
  d: 86_400_000,
};

const AGE: ValueKind<number> = {
  what: "an age",
  example: "30d",
  read(text) {
    const [, count, unit] = /^(\d{1,6})([smhd])$/.exec(text) ?? [];
    return count ? Number(count) * AGE_UNITS[unit] : undefined;
  },
};

const SIZE: ValueKind<number> = {
  what: "a size",
  example: "512M",
  read(text) {
    const [, digits, unit] = /^([1-9]\d{0,6})([MG]?)$/i.exec(text) ?? [];
    return digits ? Number(digits) * (/g/i.test(unit) ? 1024 : 1) : undefined;
  },
};

const TIME: ValueKind<Date> = {
  what: "a time",
  example: "2026-01-31T12:00:00Z",
  read(text) {
    const seconds = /^\d{1,11}$/.test(text);
    const time = new Date(seconds ? Number(text) * 1000 : text);
    return isNaN(time.getTime()) ? undefined : time;
  },
};

/** No argument of a process can hold it. */
const NO_VALUE = "\0";

/** The flags and arguments that a command line holds. */
export class ParsedFlags {
  /** Arguments that belong to no flag. */
  readonly positionals: string[];
  /** Arguments to pass on: what the command's `rest` says. */
  readonly rest: string[];
  #spec: CommandSpec;
  #values = new Map<string, string[]>();
  #switches = new Set<string>();

  /**
   * Reads a command's flags and arguments.
   *
   * @param spec The command.
   * @param args What follows its name.
   * @throws {ToolsmithError} `usage`, with a suggestion.
   */
  constructor(spec: CommandSpec, args: string[]) {
    const flags = [...spec.flags, ...COMMON];
    const [valued, switches] = [
      flags.filter(({ value }) => value),
      flags.filter(({ value }) => !value),
    ];
    // A word behind a switch is no value of it, which parseArgs() takes these for.
    const named = ["-h", ...switches.map(({ name }) => `--${name}`)];
    const marked = args.map((arg, at) =>
      /^(true|false)$/.test(arg) && named.includes(args[at - 1])
        ? arg + NO_VALUE
        : arg
    );
    const parsed = parseArgs(marked, {
      string: [...valued.map(({ name }) => name), "_"],
      boolean: switches.map(({ name }) => name),
      collect: valued.map(({ name }) => name),
      alias: { help: "h" },
      "--": true,
      stopEarly: spec.rest === "words",
      unknown: (arg: string, key?: string) => {
        if (key === undefined) return true;
        throw unknownFlag(arg, spec, flags);
      },
    });
    this.#spec = spec;
    for (const { name } of switches) {
      const value: unknown = parsed[name];
      if (value === true) this.#switches.add(name);
    }
    // A value is checked even where the command would not ask for it.
    for (const flag of valued) {
      this.#values.set(flag.name, checkValues(flag, parsed[flag.name]));
    }
    const words = parsed._.map((word) => String(word).replace(NO_VALUE, ""));
    const dashes = args.includes("--") ? args.indexOf("--") : args.length;
    // A `--` behind the first word is the command's own.
    const own = spec.rest === "words" && words.length > 0;
    this.positionals = own ? [] : words;
    this.rest = args.slice(own ? dashes - words.length : dashes + 1);
    if (this.rest.length > 0 && !spec.rest) {
      throw usage(
        `${spec.name} takes nothing after --`,
        `toolsmith ${spec.name} --help`,
      );
    }
  }

  /** Whether a switch is given. */
  has(name: string): boolean {
    return this.#switches.has(name);
  }

  /** The values of a flag that may be given several times. */
  texts(name: string): string[] {
    return this.#values.get(name) ?? [];
  }

  /** The value of a flag. */
  text(name: string): string | undefined {
    return this.texts(name)[0];
  }

  /** A whole number. */
  count(name: string): number | undefined {
    return this.#read(name, COUNT);
  }

  /** How many connections there are at most. */
  connections(name: string): number | undefined {
    return this.#read(name, CONNECTIONS);
  }

  /** A number of seconds, in milliseconds. */
  duration(name: string): number | undefined {
    return this.#read(name, DURATION);
  }

  /** An age such as `30d`, in milliseconds. */
  age(name: string): number | undefined {
    return this.#read(name, AGE);
  }

  /** A size such as `512M` or `2G`, in MiB. */
  mebibytes(name: string): number | undefined {
    return this.#read(name, SIZE);
  }

  /** A time in ISO 8601, or in seconds since 1970. */
  time(name: string): Date | undefined {
    return this.#read(name, TIME);
  }

  /** Pairs, each `KEY=VALUE`. */
  pairs(name: string): Record<string, string> {
    return Object.fromEntries(
      this.texts(name).map((text) => {
        const [, key, value] = /^([^=\s]+)=(.*)$/s.exec(text) ?? [];
        if (key !== undefined) return [key, value];
        throw usage(`--${name} ${text} is not KEY=VALUE`, `--${name} a=b`);
      }),
    );
  }

  /** A word, if it is one of these. */
  oneOf<const T extends string>(words: readonly T[], word: string): T {
    const found = words.find((candidate) => candidate === word);
    if (found !== undefined) return found;
    const close = closest(word, words);
    throw usage(
      `${this.#spec.name} does not know "${word}"`,
      close ? `did you mean ${close}?` : `it knows ${words.join(", ")}`,
    );
  }

  #read<T>(name: string, kind: ValueKind<T>): T | undefined {
    const text = this.text(name);
    if (text === undefined) return undefined;
    const value = kind.read(text);
    if (value !== undefined) return value;
    throw usage(
      `--${name} ${text} is not ${kind.what}`,
      `--${name} ${kind.example}`,
    );
  }
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

function checkValues({ name, value, many }: Flag, found: unknown): string[] {
  const values = Array.isArray(found) ? found.map(String) : [];
  if (values.includes("")) {
    throw usage(`--${name} needs a value`, `--${name} ${value}`);
  }
  if (values.length > 1 && !many) {
    throw usage(`--${name} is given ${values.length} times`, "give it once");
  }
  return values;
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
