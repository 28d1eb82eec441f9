/**
 * Creates mutants: small changes to TypeScript that tests should detect. It works on
 * text: strings, comments and types are blanked first, and each rule is a pattern.
 */

/** One change. */
export interface Mutant {
  /** The line that is changed, counted from 1. */
  line: number;
  /** The original code. */
  before: string;
  /** The changed code. */
  after: string;
  /** The whole changed file. */
  text: string;
}

/** Pattern and replacement; patterns see blanks instead of strings and comments. */
const MUTATION_RULES: [RegExp, (found: string) => string][] = [
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
  // `return await` is skipped: an async function awaits its result anyway.
  [/(?<!\breturn )\bawait (?!using\b)/g, () => ""],
  // Whole statements of one line.
  [/(?<=^ +)(?:await )?[\w.#]+\(.*\);$/gm, () => ";"],
  [/(?<=^ +)throw .*;$/gm, () => ";"],
];

/**
 * Returns every mutant of a file, in the order of the rules.
 *
 * @param source The file's text.
 */
export function findMutants(source: string): Mutant[] {
  const code = blankTypeDeclarations(blankNonCode(source));
  const found: Mutant[] = [];
  const add = (at: number, before: string, after: string) => {
    const line = source.slice(0, at).split("\n").length;
    const text = source.slice(0, at) + after + source.slice(at + before.length);
    found.push({ line, before: before.trim(), after: after.trim(), text });
  };
  for (const [pattern, change] of MUTATION_RULES) {
    for (const { 0: match, index } of code.matchAll(pattern)) {
      const before = source.slice(index, index + match.length);
      add(index, before, change(before));
    }
  }
  for (const { 0: word, index } of code.matchAll(/\b(?:if|while) (?=\()/g)) {
    const open = index + word.length;
    const condition = source.slice(open, closingBracketAt(code, open) + 1);
    add(open, condition, `(!${condition})`);
  }
  return found;
}

/** Returns the position of the matching closing bracket. */
function closingBracketAt(code: string, open: number): number {
  let depth = 0;
  for (let at = open; at < code.length; at++) {
    if ("([{".includes(code[at])) depth++;
    if (")]}".includes(code[at]) && --depth === 0) return at;
  }
  return code.length;
}

const COMMENT_PATTERN = /\/\/.*|\/\*[^]*?\*\//y;
const QUOTED_PATTERN = /"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'/y;
const REGEXP_PATTERN = /\/(?:[^/\\[\n]|\\.|\[(?:[^\]\\\n]|\\.)*\])+\/[a-z]*/y;

/** Blanks comments, strings, regular expressions, and the text of templates. */
function blankNonCode(source: string): string {
  let code = "";
  /** The number of open braces in each open template. */
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
    const found = take(COMMENT_PATTERN, at) ?? take(QUOTED_PATTERN, at) ??
      (operand ? take(REGEXP_PATTERN, at) : undefined);
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

/** Blanks types, imports and other declarations without runtime code. */
function blankTypeDeclarations(code: string): string {
  return code.replace(
    /^(?:export )?(?:interface [^]*?^}|(?:declare |type )[^]*?;$|import [^]*?;$|export [^{]*{[^]*?} from .*$)/gm,
    (found) => found.replace(/[^\n]/g, " "),
  );
}
