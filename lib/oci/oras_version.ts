/**
 * The versions of oras that Toolsmith supports. The setup scripts use this module
 * before imports can be resolved, so it must not import anything.
 */

/** The oldest supported version. */
export const MIN_ORAS_VERSION = "1.3.0";

/** Older versions have a path traversal vulnerability (GHSA-8xwf-rjm4-xvhv). */
export const MIN_SAFE_ORAS_VERSION = "1.3.3";

/**
 * Returns whether `version` is older than `than`, or is not a version. Compares by
 * precedence (Semantic Versioning 2.0.0, section 11): a pre-release is older than its
 * release, and build metadata is ignored. Does not order the pre-releases of one
 * version.
 */
export function isOlderVersion(version: string, than: string): boolean {
  const [found, wanted] = [version, than].map((text) =>
    /^v?(\d+)\.(\d+)\.(\d+)(-)?/.exec(text)
  );
  if (!found || !wanted) return true;
  for (const part of [1, 2, 3]) {
    const [a, b] = [Number(found[part]), Number(wanted[part])];
    if (a !== b) return a < b;
  }
  return found[4] !== undefined && wanted[4] === undefined;
}
