/**
 * Suggests what a misspelled word was meant to be.
 *
 * @module
 */

/**
 * The candidate that a word begins, or is most likely a misspelling of.
 *
 * @param word What was written.
 * @param candidates What it may have been.
 * @returns The closest of them, or `undefined` where none is close.
 */
export function closest(
  word: string,
  candidates: readonly string[],
): string | undefined {
  const ranked = candidates
    .map((name) => ({
      name,
      far: word.length > 1 && name.startsWith(word) ? 0 : distance(word, name),
    }))
    .sort((a, b) => a.far - b.far);
  const [best] = ranked;
  return best && best.far <= Math.max(1, best.name.length / 3)
    ? best.name
    : undefined;
}

/**
 * How many letters to add, drop, change or swap with the next. That a swap is
 * one change (`--jsno`) is why it is not `levenshteinDistance` of `@std/text`.
 */
function distance(a: string, b: string): number {
  const rows = [Array.from({ length: b.length + 1 }, (_, j) => j)];
  for (let i = 1; i <= a.length; i++) {
    const [above, row] = [rows[i - 1], [i]];
    for (let j = 1; j <= b.length; j++) {
      const changed = above[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1);
      row[j] = Math.min(changed, above[j] + 1, row[j - 1] + 1);
      // What stands before a word's first letter equals none.
      if (a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        row[j] = Math.min(row[j], rows[i - 2][j - 2] + 1);
      }
    }
    rows.push(row);
  }
  return rows[a.length][b.length];
}
