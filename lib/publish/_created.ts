/**
 * The time that a manifest records as its creation: the same bytes are to give
 * the same manifest.
 *
 * @module
 */
import type { Environment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";

/** The annotation that holds the time. */
export const CREATED = "org.opencontainers.image.created";

/**
 * The time to record.
 *
 * @param env Read for `SOURCE_DATE_EPOCH`, in seconds
 * (https://reproducible-builds.org/specs/source-date-epoch/).
 * @param times What the caller gives, and when the file was last written.
 * @returns The time, as the annotation has it (RFC 3339).
 * @throws {ToolsmithError} `usage` when `SOURCE_DATE_EPOCH` is no such count.
 */
export function createdTime(
  env: Environment,
  times: { given: Date | undefined; modified: Date | null },
): string {
  const time = times.given ?? sourceDate(env) ?? times.modified ?? new Date(0);
  return time.toISOString().replace(/\.\d+Z$/, "Z");
}

function sourceDate(env: Environment): Date | undefined {
  const epoch = env.get("SOURCE_DATE_EPOCH");
  if (!epoch) return undefined;
  const time = new Date(Number(epoch) * 1000);
  if (/^\d+$/.test(epoch) && !isNaN(time.getTime())) return time;
  throw new ToolsmithError(
    "usage",
    `Cannot use SOURCE_DATE_EPOCH=${epoch}: it is not a count of seconds`,
    { hint: "set it to seconds since 1970, such as `git log -1 --format=%ct`" },
  );
}
