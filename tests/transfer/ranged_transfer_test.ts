import { assert, assertEquals, assertRejects } from "@std/assert";
import { ToolsmithError } from "../../lib/errors.ts";
import { openPartFile } from "../../lib/system/part_file.ts";
import {
  RetryAfterError,
  type ScheduledRetry,
} from "../../lib/system/retry.ts";
import { abortable } from "../../lib/system/time.ts";
import {
  type ByteSource,
  type RangeResponse,
  RangesUnavailableError,
} from "../../lib/transfer/byte_source.ts";
import {
  createTransfer,
  type TransferOptions,
} from "../../lib/transfer/ranged_transfer.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { memoryTarget } from "../support/memory_target.ts";
import { holdTimers, scaleClock } from "../support/timers.ts";

const MIB = 1024 * 1024;
const STALL_MS = 123_456;

/** One step of a body: a chunk of this many bytes, or a callback. */
type Step = number | (() => unknown);

/** Creates a body in which each byte is its own offset. */
function body(at: number, steps: Step[], onCancel = () => {}) {
  const left = [...steps];
  return new ReadableStream<Uint8Array<ArrayBuffer>>({
    type: "bytes",
    async pull(controller) {
      while (typeof left[0] === "function") {
        await (left.shift() as () => void)();
      }
      const count = left.shift() as number | undefined;
      if (count) controller.enqueue(numbered(at, at += count));
      else {
        controller.close();
        (controller as ReadableByteStreamController).byobRequest?.respond(0);
      }
    },
    cancel: onCancel,
  }, { highWaterMark: 0 });
}

/** Zeros for more than 1000 bytes, to save time. */
function numbered(from: number, to: number): Uint8Array<ArrayBuffer> {
  const length = to - from;
  if (length > 1000) return new Uint8Array(length);
  return Uint8Array.from({ length }, (_, at) => from + at);
}

type Open = (
  from: number,
  to: number,
) => RangeResponse | Promise<RangeResponse>;

const right: Open = (from, to) => ({
  start: from,
  end: to,
  body: body(from, [to - from]),
});
/** Responds with the requested range, in steps. */
const inSteps = (...steps: Step[]): Open => (from, to) => ({
  ...{ start: from, end: to, body: body(from, steps) },
});
/** Responds with the whole file, in steps. */
const whole = (...steps: Step[]): Open => () => ({
  ...{ start: 0, end: Infinity, body: body(0, steps) },
});
const busy: Open = () =>
  Promise.reject(new ToolsmithError("registry_unavailable", "down"));

/** Creates a transfer into a part file; the source repeats the last response. */
async function made(
  size: number,
  answers: Open[],
  options: TransferOptions = {},
) {
  await using undo = new AsyncDisposableStack();
  const dir = undo.use(await temporaryDir());
  const digest = `sha256:${"0".repeat(64)}`;
  const part = undo.use(await openPartFile(dir.path, { size, digest }));
  const asked: [number, number][] = [];
  const retries: ScheduledRetry[] = [];
  const seen = { progress: 0 };
  const source: ByteSource = {
    displayName: "reg.example",
    maxBytes: size,
    tooManyBytesError: (limit) =>
      new RangesUnavailableError(`more than ${limit}`),
    async requestRange(from, to, signal) {
      const answer = answers[Math.min(asked.length, answers.length - 1)];
      asked.push([from, to]);
      return await abortable(Promise.resolve(answer(from, to)), signal);
    },
  };
  const transfer = undo.use(
    createTransfer(source, {
      ...{ retries: 2, retryDelayMs: 0, stallTimeoutMs: STALL_MS },
      onRetry: (retry) => retries.push(retry),
      ...options,
    }),
  );
  const all = undo.move();
  return {
    ...{ part, transfer, asked, retries, seen },
    fill: () => transfer.fill(part, () => seen.progress++),
    bytes: () => Deno.readFile(part.path),
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

/** Fills a part file, and returns how that ended. */
async function filled(...args: Parameters<typeof made>) {
  // Slow time, so that no connection takes over what another one requested.
  using _clock = scaleClock(0.001);
  await using all = await made(...args);
  const error = await all.fill().then(() => undefined, (error) => error);
  const { asked, retries, part } = all;
  return { asked, retries, error, left: part.missingExtents() };
}

/** Gives pending promises and timers of 0 ms enough turns. */
async function aWhile() {
  for (let turn = 0; turn < 20; turn++) {
    await new Promise((done) => setTimeout(done));
  }
}

Deno.test("Transfer.fill() requests only the missing bytes of a part file", async () => {
  await using all = await made(30, [inSteps(10, 5)]);
  {
    using writer = await all.part.openWriter();
    writer.write(0, numbered(0, 15));
  }
  await all.fill();
  assertEquals(all.asked, [[15, 30]]);
  assertEquals(await all.bytes(), numbered(0, 30));
  assertEquals([all.seen.progress, all.retries], [2, []]);
  const none = [() => Promise.reject(new Error("asked"))];
  await using full = await made(10, none);
  {
    using writer = await full.part.openWriter();
    writer.write(0, numbered(0, 10));
  }
  await full.fill();
});

Deno.test("Transfer.fill() requests all bytes at once with one connection, and pieces with several", async () => {
  const one = await filled(9 * MIB, [right]);
  assertEquals(one.asked, [[0, 9 * MIB]]);
  const many = await filled(9 * MIB, [right], { connections: 9 });
  assertEquals(many.asked[0], [0, 4 * MIB]);
  const small = await filled(10, [right], { connections: 9 });
  assertEquals(small.asked, [[0, 10]]);
});

Deno.test("Transfer.fill() reports the offset of an interrupted response and requests only the rest", async () => {
  await using all = await made(30, [inSteps(10, 5), inSteps(15)]);
  await all.fill();
  assertEquals(all.asked, [[0, 30], [15, 30]]);
  assertEquals(await all.bytes(), numbered(0, 30));
  const [{ error: { code, message } }] = all.retries;
  assertEquals(code, "transfer_interrupted");
  assertEquals(
    message,
    "The transfer from reg.example was interrupted at 15 of 30 bytes",
  );
  // A connection error counts as an interruption, too.
  const broken = () => Promise.reject(new TypeError("connection refused"));
  const { retries: [{ error }] } = await filled(
    30,
    [inSteps(10, broken), right],
  );
  assertEquals(
    error.message,
    "Cannot download reg.example: the transfer was interrupted (connection refused)",
  );
});

Deno.test("Transfer.fill() rejects a response of more bytes than requested", async () => {
  for (const steps of [[31], [30, 1], [29, 2]]) {
    let cancelled = false;
    const answer: Open = (from, to) => ({
      ...{
        start: from,
        end: to,
        body: body(from, steps, () => cancelled = true),
      },
    });
    const { error, retries } = await filled(30, [answer]);
    assert(error instanceof RangesUnavailableError, String(error));
    assertEquals(error.message, "more than 30");
    assertEquals([cancelled, retries], [true, []]);
  }
});

Deno.test("Transfer.fill() writes only the missing bytes of a whole response and resumes an interrupted one", async () => {
  await using all = await made(30, [whole(10, 20)]);
  {
    using writer = await all.part.openWriter();
    writer.write(15, new Uint8Array(10).fill(99));
  }
  await all.fill();
  assertEquals(await all.bytes(), numbered(0, 30).fill(99, 15, 25));
  for (const connections of [1, 4]) {
    const cut = await filled(10, [whole(4), right], { connections });
    assertEquals([cut.error, cut.left], [undefined, []]);
    assertEquals(cut.asked, [[0, 10], [4, 10]]);
    const [{ error }] = cut.retries;
    assertEquals(
      error.message,
      "The transfer from reg.example was interrupted at 4 of 10 bytes",
    );
  }
  const long = await filled(30, [whole(10, 21)]);
  assert(long.error instanceof RangesUnavailableError, String(long.error));
});

Deno.test("Transfer.fill() accepts a whole response to a range request only with one connection", async () => {
  const one = await filled(30, [inSteps(10), whole(30)]);
  assertEquals([one.error, one.left], [undefined, []]);
  assertEquals(one.asked, [[0, 30], [10, 30]]);
  let cancelled = 0;
  const late: Open = () => ({
    ...{ start: 0, end: Infinity },
    body: body(0, [() => new Promise(() => {})], () => cancelled++),
  });
  // The first piece waits until the second is requested.
  const second = Promise.withResolvers<void>();
  const { error, left, retries } = await filled(8 * MIB, [
    inSteps(() => second.promise, 4 * MIB),
    (from, to) => {
      second.resolve();
      return late(from, to);
    },
    right,
  ], { connections: 2 });
  assertEquals([error, left, cancelled], [undefined, [], 1]);
  assertEquals(
    retries[0].error.message,
    "reg.example sent the whole file instead of the bytes from 4194304 on",
  );
});

Deno.test("Transfer.fill() starts the other connections after a range only, and rejects a whole response from then on", async () => {
  const one = await filled(9 * MIB, [whole(9 * MIB)], { connections: 4 });
  assertEquals([one.error, one.asked], [undefined, [[0, 4 * MIB]]]);
  // The second connection waits until the first requests its second piece.
  const third = Promise.withResolvers<void>();
  const { error, left, retries } = await filled(12 * MIB, [
    right,
    inSteps(() => third.promise, 4 * MIB),
    (from, to) => {
      third.resolve();
      return whole()(from, to);
    },
    right,
  ], { connections: 2 });
  assertEquals([error, left], [undefined, []]);
  assertEquals(
    retries[0].error.message,
    "reg.example sent the whole file instead of the bytes from 8388608 on",
  );
});

Deno.test("Transfer.openAndPeek() returns the size and the first bytes before the download", async () => {
  await using all = await made(30, [whole(3, 7, 20)]);
  const { start, end, head } = await all.transfer.openAndPeek(0, 8);
  assertEquals([start, end, head], [0, Infinity, numbered(0, 10)]);
  await all.fill();
  assertEquals(await all.bytes(), numbered(0, 30));
  assertEquals(all.asked, [[0, Infinity]]);

  const sized: Open = (from) => ({
    ...{ start: from, end: 30, body: body(from, [30 - from]) },
  });
  await using rest = await made(30, [busy, inSteps(), sized, sized]);
  // An empty body has no first bytes.
  assertEquals((await rest.transfer.openAndPeek(12, 1)).head, new Uint8Array());
  assertEquals((await rest.transfer.openAndPeek(12, 1)).end, 30);
  await rest.fill();
  // The bytes before the offset are requested after the rest.
  assertEquals(rest.asked.slice(-2), [[12, Infinity], [0, 12]]);
  assertEquals(await rest.bytes(), numbered(0, 30));
  assertEquals(rest.retries.length, 1);
});

Deno.test("Transfer.openAndPeek() cancels the response of an earlier call, and disposing that of the last", async () => {
  for (const headBytes of [0, 5]) {
    let cancelled = 0;
    const silent: Open = (from) => ({
      ...{ start: from, end: 30 },
      body: body(from, [9, () => new Promise(() => {})], () => cancelled++),
    });
    await using all = await made(30, [silent]);
    await all.transfer.openAndPeek(20, headBytes);
    assertEquals(cancelled, 0);
    // Some servers handle only one request at a time.
    await all.transfer.openAndPeek(0, headBytes);
    await aWhile();
    assertEquals([cancelled, all.retries], [1, []]);
    all.transfer[Symbol.dispose]();
    await aWhile();
    assertEquals(cancelled, 2);
  }
});

Deno.test("Transfer.fill() reads a body of unknown length to its end, up to maxBytes", async () => {
  const target = memoryTarget();
  const broken = () => Promise.reject(new TypeError("cut"));
  await using all = await made(20, [whole(10, broken), whole(7, 13)]);
  await all.transfer.openAndPeek(0, 1);
  await all.transfer.fill(target);
  assertEquals(all.asked, [[0, Infinity], [10, Infinity]]);
  assertEquals(target.bytes(), numbered(0, 20));
  // maxBytes still applies.
  await using long = await made(20, [whole(20, 1)]);
  await assertRejects(
    () => long.transfer.fill(memoryTarget()),
    RangesUnavailableError,
    "more than 20",
  );
});

Deno.test("Transfer.fill() throws transfer_stalled for a silent source, and runs no stall timer during disk writes", async () => {
  using clocks = holdTimers(STALL_MS);
  const forever = () => new Promise<never>(() => {});
  const stall = () => {
    assertEquals(clocks.count(), 1, "the source is waited for");
    clocks.expire();
    return forever();
  };
  const ended = new Set<string>();
  for (const answer of [stall, inSteps(10, stall)]) {
    await using all = await made(30, [answer], { retries: 0 });
    const openWriter = all.part.openWriter.bind(all.part);
    all.part.openWriter = async () => {
      const { write, ...rest } = await openWriter();
      return {
        ...rest,
        write(position, bytes) {
          assertEquals(clocks.count(), 0, "a disk is no source");
          return write(position, bytes);
        },
        [Symbol.dispose]: rest[Symbol.dispose],
      };
    };
    const { message, hint } = await expectFailure("transfer_stalled", all.fill);
    ended.add(message);
    assert(hint!.includes("--stall-timeout SECONDS"));
    assertEquals(clocks.count(), 0);
  }
  assertEquals([...ended], [
    "Cannot download reg.example: no progress for 123.456 s",
  ]);
});

Deno.test("Transfer.fill() retries transient errors within the retry budget and throws others at once", async () => {
  const passes = await filled(10, [busy, busy, right], { connections: 2 });
  assertEquals([passes.error, passes.left], [undefined, []]);
  assertEquals(passes.retries.map(({ attempt }) => attempt), [2, 3]);
  const lasts = await filled(10, [busy]);
  assertEquals([lasts.error.message, lasts.asked.length], ["down", 3]);
  const none = await filled(10, [
    () => Promise.reject(new RangesUnavailableError("no ranges")),
  ]);
  assertEquals([none.error.message, none.asked.length], ["no ranges", 1]);
  // After a failure in the middle, the bytes before it are kept.
  const middle = await filled(30, [inSteps(10), busy]);
  assertEquals([middle.error.message, middle.left], ["down", [[10, 30]]]);
});

Deno.test("Transfer.fill() throws the caller's abort reason without a retry", async () => {
  const cancel = new AbortController();
  const answer = () => {
    cancel.abort(new Error("enough"));
    return Promise.reject(new TypeError("aborted"));
  };
  const { signal } = cancel;
  const { error, asked, retries } = await filled(30, [answer], { signal });
  assertEquals([error.message, asked.length, retries], ["enough", 1, []]);
});

Deno.test("Transfer.fill() reads over exactly the allowed number of connections at once", async () => {
  for (const connections of [1, 2, 3]) {
    let [open, peak] = [0, 0];
    const all = Promise.withResolvers<void>();
    const { error, left } = await filled(24 * MIB, [(from, to) => {
      peak = Math.max(peak, ++open);
      if (open === connections) all.resolve();
      const ends = () => void open--;
      return {
        ...{ start: from, end: to },
        body: body(from, [() => all.promise, to - from, ends]),
      };
    }], { connections });
    assertEquals([error, left], [undefined, []]);
    assertEquals(peak, connections);
  }
});

Deno.test("Transfer.fill() pauses all connections for the Retry-After of one", async () => {
  const paused = Promise.withResolvers<void>();
  const cancel = new AbortController();
  const late: Open = () => {
    const error = new ToolsmithError("rate_limited", "slowly");
    return Promise.reject(new RetryAfterError(error, 60_000));
  };
  await using all = await made(
    12 * MIB,
    [inSteps(() => paused.promise, 4 * MIB), late],
    {
      ...{ connections: 2, signal: cancel.signal },
      onRetry: () => paused.resolve(),
    },
  );
  const filling = all.fill();
  filling.catch(() => {});
  while (all.part.presentBytes < 4 * MIB) await aWhile();
  await aWhile();
  assertEquals(all.asked, [[0, 4 * MIB], [4 * MIB, 8 * MIB]]);
  cancel.abort(new Error("enough"));
  await assertRejects(() => filling, Error, "enough");
});

Deno.test("Transfer.fill() fails only after all pending writes have ended", async () => {
  const opening = Promise.withResolvers<void>();
  const disk = Promise.withResolvers<void>();
  await using all = await made(8 * MIB, [
    right,
    async () => {
      await opening.promise;
      throw new RangesUnavailableError("no more");
    },
  ], { connections: 2 });
  const openWriter = all.part.openWriter.bind(all.part);
  all.part.openWriter = async () => {
    opening.resolve();
    await disk.promise;
    return await openWriter();
  };
  let ended = false;
  const filling = all.fill().finally(() => ended = true);
  filling.catch(() => {});
  await opening.promise;
  await aWhile();
  assertEquals(ended, false);
  disk.resolve();
  await assertRejects(() => filling, RangesUnavailableError, "no more");
  await aWhile();
  assertEquals(
    all.part.presentBytes,
    0,
    "what came when nobody wanted it any more",
  );
});

Deno.test("Transfer.fill() drops a response that arrives after another connection took its range over", async () => {
  using _clock = scaleClock(10);
  const size = 12 * MIB;
  await using setup = await made(size, [right]);
  const late = Promise.withResolvers<void>();
  let isHeld = false;
  const source: ByteSource = {
    displayName: "reg.example",
    maxBytes: size,
    tooManyBytesError: (limit) => new Error(`more than ${limit}`),
    async requestRange(from, to) {
      if (from !== 4 * MIB) return await right(from, to);
      if (isHeld) late.resolve();
      else {
        isHeld = true;
        await late.promise;
      }
      return await right(from, to);
    },
  };
  using transfer = createTransfer(source, { connections: 2, retries: 0 });
  await transfer.fill(setup.part);
  assertEquals(setup.part.missingExtents(), []);
});
