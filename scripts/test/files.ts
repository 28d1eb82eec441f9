/**
 * The files of tests, and what can be known of them without running them.
 *
 * @module
 */
import { dirname, join } from "@std/path";
import { ROOT } from "../deno.ts";

const IMPORT = /\b(?:from|import)\s*\(?\s*"(\.[^"]+)"/g;
/** What starts processes, or helps to. */
const PROCESSES = /system\/process\.ts|support\/parts\.ts|scripts\/|"#!\//;

/**
 * Lists files of tests.
 *
 * Needs `--allow-read`.
 *
 * @param paths Files and directories in the project.
 * @param ignored Directories to leave out.
 * @returns Paths in the project, sorted.
 */
export function testFiles(paths: string[], ignored: string[] = []): string[] {
  const files = paths.flatMap((path) => {
    if (!Deno.statSync(join(ROOT, path)).isDirectory) return [path];
    const entries = Array.from(Deno.readDirSync(join(ROOT, path)));
    return testFiles(
      entries
        .filter(({ name, isDirectory }) =>
          isDirectory || name.endsWith("_test.ts")
        )
        .map(({ name }) => join(path, name))
        .filter((path) => !ignored.includes(path)),
      ignored,
    );
  });
  return [...new Set(files)].sort();
}

/** Tells whether a file of tests boots guests. */
export function bootsGuest(file: string): boolean {
  return sources(file).has("tests/support/guest.ts");
}

/** Tells whether a file of tests starts processes. */
export function startsProcesses(file: string): boolean {
  return [...sources(file).values()].some((text) => PROCESSES.test(text));
}

const known = new Map<string, Map<string, string>>();

/** A file, and what it imports of `tests/`, with the text of each. */
function sources(file: string): Map<string, string> {
  const done = known.get(file);
  if (done) return done;
  const texts = new Map<string, string>();
  known.set(file, texts);
  const read = (path: string) => {
    if (texts.has(path) || !path.startsWith("tests/")) return;
    const text = textOf(join(ROOT, path));
    texts.set(path, text);
    for (const [, specifier] of text.matchAll(IMPORT)) {
      read(join(dirname(path), specifier));
    }
  };
  read(file);
  return texts;
}

/** What only looks like an import, in the code of a test's own, is no file. */
function textOf(path: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return "";
  }
}
