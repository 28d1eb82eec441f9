/**
 * Sets of byte ranges (extents), ordered and not adjacent: which bytes of a
 * partial download are present.
 */

/** A byte range; `to` is exclusive. */
export type Extent = readonly [from: number, to: number];

export function addExtent(set: readonly Extent[], added: Extent): Extent[] {
  let [from, to] = added;
  if (from >= to) return [...set];
  const before: Extent[] = [];
  const after: Extent[] = [];
  for (const extent of set) {
    if (extent[1] < from) before.push(extent);
    else if (extent[0] > to) after.push(extent);
    else {
      from = Math.min(from, extent[0]);
      to = Math.max(to, extent[1]);
    }
  }
  return [...before, [from, to], ...after];
}

/** Returns the byte ranges within `within` that the set lacks. */
export function findGaps(set: readonly Extent[], within: Extent): Extent[] {
  const gaps: Extent[] = [];
  let [at] = within;
  for (const [from, to] of set) {
    if (from >= within[1]) break;
    if (from > at) gaps.push([at, from]);
    at = Math.max(at, to);
  }
  if (at < within[1]) gaps.push([at, within[1]]);
  return gaps;
}

export function countExtentBytes(set: readonly Extent[]): number {
  return set.reduce((sum, [from, to]) => sum + to - from, 0);
}

/** Validates a set from parsed JSON for a file of `size` bytes. */
export function parseExtents(
  value: unknown,
  size: number,
): Extent[] | undefined {
  if (!Array.isArray(value)) return undefined;
  let end = -1;
  for (const extent of value) {
    if (!Array.isArray(extent) || extent.length !== 2) return undefined;
    const [from, to] = extent;
    const fits = Number.isSafeInteger(from) && Number.isSafeInteger(to) &&
      from > end && to > from && to <= size;
    if (!fits) return undefined;
    end = to;
  }
  return value;
}
