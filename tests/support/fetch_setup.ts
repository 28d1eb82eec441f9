/** Sets up a fetch of an image without a manifest or a cache. */
import { createEmitter, type ToolsmithEvent } from "../../lib/events.ts";
import type { FetchJob } from "../../lib/hydrate/_fetch_job.ts";
import type { ImageSource } from "../../lib/manifest/image_source.ts";

/** A job, and its events so far. */
export interface FetchSetup {
  job: FetchJob;
  events: ToolsmithEvent[];
  /** The fields of the events of a type. */
  eventsOfType(type: ToolsmithEvent["type"]): Record<string, unknown>[];
}

/**
 * Prepares a fetch without retries.
 *
 * @param image Source and digest of the image `demo`.
 * @param dir The directory to fill.
 * @param more Overrides.
 */
export function setUpFetch(
  image: { source: ImageSource; sha256?: string },
  dir: string,
  more: Partial<FetchJob> = {},
): FetchSetup {
  const events: ToolsmithEvent[] = [];
  return {
    events,
    eventsOfType: (type) =>
      events.filter((event) => event.type === type).map((event) => {
        const { timestamp: _, type: _type, ...fields } = { ...event };
        return fields;
      }),
    job: {
      ...{ image: { name: "demo", ...image }, dir },
      ...{ retries: 0, retryDelayMs: 1, arch: "x86_64", connections: 1 },
      emit: createEmitter((event) => events.push(event)),
      ...more,
    },
  };
}
