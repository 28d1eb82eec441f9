/**
 * Chooses the creation time in a manifest, so that the same bytes give the same
 * manifest.
 */
import type { Environment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";

export const CREATED_ANNOTATION = "org.opencontainers.image.created";

/**
 * Returns the given time, else `SOURCE_DATE_EPOCH` in seconds
 * (https://reproducible-builds.org/specs/source-date-epoch/), else the file's
 * modification time, as RFC 3339.
 */
export function creationTime(
  env: Environment,
  times: { given: Date | undefined; modified: Date | null },
): string {
  const time = times.given ?? parseSourceDateEpoch(env) ?? times.modified ??
    new Date(0);
  return time.toISOString().replace(/\.\d+Z$/, "Z");
}

function parseSourceDateEpoch(env: Environment): Date | undefined {
  const epoch = env.get("SOURCE_DATE_EPOCH");
  if (!epoch) return undefined;
  const time = new Date(Number(epoch) * 1000);
  if (/^\d+$/.test(epoch) && !isNaN(time.getTime())) return time;
  throw new ToolsmithError(
    "usage",
    `Cannot use SOURCE_DATE_EPOCH=${epoch}: expected seconds since 1970`,
    {
      hint:
        "set SOURCE_DATE_EPOCH to the seconds that `git log -1 --format=%ct` prints",
    },
  );
}
