/**
 * What brings an image from somewhere, without a manifest or a cache around it.
 *
 * @module
 */
import { emitter, type ToolsmithEvent } from "../../lib/events.ts";
import type { FetchContext } from "../../lib/hydrate/_context.ts";
import type { ImageSource } from "../../lib/manifest/source.ts";

/** A context, and what has been reported so far. */
export interface Fetching {
  context: FetchContext;
  events: ToolsmithEvent[];
  /** The fields of the events of a type. */
  told(type: ToolsmithEvent["type"]): Record<string, unknown>[];
}

/**
 * Makes the context of a fetch that is tried once.
 *
 * @param image Source and digest of an image that is called `demo`.
 * @param dir The directory to fill.
 * @param more What differs from the usual.
 */
export function fetching(
  image: { source: ImageSource; sha256: string },
  dir: string,
  more: Partial<FetchContext> = {},
): Fetching {
  const events: ToolsmithEvent[] = [];
  return {
    events,
    told: (type) =>
      events.filter((event) => event.type === type).map((event) => {
        const { timestamp: _, type: _type, ...fields } = { ...event };
        return fields;
      }),
    context: {
      image: { name: "demo", ...image },
      dir,
      emit: emitter((event) => events.push(event)),
      registry: {},
      retries: { retries: 0, retryDelayMs: 1 },
      arch: "x86_64",
      connections: 1,
      pinned: true,
      ...more,
    },
  };
}
