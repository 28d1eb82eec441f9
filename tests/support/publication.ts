/** Runs a publication and collects its events. */
import { assertEquals } from "@std/assert";
import { type ErrorCode, ToolsmithError } from "../../lib/errors.ts";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { publish, type PublishOptions } from "../../lib/publish/publish.ts";
import { foundTools } from "./parts.ts";

if (foundTools.oras) Deno.env.set("TOOLSMITH_ORAS", foundTools.oras);

/** Publishes with short pauses, and collects the events. */
export async function attemptPublish(
  path: string,
  reference: string,
  options: PublishOptions = {},
) {
  const events: ToolsmithEvent[] = [];
  const quick = { intervalMs: 10, retryDelayMs: 10 };
  const outcome = await publish(path, reference, {
    ...quick,
    ...options,
    onEvent(event) {
      events.push(event);
      options.onEvent?.(event);
    },
  }).then((result) => ({ result }), (error) => ({ error }));
  const of = <T extends ToolsmithEvent["type"]>(type: T) =>
    events.filter((event) => event.type === type) as Extract<
      ToolsmithEvent,
      { type: T }
    >[];
  return { events, of, ...outcome } as {
    events: ToolsmithEvent[];
    of: typeof of;
    result: Awaited<ReturnType<typeof publish>>;
    error: unknown;
  };
}

/** Asserts an error with this code. */
export function assertErrorCode(
  error: unknown,
  code: ErrorCode,
): ToolsmithError {
  if (!(error instanceof ToolsmithError)) {
    throw new Error(`no ${code}`, { cause: error });
  }
  assertEquals(error.code, code, error.message);
  return error;
}
