/**
 * What may come next on a command line, from the table of commands: shells ask
 * for it when a person presses Tab.
 *
 * @module
 */
import { type CommandSpec, COMMON, type Flag } from "./spec.ts";

/** What may come next. */
export interface Candidates {
  /** Names of files or of directories, which the shell completes, or `words`. */
  kind: "words" | "file" | "directory";
  /** The words that begin as the last one does. */
  words: Candidate[];
}

/** A word, and what it means where that is known. */
export type Candidate = [word: string, help?: string];

/** What {@linkcode candidates} looks words up in. */
export interface Known {
  /** The table of commands. */
  commands: CommandSpec[];
  /** Names of the manifest's tools, and their paths in the guest. */
  tools: Record<string, string>;
  /** References that the manifest names. */
  references: string[];
}

/** Words for values of a kind, by what stands for the value in the help. */
const EXAMPLES: Record<string, string[]> = {
  SIZE: ["512M", "1G", "2G", "4G"],
  AGE: ["12h", "7d", "30d"],
};
const FILES = /^(FILE|PATH|PATH:TYPE)$/;
const DIRECTORIES = /^DIR\b/;
const WHOLE: Candidate[] = [["--help"], ["--version"]];
const HELP: Candidate = ["help", "explain a command"];

/**
 * Says what may come next.
 *
 * @param args The words of the command line behind the program's name; the last
 * one is unfinished, or empty.
 * @param known What words are looked up in.
 * @returns What may stand in its place.
 */
export function candidates(args: string[], known: Known): Candidates {
  const current = args.at(-1) ?? "";
  const [name, ...given] = args.slice(0, -1);
  const { kind, words } = name === undefined || name === "help"
    ? asWords(programWords(known.commands, name))
    : next(known.commands.find((it) => it.name === name), {
      given,
      current,
      known,
    });
  return { kind, words: words.filter(([word]) => word.startsWith(current)) };
}

function programWords(commands: CommandSpec[], name?: string): Candidate[] {
  const names = commands.map(({ name, summary }): Candidate => [name, summary]);
  return name === "help" ? names : [...names, HELP, ...WHOLE];
}

function asWords(words: Candidate[]): Candidates {
  return { kind: "words", words };
}

function next(
  command: CommandSpec | undefined,
  { given, current, known }: {
    given: string[];
    current: string;
    known: Known;
  },
): Candidates {
  if (!command) return asWords([]);
  const flags = [...command.flags, ...COMMON];
  const { pending, own, count, seen } = read(given, command);
  if (pending) return values(pending.value!, known);
  const [, named] = /^--([^=]+)=/.exec(current) ?? [];
  const flag = flags.find(({ name, value }) => value && name === named);
  if (!own && flag) {
    const found = values(flag.value!, known);
    const words = found.words
      .map(([word, help]): Candidate => [`--${named}=${word}`, help]);
    return { kind: found.kind, words };
  }
  // What follows dashes, or the first word, is not for the parser to count.
  const full = count >= command.positionals[1] && command.rest !== "words";
  const expected = own || !full ? command.takes : undefined;
  if (!own && (current.startsWith("-") || !expected)) {
    return asWords(
      flags.filter((flag) => flag.many || !seen.includes(flag.name))
        .map(({ name, help }): Candidate => [`--${name}`, help]),
    );
  }
  if (!expected) return asWords([]);
  return values(expected[Math.min(count, expected.length - 1)], known);
}

/** What stands before the unfinished word. */
function read(given: string[], command: CommandSpec) {
  let pending: Flag | undefined;
  let own = false;
  let count = 0;
  const seen: string[] = [];
  for (const word of given) {
    if (pending) pending = undefined;
    else if (own) count++;
    else if (word === "--") own = true;
    else if (word.startsWith("-")) {
      const [name, ...value] = word.replace(/^--/, "").split("=");
      seen.push(name);
      const flag = command.flags.find((flag) => flag.name === name);
      if (flag?.value && value.length === 0) pending = flag;
    } else {
      count++;
      own = command.rest === "words";
    }
  }
  return { pending, own, count, seen };
}

/** What completes a value, by what stands for it in the help. */
function values(value: string, { tools, references }: Known): Candidates {
  if (FILES.test(value)) return { kind: "file", words: [] };
  if (DIRECTORIES.test(value)) return { kind: "directory", words: [] };
  if (value === "REF") return asWords(references.map((word) => [word]));
  if (value === "TOOL") return asWords(Object.entries(tools));
  const words = value.includes("|") ? value.split("|") : EXAMPLES[value] ?? [];
  return asWords(words.map((word) => [word]));
}
