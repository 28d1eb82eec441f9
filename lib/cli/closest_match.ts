/** Finds the known word that a misspelled one was meant to be. */

/**
 * Returns the candidate that starts with the word, or has the smallest edit
 * distance; `undefined` if none is close.
 */
export function closestMatch(
  word: string,
  candidates: readonly string[],
): string | undefined {
  const ranked = candidates
    .map((name) => ({
      name,
      far: word.length > 1 && name.startsWith(word)
        ? 0
        : editDistance(word, name),
    }))
    .sort((a, b) => a.far - b.far);
  const [best] = ranked;
  return best && best.far <= Math.max(1, best.name.length / 3)
    ? best.name
    : undefined;
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
