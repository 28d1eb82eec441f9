/**
 * Which versions of oras will do. The set-up scripts use it before imports can
 * be resolved, so it imports nothing.
 *
 * @module
 */

/** The oldest version of oras that Toolsmith is written for. */
export const MIN_ORAS_VERSION = "1.3.0";

/** Older ones can be made to write outside of their directory (GHSA-8xwf-rjm4-xvhv). */
export const SAFE_ORAS_VERSION = "1.3.3";

/**
 * Compares two versions by precedence (Semantic Versioning 2.0.0, section 11):
 * a pre-release comes before its release, and build metadata does not count.
 * Among pre-releases of one version no order is made.
 *
 * @param version The version.
 * @param than The release that it is compared with.
 * @returns Whether it is older. What is no version is older than any.
 */
export function isOlder(version: string, than: string): boolean {
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
