import { assert, assertEquals } from "@std/assert";
import {
  bytesReadBy,
  directoryBytes,
  watchGrowth,
} from "../../lib/oci/_stall_watch.ts";
import { temporaryDir } from "../support/directory.ts";
import { replace } from "../support/replace.ts";

const NEVER_MS = 600_000;

/** A watch whose clock and looks are the test's. */
function watched(options: { stallMs: number; maxBytes?: number }) {
  const state = { time: 7000, bytes: 0, every: 0, ended: false };
  const counts: number[] = [];
  let tick = () => {};
  const undo = new DisposableStack();
  undo.use(replace(performance, { now: () => state.time }));
  undo.use(replace(globalThis, {
    setInterval(work: () => void, ms: number) {
      tick = work;
      state.every = ms;
    },
    clearInterval: () => state.ended = true,
  }));
  const growth = watchGrowth(() => Promise.resolve(state.bytes), {
    what: "pull x",
    ...options,
    onBytes: (bytes) => counts.push(bytes),
  });
  return {
    growth,
    state,
    counts,
    /** Looks by itself, some time later, and says how it ended, if it did. */
    async later(ms: number): Promise<string | undefined> {
      state.time += ms;
      tick();
      // Its look takes some turns.
      for (let turn = 0; turn < 9; turn++) await Promise.resolve();
      return growth.signal.reason?.message;
    },
    [Symbol.dispose]: () => undo.dispose(),
  };
}

Deno.test("it is a stall when nothing has come for longer than allowed, not before", async () => {
  using watch = watched({ stallMs: 2000 });
  const { growth, state, counts, later } = watch;
  assertEquals(state.every, 200);
  assertEquals(await later(2000), undefined);
  state.bytes = 5;
  assertEquals(await later(1), undefined);
  // Slow growth is none, whatever it takes as a whole, and shrinking is growth.
  for (state.bytes of [6, 3, 4]) assertEquals(await later(1999), undefined);
  assertEquals(await later(2000), undefined);
  assertEquals(counts, [5, 6, 3, 4]);
  assertEquals(
    await later(1),
    "Cannot pull x: nothing moved for 2 s",
  );
  assertEquals(growth.signal.reason.code, "transfer_stalled");
  assert(growth.signal.reason.hint.includes("--stall-timeout SECONDS"));
  await growth[Symbol.asyncDispose]();
  assert(state.ended);
});

Deno.test("the most that may come may come, and a byte more ends it", async () => {
  using watch = watched({ stallMs: 2000, maxBytes: 10 });
  const { growth, state, counts, later } = watch;
  state.bytes = 10;
  assertEquals(await later(1), undefined);
  state.bytes = 11;
  assertEquals(
    await later(1),
    "Cannot pull x: 11 bytes were written, and its manifest has 10",
  );
  assertEquals(growth.signal.reason.code, "artifact_unsafe");
  assertEquals(counts, [10]);
  await growth[Symbol.asyncDispose]();
});

Deno.test("who ends a watch waits for the look that is under way", async () => {
  using watch = watched({ stallMs: 2000 });
  const looked = Promise.withResolvers<void>();
  const slow = watchGrowth(async () => {
    await looked.promise;
    return 1;
  }, { what: "pull x", stallMs: 2000 });
  await watch.later(0);
  let ended = false;
  const ending = slow[Symbol.asyncDispose]().then(() => ended = true);
  await watch.later(0);
  assertEquals(ended, false);
  looked.resolve();
  await ending;
});

Deno.test("all files of a directory count, and what is not there as nothing", async () => {
  await using dir = await temporaryDir();
  assertEquals(await directoryBytes(`${dir.path}/none`), 0);
  await Deno.mkdir(`${dir.path}/a/b`, { recursive: true });
  await Deno.writeTextFile(`${dir.path}/a/b/c`, "12345");
  await Deno.writeTextFile(`${dir.path}/d`, "123");
  assertEquals(await directoryBytes(dir.path), 8);
});

Deno.test({
  name: "what a process reads is counted, where the system says",
  ignore: Deno.build.os !== "linux",
  async fn() {
    const before = (await bytesReadBy(Deno.pid))!;
    await Deno.readFile(new URL(import.meta.url));
    assert((await bytesReadBy(Deno.pid))! > before);
    assertEquals(await bytesReadBy(0), undefined);
  },
});

Deno.test("bytes are counted as they come, in sub-directories too", async () => {
  await using dir = await temporaryDir();
  const target = `${dir.path}/target`;
  const counts: number[] = [];
  let reached = (_bytes: number) => {};
  const until = (bytes: number) =>
    new Promise<void>((done) => reached = (now) => now === bytes && done());
  {
    await using growth = watchGrowth(
      () => directoryBytes(target),
      {
        what: "pull",
        stallMs: NEVER_MS,
        onBytes(bytes) {
          counts.push(bytes);
          reached(bytes);
        },
      },
    );
    const some = until(7);
    await Deno.mkdir(`${target}/dist`, { recursive: true });
    await Deno.writeTextFile(`${target}/dist/a`, "1234567");
    await some;
    const more = until(10);
    await Deno.writeTextFile(`${target}/b`, "123");
    await more;
    assert(!growth.signal.aborted);
  }
  assertEquals(counts, [...new Set(counts)]);
});

Deno.test("a directory that does not grow is reported as stalled", async () => {
  await using dir = await temporaryDir();
  await Deno.writeTextFile(`${dir.path}/a`, "partial");
  for (const path of [dir.path, `${dir.path}/none`]) {
    const begun = performance.now();
    await using growth = watchGrowth(() => directoryBytes(path), {
      what: "pull x",
      stallMs: 250,
    });
    await new Promise((done) =>
      growth.signal.addEventListener("abort", done, { once: true })
    );
    assert(performance.now() - begun >= 250);
    const { code, message } = growth.signal.reason;
    assertEquals(code, "transfer_stalled");
    assertEquals(message, "Cannot pull x: nothing moved for 0.25 s");
  }
});

Deno.test("a directory that grows beyond its limit is reported while it grows", async () => {
  await using dir = await temporaryDir();
  const counts: number[] = [];
  await using growth = watchGrowth(() => directoryBytes(dir.path), {
    what: "pull x",
    stallMs: NEVER_MS,
    maxBytes: 10,
    onBytes: (bytes) => counts.push(bytes),
  });
  await Deno.writeTextFile(`${dir.path}/a`, "0123456789");
  await growth.look();
  assert(!growth.signal.aborted);
  await Deno.writeTextFile(`${dir.path}/b`, "x");
  await new Promise((done) =>
    growth.signal.addEventListener("abort", done, { once: true })
  );
  assertEquals(growth.signal.reason.code, "artifact_unsafe");
  assertEquals(counts, [10]);
});
