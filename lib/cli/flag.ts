/**
 * Flags as lines of help: the parser, `--help`, shell completion and the types of flag
 * values all derive from them.
 */
import type { LIST_PARSERS, VALUE_PARSERS } from "./flag_values.ts";

/** `--name  help` of a switch, or `--name PLACEHOLDER  help`. */
type HelpLine = `--${string}  ${string}`;

export interface Flag<Line extends HelpLine = HelpLine> {
  line: Line;
  /** The help's heading that the flag is listed below. */
  heading: string;
  /** Without dashes. */
  name: string;
  /**
   * The value's name in the help, which also selects its parser and its completion;
   * absent for a switch. `a|b` lists possible values; `FILE` and `DIR` stand for paths.
   */
  placeholder?: string;
  help: string;
}

/** Flags by the name of the option that the command receives. */
export type Flags = Record<string, Flag>;

/**
 * The values of the flags that are given. A switch is `true`, one named `no-…` is
 * `false`.
 */
export type FlagValues<F extends Flags> = {
  [Key in keyof F]?: ValueOf<F[Key]["line"]>;
};

type ValueOf<Line> = HelpLine extends Line ? unknown
  : Line extends `--${string} ${infer Placeholder}  ${string}`
    ? ParsedValue<Placeholder>
  : boolean;

type ParsedValue<Placeholder> = Placeholder extends keyof typeof VALUE_PARSERS
  ? NonNullable<ReturnType<typeof VALUE_PARSERS[Placeholder]>>
  : Placeholder extends keyof typeof LIST_PARSERS
    ? ReturnType<typeof LIST_PARSERS[Placeholder]>
  : string;

/** Defines flags by their lines in the help. */
export function defineFlags<const Lines extends Record<string, HelpLine>>(
  heading: string,
  lines: Lines,
) {
  const pattern = /^--(\S+)(?: (\S+))? {2}(.*)$/;
  const flags = Object.entries(lines).map(([key, line]) => {
    const [, name, placeholder, help] = pattern.exec(line)!;
    return [key, { line, heading, name, placeholder, help }];
  });
  return Object.fromEntries(flags) as {
    [Key in keyof Lines]: Flag<Lines[Key]>;
  };
}
