/**
 * Completion candidates for a command line, computed from the command table:
 * the shells' completion scripts ask for them when the user presses Tab.
 */
import { COMMON_FLAGS, type Subcommand } from "./subcommand.ts";
import type { Flag } from "./flag.ts";

/** `file` and `directory` are completed by the shell itself. */
export type CompletionCandidates = CompletionWord[] | "file" | "directory";

type CompletionWord = [word: string, help?: string];

interface CompletionSources {
  commands: Subcommand[];
  /** The manifest's tools: name to path in the guest. */
  tools: Record<string, string>;
  references: string[];
}

/** Suggested values by the placeholder in the help. */
const EXAMPLE_VALUES: Record<string, string[]> = {
  SIZE: ["512M", "1G", "2G", "4G"],
  AGE: ["12h", "7d", "30d"],
};
const FILE_PLACEHOLDER_PATTERN = /^(FILE|PATH|PATH:TYPE)$/;
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
  known: CompletionSources,
): CompletionCandidates {
  const current = args.at(-1) ?? "";
  const [name, ...given] = args.slice(0, -1);
  const command = known.commands.find((it) => it.name === name);
  const names = known.commands
    .map((it): CompletionWord => [it.name, it.summary]);
  const found = name === undefined
    ? [...names, ...TOP_LEVEL_WORDS]
    : name === "help"
    ? names
    : command
    ? commandCandidates(command, { given, current, known })
    : [];
  return typeof found === "string"
    ? found
    : found.filter(([word]) => word.startsWith(current));
}

function commandCandidates(
  command: Subcommand,
  { given, current, known }: {
    given: string[];
    current: string;
    known: CompletionSources;
  },
): CompletionCandidates {
  const flags: Flag[] = Object.values({ ...command.flags, ...COMMON_FLAGS });
  const { awaitingValue, isPassedOn, count, givenNames } = parseWordsBeforeLast(
    given,
    command,
    flags,
  );
  if (awaitingValue) return valueCandidates(awaitingValue.placeholder!, known);
  const [, named] = /^--([^=]+)=/.exec(current) ?? [];
  const flag = flags.find((it) => it.placeholder && it.name === named);
  if (!isPassedOn && flag) {
    const found = valueCandidates(flag.placeholder!, known);
    return typeof found === "string"
      ? found
      : found.map(([word, help]) => [`--${named}=${word}`, help]);
  }
  // The parser does not count words that are passed on after `--` or the command.
  const allGiven = count >= (command.positionalCount?.[1] ?? 0) &&
    command.passThrough !== "words";
  const expected = isPassedOn || !allGiven
    ? command.argumentPlaceholders
    : undefined;
  if (!isPassedOn && (current.startsWith("-") || !expected)) {
    return flags
      .filter((flag) => flag.repeatable || !givenNames.includes(flag.name))
      .map(({ name, help }) => [`--${name}`, help]);
  }
  if (!expected) return [];
  return valueCandidates(expected[Math.min(count, expected.length - 1)], known);
}

function parseWordsBeforeLast(
  given: string[],
  command: Subcommand,
  flags: Flag[],
) {
  let awaitingValue: Flag | undefined;
  let isPassedOn = false;
  let count = 0;
  const givenNames: string[] = [];
  for (const word of given) {
    if (awaitingValue) awaitingValue = undefined;
    else if (isPassedOn) count++;
    else if (word === "--") isPassedOn = true;
    else if (word.startsWith("-")) {
      const [name, ...value] = word.replace(/^--/, "").split("=");
      givenNames.push(name);
      const flag = flags.find((flag) => flag.name === name);
      if (flag?.placeholder && value.length === 0) awaitingValue = flag;
    } else {
      count++;
      isPassedOn = command.passThrough === "words";
    }
  }
  return { awaitingValue, isPassedOn, count, givenNames };
}

function valueCandidates(
  value: string,
  { tools, references }: CompletionSources,
): CompletionCandidates {
  if (FILE_PLACEHOLDER_PATTERN.test(value)) return "file";
  if (DIRECTORY_PLACEHOLDER_PATTERN.test(value)) return "directory";
  if (value === "TOOL") return Object.entries(tools);
  const words = value === "REF"
    ? references
    : value.includes("|")
    ? value.split("|")
    : EXAMPLE_VALUES[value] ?? [];
  return words.map((word) => [word]);
}
