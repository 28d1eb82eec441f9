import { assert, assertEquals, assertThrows } from "@std/assert";
import { BusyError } from "../../lib/oci/_blob_source.ts";
import { patience } from "../../lib/oci/_patience.ts";
import { ToolsmithError } from "../../lib/errors.ts";
import type { Retry } from "../../lib/system/retry.ts";

const MIB = 1024 * 1024;
const cut = new ToolsmithError("transfer_interrupted", "cut");

function made(retries: number) {
  const seen: Retry[] = [];
  const state = { bytes: 0 };
  const { ready, failed } = patience({
    retries,
    retryDelayMs: 20,
    bytes: () => state.bytes,
    onRetry: (retry) => seen.push(retry),
  });
  return { ready, failed, seen, state };
}

Deno.test("what befalls all connections at the same time counts once", async () => {
  const { ready, failed, seen } = made(1);
  for (let count = 0; count < 4; count++) failed(cut);
  assertEquals(seen.map(({ attempt }) => attempt), [2]);
  await ready();
  assertThrows(() => failed(cut), ToolsmithError, "cut");
});

Deno.test("a transfer that gets on is tried as often as it takes", async () => {
  const { ready, failed, seen, state } = made(1);
  for (let count = 0; count < 5; count++) {
    failed(cut);
    await ready();
    state.bytes += MIB;
  }
  assertEquals(seen.map(({ attempt }) => attempt), [2, 2, 2, 2, 2]);
  failed(cut);
  await ready();
  state.bytes += MIB - 1;
  assertThrows(() => failed(cut), ToolsmithError);
});

Deno.test("a pause is as long as the server asks, up to five minutes", () => {
  const { failed, seen } = made(9);
  failed(new BusyError(cut, 60_000));
  assert(seen[0].delayMs >= 60_000);
  const late = new BusyError(cut, 301_000);
  assertThrows(() => made(9).failed(late), BusyError);
});

Deno.test("what does not pass is not tried again", () => {
  const { failed, seen } = made(9);
  const error = new ToolsmithError("disk_full", "full");
  assertThrows(() => failed(error), ToolsmithError, "full");
  assertEquals(seen, []);
});
