import { assertEquals } from "@std/assert";
import { oras } from "../../lib/oci/oras.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { failure } from "../support/failure.ts";
import { fakeOras, shell } from "../support/fake_oras.ts";
import { replace } from "../support/replace.ts";

const IMAGE = parseReference("localhost:5000/owner/vm:1");
const BEGUN = 7000;
const FRAME = 64 * 1024;

/**
 * When a push that never ends is given up after two seconds without progress, in
 * milliseconds from its begin.
 *
 * @param read How many bytes oras has read by then; `undefined` where the system
 * does not say.
 * @param times When it is looked at.
 */
async function givenUp(
  read: (ms: number) => number | undefined,
  times: number[],
): Promise<number | undefined> {
  await using fake = await fakeOras("exec sleep 60");
  const { readTextFile } = Deno;
  const { abort } = AbortController.prototype;
  let ms = 0;
  let tick = () => {};
  let ended: number | undefined;
  using undo = new DisposableStack();
  undo.use(replace(performance, { now: () => BEGUN + ms }));
  undo.use(replace(globalThis, {
    setInterval: (work: () => void) => tick = work,
    clearInterval: () => {},
  }));
  undo.use(replace(Deno, {
    readTextFile(path: string) {
      if (!path.startsWith("/proc/")) return readTextFile(path);
      const bytes = read(ms);
      return bytes === undefined
        ? Promise.reject(new Deno.errors.NotFound())
        : Promise.resolve(`wchar: 7\nrchar: ${bytes}\nsyscr: 9\n`);
    },
  }));
  undo.use(replace(AbortController.prototype, {
    abort(this: AbortController, reason: unknown) {
      if ((reason as { code?: string })?.code === "transfer_stalled") {
        ended ??= ms;
      }
      abort.call(this, reason);
    },
  }));
  const pushing = oras({ env: fake.env, stallTimeoutMs: 2000 }).push(IMAGE, {
    files: [{ path: "x", mediaType: "a/b" }],
    cwd: fake.dir,
    artifactType: "c/d",
    annotations: {},
    bytes: 160_000,
  });
  const failed = failure("transfer_stalled", () => pushing);
  for (const time of [...times, 1_000_000]) {
    ms = time;
    tick();
    for (let turn = 0; turn < 20; turn++) await Promise.resolve();
  }
  await failed;
  return ended;
}

Deno.test({
  name:
    "a push is a stall when oras reads nothing more, but for what it reads for itself",
  ...shell,
  async fn() {
    // Two frames all the time.
    const still = (ms: number) => 2 * FRAME + (ms < 1 ? 0 : FRAME - 1);
    assertEquals(await givenUp(still, [0, 1, 2000, 2001]), 2001);
    const moves = (ms: number) => ms < 2000 ? 3 * FRAME - 1 : 3 * FRAME;
    assertEquals(await givenUp(moves, [0, 2000, 4000, 4001]), 4001);
  },
});

Deno.test({
  name: "where it cannot be seen what oras reads, a slow network gets its time",
  ...shell,
  async fn() {
    // 16 bytes a millisecond: 160,000 may take ten seconds.
    const times = [1999, 3998, 5997, 7996, 9500, 10_000, 12_000, 12_001];
    assertEquals(await givenUp(() => undefined, times), 12_001);
  },
});
