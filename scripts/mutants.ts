/**
 * Makes small changes to TypeScript that tests ought to notice. It works on
 * text: what is no code, such as strings, comments and types, is blanked out
 * first, and each rule is a pattern.
 *
 * @module
 */

/** One change. */
export interface Mutant {
  /** The line that is changed, counted from 1. */
  line: number;
  /** What stood there. */
  before: string;
  /** What stands there instead. */
  after: string;
  /** The whole file with the change. */
  text: string;
}

/** What is replaced, and by what; patterns see blanks where no code is. */
const RULES: [RegExp, (found: string) => string][] = [
  [/ [!=]== /g, (found) => found === " === " ? " !== " : " === "],
  [
    / [<>]=? /g,
    (found) =>
      found.includes("=") ? found.replace("=", "") : ` ${found.trim()}= `,
  ],
  [/ (?:&&|\|\|) /g, (found) => found === " && " ? " || " : " && "],
  [/ [+-] /g, (found) => found === " + " ? " - " : " + "],
  [/\b(?:true|false)\b/g, (found) => found === "true" ? "false" : "true"],
  [
    /(?<![\w.#])\d[\d_]*(?![\w.])/g,
    (found) => `${Number(found.replaceAll("_", "")) + 1}`,
  ],
  // What an async function returns is awaited anyway.
  [/(?<!\breturn )\bawait (?!using\b)/g, () => ""],
  // Whole statements of one line.
  [/(?<=^ +)(?:await )?[\w.#]+\(.*\);$/gm, () => ";"],
  [/(?<=^ +)throw .*;$/gm, () => ";"],
];

/**
 * Finds every mutant of a file.
 *
 * @param source The file's text.
 * @returns The mutants, in the order of the rules.
 */
export function mutants(source: string): Mutant[] {
  const code = blankTypes(blankWords(source));
  const found: Mutant[] = [];
  const add = (at: number, before: string, after: string) => {
    const line = source.slice(0, at).split("\n").length;
    const text = source.slice(0, at) + after + source.slice(at + before.length);
    found.push({ line, before: before.trim(), after: after.trim(), text });
  };
  for (const [pattern, change] of RULES) {
    for (const { 0: match, index } of code.matchAll(pattern)) {
      const before = source.slice(index, index + match.length);
      add(index, before, change(before));
    }
  }
  for (const { 0: word, index } of code.matchAll(/\b(?:if|while) (?=\()/g)) {
    const open = index + word.length;
    const condition = source.slice(open, closing(code, open) + 1);
    add(open, condition, `(!${condition})`);
  }
  return found;
}

/** Where the bracket that opens here is closed. */
function closing(code: string, open: number): number {
  let depth = 0;
  for (let at = open; at < code.length; at++) {
    if ("([{".includes(code[at])) depth++;
    if (")]}".includes(code[at]) && --depth === 0) return at;
  }
  return code.length;
}

const COMMENT = /\/\/.*|\/\*[^]*?\*\//y;
const QUOTED = /"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'/y;
const REGEXP = /\/(?:[^/\\[\n]|\\.|\[(?:[^\]\\\n]|\\.)*\])+\/[a-z]*/y;

/** Blanks comments, strings, regular expressions, and the words of templates. */
function blankWords(source: string): string {
  let code = "";
  /** For each template that is open, how many braces are open in it. */
  const templates: number[] = [];
  const blank = (text: string) => text.replace(/[^\n]/g, " ");
  const take = (pattern: RegExp, at: number) => {
    pattern.lastIndex = at;
    return pattern.exec(source)?.[0];
  };
  let words = false;
  for (let at = 0; at < source.length;) {
    const char = source[at];
    if (words) {
      const next = char === "\\" ? source.slice(at, at + 2) : char;
      if (char === "`") templates.pop();
      words = char !== "`" && !source.startsWith("${", at);
      code += words || char === "`" ? blank(next) : "(";
      at += next.length;
      continue;
    }
    const operand = /(?:^|[(,=:[!&|?{};+>]|\breturn)\s*$/.test(code.slice(-40));
    const found = take(COMMENT, at) ?? take(QUOTED, at) ??
      (operand ? take(REGEXP, at) : undefined);
    if (found) {
      code += found.startsWith("/") || found.length < 2
        ? blank(found)
        : `"${blank(found.slice(2))}"`;
      at += found.length;
      continue;
    }
    if (char === "`") templates.push(0), words = true;
    const open = templates.length - 1;
    if (char === "{" && open >= 0) templates[open]++;
    if (char === "}" && open >= 0 && --templates[open] === 0) words = true;
    code += char === "`" ? " " : words ? ")" : char;
    at++;
  }
  return code;
}

/** Blanks declarations that leave nothing to run. */
function blankTypes(code: string): string {
  return code.replace(
    /^(?:export )?(?:interface [^]*?^}|(?:declare |type )[^]*?;$|import [^]*?;$|export [^{]*{[^]*?} from .*$)/gm,
    (found) => found.replace(/[^\n]/g, " "),
  );
}
