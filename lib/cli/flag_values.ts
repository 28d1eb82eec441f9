/** Parsers of flag values, by the placeholder that stands for the value in the help. */
import {
  CONNECTIONS_RANGE_TEXT,
  parseConnectionCount,
} from "../oci/registry_options.ts";
import { parseExtraFile } from "../publish/artifact_files.ts";
import { parseAccelerator, parseArch } from "../vm/boot_options.ts";
import { parseExport } from "../vm/shares.ts";
import { parseChoice, usageError } from "./usage_error.ts";

/** Parsers by placeholder; they throw `usage`. */
export type Parsers<Given> = Record<
  string,
  ((given: Given, name: string) => unknown) | undefined
>;

/** A flag whose placeholder is not listed takes any text. */
export const VALUE_PARSERS = {
  N: createValueParser(
    "a whole number up to 999999",
    "5",
    (text) => /^\d{1,6}$/.test(text) ? Number(text) : undefined,
  ),
  "1-99": createValueParser(CONNECTIONS_RANGE_TEXT, "4", parseConnectionCount),
  /** In milliseconds. */
  SECONDS: createValueParser(
    "a number of seconds above zero",
    "5",
    (text) =>
      /^(?=.*[1-9])\d{1,7}(\.\d+)?$/.test(text)
        ? Number(text) * 1000
        : undefined,
  ),
  /** In milliseconds. */
  AGE: createValueParser("an age", "30d", (text) => {
    const [, count, unit] = /^(\d{1,6})([smhd])$/.exec(text) ?? [];
    return count ? Number(count) * AGE_UNIT_MS[unit] : undefined;
  }),
  /** In MiB. */
  SIZE: createValueParser("a size", "512M", (text) => {
    const [, digits, unit] = /^([1-9]\d{0,6})([MG]?)$/i.exec(text) ?? [];
    return digits ? Number(digits) * (/g/i.test(unit) ? 1024 : 1) : undefined;
  }),
  /** ISO 8601, or seconds since 1970. */
  TIME: createValueParser("a time", "2026-01-31T12:00:00Z", (text) => {
    const seconds = /^\d{1,11}$/.test(text);
    const time = new Date(seconds ? Number(text) * 1000 : text);
    return isNaN(time.getTime()) ? undefined : time;
  }),
  ARCH: parseArch,
  "amd64|arm64": parseArch,
  "kvm|hvf|tcg": (text: string) => parseAccelerator(text, "--accel "),
  "vm|host": (text: string, name: string) =>
    parseChoice(["vm", "host"], text, `--${name}`),
  "manifest|pull": (text: string, name: string) =>
    parseChoice(["manifest", "pull"], text, `--${name}`),
};

/** Of flags that may be repeated. */
export const LIST_PARSERS = {
  "DIR[:TAG]": (texts: string[]) => texts.map(parseExport),
  "HOST[:PORT]": (texts: string[]) => texts.flatMap((text) => text.split(",")),
  "PATH:TYPE": (texts: string[]) => texts.map(parseExtraFile),
  "KEY=VALUE": parseKeyValues,
  "NAME=VALUE": parseKeyValues,
};

const AGE_UNIT_MS: Record<string, number> = {
  s: 1000,
  m: 60_000,
  h: 3_600_000,
  d: 86_400_000,
};

/**
 * Creates a parser that throws `usage` where `read` returns `undefined`; the error
 * describes a valid value (`what`) and gives an example.
 */
function createValueParser<T>(
  what: string,
  example: string,
  read: (text: string) => T | undefined,
): (text: string, name: string) => T {
  return (text, name) => {
    const value = read(text);
    if (value !== undefined) return value;
    throw usageError(
      `--${name} ${text} is not ${what}`,
      `write --${name} ${example}, for example`,
    );
  };
}

function parseKeyValues(
  texts: string[],
  name: string,
): Record<string, string> {
  const pairs = texts.map((text) => {
    const [, key, value] = /^([^=\s]+)=(.*)$/s.exec(text) ?? [];
    if (key !== undefined) return [key, value];
    throw usageError(
      `--${name} ${text} is not KEY=VALUE`,
      `write --${name} a=b, for example`,
    );
  });
  return Object.fromEntries(pairs);
}
