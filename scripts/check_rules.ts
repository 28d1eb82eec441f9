/**
 * Holds the code to the rules of docs/ARCHITECTURE.md: imports in lib/ point to
 * a lower level only, one file starts processes, and only the entry point sets
 * the exit status.
 *
 *     deno run --allow-read scripts/check_rules.ts
 *
 * @module
 */
const ROOT = `${import.meta.dirname}/..`;
const IMPORT = /\b(?:from|import|import\()\s*"(\.[^"]+)"/g;

/**
 * Finds what breaks the rules.
 *
 * @param root The project.
 * @returns A line for each breach.
 */
export function breaches(root: string): string[] {
  const page = Deno.readTextFileSync(`${root}/docs/ARCHITECTURE.md`);
  const levels = new Map<string, number>();
  for (const row of page.matchAll(/^\| (\d+) +\| `([\w/]+\.ts)`/gm)) {
    levels.set(row[2], Number(row[1]));
  }
  const found: string[] = [];
  const files = sources(`${root}/lib`, "");
  for (const name of levels.keys()) {
    if (!files.includes(name)) found.push(`docs name lib/${name}: not there`);
  }
  for (const file of files) {
    const text = withoutComments(
      Deno.readTextFileSync(`${root}/lib/${file}`),
    );
    const level = levels.get(file);
    if (level === undefined) {
      found.push(`lib/${file}: has no level in docs/ARCHITECTURE.md`);
      continue;
    }
    for (const [, specifier] of text.matchAll(IMPORT)) {
      const target = resolveFrom(file, specifier);
      const below = levels.get(target);
      if (below === undefined || below >= level) {
        found.push(
          `lib/${file} (level ${level}) imports ${target} (level ${below})`,
        );
      }
    }
    if (file !== "process.ts" && text.includes("Deno.Command")) {
      found.push(`lib/${file}: names Deno.Command; use process.ts`);
    }
    if (/Deno\.exit(Code)?\b|console\./.test(text)) {
      found.push(`lib/${file}: exits or prints; that is for the entry point`);
    }
  }
  return found;
}

/** Comments hold examples, which may do what the code must not. */
function withoutComments(text: string): string {
  return text.replace(/\/\*[\s\S]*?\*\//g, "").replace(/^\s*\/\/.*$/gm, "");
}

function sources(folder: string, prefix: string): string[] {
  return [...Deno.readDirSync(folder)].flatMap(({ name, isDirectory }) =>
    isDirectory
      ? sources(`${folder}/${name}`, `${prefix}${name}/`)
      : name.endsWith(".ts")
      ? [prefix + name]
      : []
  ).sort();
}

/** `./text.ts` in `cli/render.ts` is `cli/text.ts`. */
function resolveFrom(file: string, specifier: string): string {
  return new URL(specifier, `file:///lib/${file}`).pathname
    .replace("/lib/", "");
}

if (import.meta.main) {
  const found = breaches(ROOT);
  found.forEach((line) => console.error(line));
  Deno.exitCode = found.length > 0 ? 1 : 0;
}
