/**
 * Flags as lines of help: the parser, `--help`, shell completion and the types of flag
 * values all derive from them.
 */
import { LIST_PARSERS, VALUE_PARSERS } from "./flag_values.ts";

export interface Flag<Value = unknown> {
  /** Without dashes. */
  name: string;
  /**
   * The value's name in the help, which also selects its parser and its completion;
   * absent for a switch. `a|b` lists the only possible values.
   */
  placeholder?: string;
  /** The help's heading that the flag is listed below. */
  heading: string;
  /** One line for `--help`. */
  help: string;
  isRepeatable: boolean;
  /** Parses the given values, or throws `usage`; a switch has none. */
  parse(values: string[]): Value;
}

/** Flags by the name of the option that the command receives. */
export type Flags = Record<string, Flag>;

/** The values of the flags that are given. */
export type FlagValues<F extends Flags> = {
  [Key in keyof F]?: ReturnType<F[Key]["parse"]>;
};

/** `--name  help` of a switch, or `--name PLACEHOLDER  help`. */
type HelpLine = `--${string}  ${string}`;

type ValueOf<Line> = Line extends `--${infer Usage}  ${string}`
  ? Usage extends `${string} ${infer Placeholder}` ? ParsedValue<Placeholder>
  : boolean
  : never;

type ParsedValue<Placeholder> = Placeholder extends keyof typeof VALUE_PARSERS
  ? NonNullable<ReturnType<typeof VALUE_PARSERS[Placeholder]>>
  : Placeholder extends keyof typeof LIST_PARSERS
    ? ReturnType<typeof LIST_PARSERS[Placeholder]>
  : string;

/**
 * Defines flags by their lines in the help. A switch is `true` if it is given, one named
 * `no-…` is `false`.
 */
export function defineFlags<const Lines extends Record<string, HelpLine>>(
  heading: string,
  lines: Lines,
) {
  const flags = Object.entries(lines)
    .map(([key, line]) => [key, parseHelpLine(heading, line)]);
  return Object.fromEntries(flags) as {
    [Key in keyof Lines]: Flag<ValueOf<Lines[Key]>>;
  };
}

function parseHelpLine(heading: string, line: HelpLine): Flag {
  const [, name, placeholder, help] = /^--(\S+)(?: (\S+))? {2}(.*)$/.exec(
    line,
  )!;
  const isRepeatable = placeholder !== undefined && placeholder in LIST_PARSERS;
  const parse = findParser(name, placeholder);
  return { name, placeholder, heading, help, isRepeatable, parse };
}

function findParser(name: string, placeholder?: string): Flag["parse"] {
  if (placeholder === undefined) return () => !name.startsWith("no-");
  const { [placeholder]: parseAll }: Parsers<string[]> = LIST_PARSERS;
  if (parseAll) return (values) => parseAll(values, name);
  const { [placeholder]: parse }: Parsers<string> = VALUE_PARSERS;
  return ([value]) => parse ? parse(value, name) : value;
}

type Parsers<Given> = Record<
  string,
  ((given: Given, name: string) => unknown) | undefined
>;
