import { assert, assertEquals } from "@std/assert";
import {
  bytesReadByProcess,
  directorySize,
  watchOrasTransfer,
} from "../../lib/oci/_oras_transfer_watch.ts";
import { temporaryDir } from "../support/directory.ts";
import { installManualClock } from "../support/timers.ts";

const NEVER_MS = 600_000;

Deno.test("watchOrasTransfer() aborts with transfer_stalled only after the stall timeout without progress", async () => {
  using clock = installManualClock();
  let bytes = 0;
  const counts: number[] = [];
  const watch = watchOrasTransfer("pull x", () => Promise.resolve(bytes), {
    stallTimeoutMs: 2000,
    onBytes: (bytes) => counts.push(bytes),
  });
  const later = async (ms: number): Promise<string | undefined> => {
    await clock.pass(ms);
    return watch.signal.reason?.message;
  };
  assertEquals(await later(1999), undefined);
  bytes = 5;
  assertEquals(await later(1), undefined);
  // Slow progress is no stall, whatever the total time; shrinking is progress, too.
  for (bytes of [6, 3, 4]) assertEquals(await later(2000), undefined);
  assertEquals(await later(1999), undefined);
  assertEquals(counts, [5, 6, 3, 4]);
  assertEquals(await later(1), "Cannot pull x: no progress for 2 s");
  assertEquals(watch.signal.reason.code, "transfer_stalled");
  assert(watch.signal.reason.hint.includes("--stall-timeout SECONDS"));
  await watch[Symbol.asyncDispose]();
  assertEquals(clock.count(), 0);
});

Deno.test("watchOrasTransfer() allows maxBytes bytes and aborts at one more", async () => {
  using clock = installManualClock();
  let bytes = 10;
  const counts: number[] = [];
  const watch = watchOrasTransfer("pull x", () => Promise.resolve(bytes), {
    ...{ stallTimeoutMs: 2000, maxBytes: 10 },
    onBytes: (bytes) => counts.push(bytes),
  });
  await clock.pass(1);
  assertEquals(watch.signal.aborted, false);
  bytes = 11;
  await clock.pass(1);
  const { code, message } = watch.signal.reason;
  assertEquals(code, "artifact_unsafe");
  assertEquals(
    message,
    "Cannot pull x: oras wrote 11 bytes, the manifest declares 10",
  );
  assertEquals(counts, [10]);
  await watch[Symbol.asyncDispose]();
});

Deno.test("watchOrasTransfer() waits on disposal for the measurement in progress", async () => {
  using clock = installManualClock();
  const looked = Promise.withResolvers<number>();
  const slow = watchOrasTransfer("pull x", () => looked.promise, {});
  await clock.pass(0);
  let ended = false;
  const ending = slow[Symbol.asyncDispose]().then(() => ended = true);
  await clock.pass(0);
  assertEquals(ended, false);
  looked.resolve(1);
  await ending;
});

Deno.test("watchOrasTransfer() takes one measurement at a time", async () => {
  using clock = installManualClock();
  const slow = Promise.withResolvers<number>();
  const sizes = [slow.promise, Promise.resolve(10)];
  const counts: number[] = [];
  await using watch = watchOrasTransfer("pull x", () => sizes.shift()!, {
    onBytes: (bytes) => counts.push(bytes),
  });
  await clock.pass(0);
  const last = watch.measureNow();
  slow.resolve(4);
  await last;
  assertEquals(counts, [4, 10]);
});

Deno.test("directorySize() sums all files of a directory, and returns 0 for a missing one", async () => {
  await using dir = await temporaryDir();
  assertEquals(await directorySize(`${dir.path}/none`), 0);
  await Deno.mkdir(`${dir.path}/a/b`, { recursive: true });
  await Deno.writeTextFile(`${dir.path}/a/b/c`, "12345");
  await Deno.writeTextFile(`${dir.path}/d`, "123");
  assertEquals(await directorySize(dir.path), 8);
});

Deno.test({
  name:
    "bytesReadByProcess() returns a process's read count, or undefined if unknown",
  ignore: Deno.build.os !== "linux",
  async fn() {
    const before = (await bytesReadByProcess(Deno.pid))!;
    await Deno.readFile(new URL(import.meta.url));
    assert((await bytesReadByProcess(Deno.pid))! > before);
    assertEquals(await bytesReadByProcess(0), undefined);
  },
});

Deno.test("watchOrasTransfer() reports growing byte counts, including subdirectories", async () => {
  await using dir = await temporaryDir();
  const target = `${dir.path}/target`;
  const counts: number[] = [];
  let reached = (_bytes: number) => {};
  const until = (bytes: number) =>
    new Promise<void>((done) => reached = (now) => now === bytes && done());
  {
    await using watch = watchOrasTransfer(
      "pull",
      () => directorySize(target),
      {
        stallTimeoutMs: NEVER_MS,
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
    assert(!watch.signal.aborted);
  }
  assertEquals(counts, [...new Set(counts)]);
});

Deno.test("watchOrasTransfer() aborts with artifact_unsafe while a directory grows beyond maxBytes", async () => {
  await using dir = await temporaryDir();
  const counts: number[] = [];
  const measure = () => directorySize(dir.path);
  await using watch = watchOrasTransfer("pull x", measure, {
    stallTimeoutMs: NEVER_MS,
    maxBytes: 10,
    onBytes: (bytes) => counts.push(bytes),
  });
  await Deno.writeTextFile(`${dir.path}/a`, "0123456789");
  await watch.measureNow();
  assert(!watch.signal.aborted);
  await Deno.writeTextFile(`${dir.path}/b`, "x");
  await new Promise((done) =>
    watch.signal.addEventListener("abort", done, { once: true })
  );
  assertEquals(watch.signal.reason.code, "artifact_unsafe");
  assertEquals(counts, [10]);
});
