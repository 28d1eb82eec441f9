/** Lists test files and classifies them by their imports. */
import { dirname, join } from "@std/path";
import { PROJECT_ROOT } from "../deno.ts";

const IMPORT_PATTERN = /\b(?:from|import)\s*\(?\s*"(\.[^"]+)"/g;
/** Imports and text that indicate that a test starts processes. */
const PROCESS_STARTER_PATTERN =
  /system\/process\.ts|support\/parts\.ts|scripts\/|"#!\//;

/**
 * Lists test files.
 *
 * Needs `--allow-read`.
 *
 * @param paths Files and directories in the project.
 * @param ignored Directories to skip.
 * @returns Paths in the project, sorted.
 */
export function testFiles(paths: string[], ignored: string[] = []): string[] {
  const files = paths.flatMap((path) => {
    if (!Deno.statSync(join(PROJECT_ROOT, path)).isDirectory) return [path];
    const entries = Array.from(Deno.readDirSync(join(PROJECT_ROOT, path)));
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

/** Tells whether a test file boots guests. */
export function bootsGuest(file: string): boolean {
  return sourcesOfTest(file).has("tests/support/guest.ts");
}

/** Tells whether a test file starts processes. */
export function startsProcesses(file: string): boolean {
  return [...sourcesOfTest(file).values()].some((text) =>
    PROCESS_STARTER_PATTERN.test(text)
  );
}

const sourcesByFile = new Map<string, Map<string, string>>();

/** The text of a test file and of all it imports from `tests/`. */
function sourcesOfTest(file: string): Map<string, string> {
  const done = sourcesByFile.get(file);
  if (done) return done;
  const texts = new Map<string, string>();
  sourcesByFile.set(file, texts);
  const read = (path: string) => {
    if (texts.has(path) || !path.startsWith("tests/")) return;
    const text = readCodeOf(join(PROJECT_ROOT, path));
    texts.set(path, text);
    for (const [, specifier] of text.matchAll(IMPORT_PATTERN)) {
      read(join(dirname(path), specifier));
    }
  };
  read(file);
  return texts;
}

/** Returns `""` for a missing file: an import in a test's string is not real. */
function readCodeOf(path: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return "";
  }
}
