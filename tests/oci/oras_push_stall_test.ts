import { assertEquals } from "@std/assert";
import { orasClient } from "../../lib/oci/oras_client.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { fakeOras, shell } from "../support/fake_oras.ts";
import { replaceMethod } from "../support/replace_method.ts";
import { installManualClock } from "../support/timers.ts";

const IMAGE = parseReference("localhost:5000/owner/vm:1");
const STEP_BYTES = 64 * 1024;

/**
 * Starts a push that never ends, with a stall timeout of two seconds.
 *
 * @param read Returns oras's read count at a time; `undefined` if unknown.
 * @param times When the progress is measured, in milliseconds.
 * @returns When the push was aborted, in milliseconds.
 */
async function stallTimeOfPush(
  read: (ms: number) => number | undefined,
  times: number[],
): Promise<number | undefined> {
  await using fake = await fakeOras("exec sleep 60");
  const { readTextFile } = Deno;
  const { abort } = AbortController.prototype;
  let ended: number | undefined;
  using undo = new DisposableStack();
  const clock = undo.use(installManualClock());
  undo.use(replaceMethod(Deno, {
    readTextFile(path: string) {
      if (!path.startsWith("/proc/")) return readTextFile(path);
      const bytes = read(clock.time);
      return bytes === undefined
        ? Promise.reject(new Deno.errors.NotFound())
        : Promise.resolve(`wchar: 7\nrchar: ${bytes}\nsyscr: 9\n`);
    },
  }));
  undo.use(replaceMethod(AbortController.prototype, {
    abort(this: AbortController, reason: unknown) {
      if ((reason as { code?: string })?.code === "transfer_stalled") {
        ended ??= clock.time;
      }
      abort.call(this, reason);
    },
  }));
  const pushing = orasClient({ env: fake.env, stallTimeoutMs: 2000 }).push(
    IMAGE,
    {
      files: [{ path: "x", mediaType: "a/b" }],
      cwd: fake.dir,
      artifactType: "c/d",
      annotations: {},
      totalBytes: 160_000,
    },
  );
  const failed = expectFailure("transfer_stalled", () => pushing);
  // Wait until oras has started.
  while (clock.count() < 2) await clock.pass(0);
  for (const time of [...times, 1_000_000]) {
    await clock.pass(time - clock.time);
  }
  await failed;
  return ended;
}

Deno.test({
  name:
    "OrasClient.push() detects a stall from oras's read count and ignores small reads",
  ...shell,
  async fn() {
    // Always two full steps.
    const still = (ms: number) =>
      2 * STEP_BYTES + (ms < 1 ? 0 : STEP_BYTES - 1);
    assertEquals(await stallTimeOfPush(still, [0, 1, 1999, 2000]), 2000);
    const moves = (ms: number) =>
      ms < 2000 ? 3 * STEP_BYTES - 1 : 3 * STEP_BYTES;
    assertEquals(await stallTimeOfPush(moves, [0, 2000, 3999, 4000]), 4000);
  },
});

Deno.test({
  name:
    "OrasClient.push() allows time in proportion to the size when oras's read count is unknown",
  ...shell,
  async fn() {
    // At 16 bytes per millisecond, 160,000 bytes take ten seconds.
    const times = [2000, 4000, 6000, 8000, 9500, 10_000, 11_999, 12_000];
    assertEquals(await stallTimeOfPush(() => undefined, times), 12_000);
  },
});
