/** Errors of a wrong command line, and what the user may have meant. */
import { ToolsmithError } from "../errors.ts";

/** Returns the word if it is in the list; `who` is the subject of the error. */
export function parseChoice<const T extends string>(
  words: readonly T[],
  word: string,
  who: string,
): T {
  const found = words.find((candidate) => candidate === word);
  if (found !== undefined) return found;
  const close = closestMatch(word, words);
  throw usageError(
    `${who} does not accept "${word}"`,
    close ? `did you mean ${close}?` : `use one of: ${words.join(", ")}`,
  );
}

export function usageError(message: string, hint: string): ToolsmithError {
  return new ToolsmithError("usage", message, { hint });
}

/**
 * Returns the candidate that starts with the word, or has the smallest edit
 * distance; `undefined` if none is close.
 */
export function closestMatch(
  word: string,
  candidates: readonly string[],
): string | undefined {
  const distanceTo = (name: string) =>
    word.length > 1 && name.startsWith(word) ? 0 : editDistance(word, name);
  const [best = ""] = candidates
    .toSorted((a, b) => distanceTo(a) - distanceTo(b));
  const isClose = distanceTo(best) <= Math.max(1, best.length / 3);
  return isClose && best ? best : undefined;
}

/**
 * Damerau-Levenshtein distance: unlike `levenshteinDistance` of `@std/text`, a swap
 * of neighbours (`--jsno`) counts as one edit.
 */
function editDistance(a: string, b: string): number {
  const rows = [Array.from({ length: b.length + 1 }, (_, j) => j)];
  for (let i = 1; i <= a.length; i++) {
    const [above, row] = [rows[i - 1], [i]];
    for (let j = 1; j <= b.length; j++) {
      const changed = above[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1);
      row[j] = Math.min(changed, above[j] + 1, row[j - 1] + 1);
      // Indexes before the first letter are undefined and match nothing.
      if (a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        row[j] = Math.min(row[j], rows[i - 2][j - 2] + 1);
      }
    }
    rows.push(row);
  }
  return rows[a.length][b.length];
}
