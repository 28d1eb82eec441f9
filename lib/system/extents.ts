/**
 * Sets of byte ranges (extents), ordered and not adjacent: which bytes of a
 * partial download are present.
 */

/** A byte range; `to` is exclusive. */
export type Extent = readonly [from: number, to: number];

export function addExtent(
  set: readonly Extent[],
  [from, to]: Extent,
): Extent[] {
  if (from >= to) return [...set];
  const start = set.findLastIndex((extent) => extent[1] < from) + 1;
  let end = start;
  while (end < set.length && set[end][0] <= to) end++;
  const merged: Extent = [
    Math.min(from, set[start]?.[0] ?? from),
    Math.max(to, set[end - 1]?.[1] ?? to),
  ];
  return set.toSpliced(start, end - start, merged);
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
  let end = -1;
  const isNext = (extent: unknown): boolean => {
    if (!Array.isArray(extent) || extent.length !== 2) return false;
    const [from, to] = extent;
    const isInOrder = from > end && to > from && to <= size;
    end = to;
    return isInOrder && Number.isSafeInteger(from) && Number.isSafeInteger(to);
  };
  return Array.isArray(value) && value.every(isNext) ? value : undefined;
}
