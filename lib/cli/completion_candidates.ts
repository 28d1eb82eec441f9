/**
 * Completion candidates for a command line, computed from the command table:
 * the shells' completion scripts ask for them when the user presses Tab.
 */
import { LIST_PARSERS } from "./flag_values.ts";
import { splitArguments } from "./split_arguments.ts";
import type { Subcommand } from "./subcommand.ts";

/** `file` and `directory` are completed by the shell itself. */
export type CompletionCandidates = CompletionWord[] | "file" | "directory";

type CompletionWord = [word: string, help?: string];

/** Suggested values by the placeholder in the help. */
export type PlaceholderValues = { [placeholder: string]: CompletionWord[] };

const EXAMPLE_VALUES: PlaceholderValues = {
  SIZE: [["512M"], ["1G"], ["2G"], ["4G"]],
  AGE: [["12h"], ["7d"], ["30d"]],
};
const FILE_PLACEHOLDER_PATTERN = /^(FILE|PATH)\b/;
const DIRECTORY_PLACEHOLDER_PATTERN = /^DIR\b/;
const TOP_LEVEL_WORDS: CompletionWord[] = [
  ["help", "explain a command"],
  ["--help"],
  ["--version"],
];

/**
 * Completes the last of the words after the program's name, which is unfinished or
 * empty.
 */
export function completionCandidates(
  args: string[],
  commands: Subcommand[],
  manifestValues: PlaceholderValues,
): CompletionCandidates {
  const current = args.at(-1) ?? "";
  const [name, ...given] = args.slice(0, -1);
  const command = commands.find((it) => it.name === name);
  const values = { ...EXAMPLE_VALUES, ...manifestValues };
  const found = command
    ? commandCandidates(command, given, current, values)
    : topLevelCandidates(name, commands);
  return typeof found === "string"
    ? found
    : found.filter(([word]) => word.startsWith(current));
}

function topLevelCandidates(
  name: string | undefined,
  commands: Subcommand[],
): CompletionWord[] {
  if (name !== undefined && name !== "help") return [];
  const names = commands.map((it): CompletionWord => [it.name, it.summary]);
  return name === "help" ? names : [...names, ...TOP_LEVEL_WORDS];
}

function commandCandidates(
  command: Subcommand,
  given: string[],
  current: string,
  values: PlaceholderValues,
): CompletionCandidates {
  const { flags, positionals, rest } = splitArguments(command, given);
  // The value to complete follows `--name=`, or a flag that is the last word.
  const [inline] = splitArguments(command, [current]).flags;
  const before = flags.find(({ name, value }) =>
    name === given.at(-1) && value === undefined
  );
  const isInline = inline?.value !== undefined;
  const { flag: awaiting } = (isInline ? inline : before) ?? {};
  if (!rest && awaiting?.placeholder) {
    const found = valueCandidates(awaiting.placeholder, values);
    if (!isInline || typeof found === "string") return found;
    return found.map(([word]) => [`${inline.name}=${word}`]);
  }
  const { passedOn = [], passThrough } = command;
  const placeholder = rest || passThrough === "words"
    ? passedOn[rest?.length ?? 0] ?? passedOn.at(-1)
    : command.positionals?.[positionals.length];
  if (!rest && (current.startsWith("-") || !placeholder)) {
    return Object.values(command.flags)
      .filter((flag) =>
        `${flag.placeholder}` in LIST_PARSERS ||
        !flags.some((it) => it.flag === flag)
      )
      .map(({ name, help }) => [`--${name}`, help]);
  }
  return placeholder ? valueCandidates(placeholder, values) : [];
}

function valueCandidates(
  placeholder: string,
  values: PlaceholderValues,
): CompletionCandidates {
  if (FILE_PLACEHOLDER_PATTERN.test(placeholder)) return "file";
  if (DIRECTORY_PLACEHOLDER_PATTERN.test(placeholder)) return "directory";
  return placeholder.includes("|")
    ? placeholder.split("|").map((word) => [word])
    : values[placeholder] ?? [];
}
