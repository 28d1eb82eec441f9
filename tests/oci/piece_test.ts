import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  type OpenPiece,
  openPiece,
  type PieceContext,
  readPiece,
  readWhole,
} from "../../lib/oci/_piece.ts";
import { RangesUnavailable } from "../../lib/oci/_ranges_unavailable.ts";
import { rangePlan } from "../../lib/oci/_range_plan.ts";
import { openPart } from "../../lib/system/part_file.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { replace } from "../support/replace.ts";
import { heldTimers } from "../support/timers.ts";

const SIZE = 30;
const STALL_MS = 123_456;

/** What a body does, step by step: a chunk of so many bytes, or something. */
type Step = number | (() => unknown);

/** So many bytes of the blob, up to a position: each is its own position. */
const numbered = (count: number, to = count) =>
  Uint8Array.from({ length: count }, (_, at) => to - count + at);

/** A transfer of 30 bytes from a source that answers so. */
async function transfer(steps: Step[] | (() => Promise<never>)) {
  await using undo = new AsyncDisposableStack();
  const dir = undo.use(await temporaryDir());
  const clocks = undo.use(heldTimers(STALL_MS));
  const digest = `sha256:${"0".repeat(64)}`;
  const part = undo.use(await openPart(dir.path, { size: SIZE, digest }));
  const openWriter = part.openWriter.bind(part);
  part.openWriter = async () => {
    const writer = await openWriter();
    return {
      write(position, bytes) {
        assertEquals(clocks.count(), 0, "a disk is no server");
        return writer.write(position, bytes);
      },
      [Symbol.dispose]: () => writer[Symbol.dispose](),
    };
  };
  const plan = rangePlan([[0, SIZE]], 2, () => 0);
  const cancel = new AbortController();
  const seen = { cancelled: false, progress: 0, asked: [] as number[][] };
  const context: PieceContext = {
    source: {
      host: "reg.example",
      open(from, to) {
        seen.asked.push([from, to]);
        assertEquals(clocks.count(), 1, "the answer is waited for");
        if (typeof steps === "function") return steps();
        const left = [...steps];
        let sent = from;
        const body = new ReadableStream({
          type: "bytes",
          async pull(controller) {
            assertEquals(clocks.count(), 1, "bytes are waited for");
            while (typeof left[0] === "function") {
              await (left.shift() as () => unknown)();
            }
            const count = left.shift() as number | undefined;
            if (count) controller.enqueue(numbered(count, sent += count));
            else {
              controller.close();
              controller.byobRequest?.respond(0);
            }
          },
          cancel() {
            seen.cancelled = true;
          },
        }, { highWaterMark: 0 });
        return Promise.resolve({ kind: "range", body });
      },
    },
    part,
    plan,
    stallMs: STALL_MS,
    onBytes: () => seen.progress++,
    signal: cancel.signal,
  };
  const piece = plan.take(undefined)!;
  const all = undo.move();
  const rest = { cancel, clocks, seen };
  return {
    ...{ context, piece, part, plan, ...rest },
    bytes: () => Deno.readFile(part.path),
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

/** Opens a piece that nobody takes over. */
async function opened(
  { context, piece }: Pick<
    Awaited<ReturnType<typeof transfer>>,
    "context" | "piece"
  >,
): Promise<OpenPiece> {
  const open = await openPiece(context, piece);
  assert(open);
  return open;
}

/** What a read returns that takes no time. */
async function rateOf(read: () => Promise<number>): Promise<number> {
  using _clock = replace(performance, { now: () => 5 });
  return await read();
}

Deno.test("a piece is read to its end, and its reader's rate is known", async () => {
  await using all = await transfer([10, 20]);
  const { context, part, plan, seen, clocks } = all;
  const open = await opened(all);
  assertEquals(clocks.count(), 0, "nothing is waited for");
  assertEquals(await rateOf(() => readPiece(context, open)), 30);
  assertEquals(seen.asked, [[0, 30]]);
  assertEquals([seen.progress, part.bytes, plan.done], [2, 30, true]);
  assertEquals(await all.bytes(), numbered(30));
  assertEquals(clocks.count(), 0);
});

Deno.test("an answer that is cut is told with its byte, and what is left is handed out again", async () => {
  await using all = await transfer([10, 5]);
  const { context, plan } = all;
  const open = await opened(all);
  const { message } = await failure(
    "transfer_interrupted",
    () => readPiece(context, open),
  );
  assertEquals(message, "The transfer from reg.example was cut at byte 15");
  assertEquals(plan.done, false);
  const rest = plan.take(undefined)!;
  assertEquals([rest.at, rest.to], [15, 30]);
  assertEquals(all.clocks.count(), 0);
  // What was there before counts for no rate.
  const again = await opened({ context, piece: rest });
  assertEquals(await rateOf(() => readPiece(context, again)), 15);
  assertEquals(all.seen.asked, [[0, 30], [15, 30]]);
  assertEquals(await all.bytes(), numbered(30));
});

Deno.test("a byte more than was asked for is refused, before and after the last", async () => {
  for (const steps of [[31], [30, 1], [29, 2]]) {
    await using all = await transfer(steps);
    const { context, seen, clocks } = all;
    const open = await opened(all);
    await assertRejects(
      () => readPiece(context, open),
      RangesUnavailable,
      "reg.example sends more than was asked",
    );
    assertEquals([seen.cancelled, clocks.count()], [true, 0]);
  }
});

Deno.test("where another has taken the end over, the reader stops there without an error", async () => {
  const taken: (() => void)[] = [];
  await using all = await transfer([10, () => taken[0](), 10, 10]);
  const { context, piece, plan, part, seen } = all;
  const open = await opened(all);
  taken.push(() => piece.to = 15);
  await readPiece(context, open);
  assertEquals([piece.at, part.bytes, seen.cancelled], [15, 15, true]);
  assertEquals(part.gaps(), [[15, 30]]);
  assert(plan.done);

  // All of its rest: nothing of what comes then is an error of its own.
  const gone: (() => void)[] = [];
  await using other = await transfer([10, () => gone[0](), 20]);
  gone.push(() => {
    other.piece.to = 10;
    other.piece.taken.abort();
  });
  await readPiece(other.context, await opened(other));
  assertEquals([other.part.bytes, other.plan.done], [10, true]);
});

Deno.test("openPiece returns no answer for a piece that another connection took over, and throws other failures", async () => {
  const ends: [Error | undefined, string | undefined][] = [
    [undefined, undefined],
    [new TypeError("the connection is closed"), undefined],
    [new Error("full"), "full"],
  ];
  for (const [thrown, message] of ends) {
    const aborted = Promise.withResolvers<never>();
    await using all = await transfer(() => aborted.promise);
    const { context, piece, plan, clocks } = all;
    const opening = openPiece(context, piece).catch(({ message }) => message);
    piece.to = piece.at;
    piece.taken.abort(new Error("taken over"));
    aborted.reject(thrown ?? piece.taken.signal.reason);
    assertEquals(await opening, message);
    assertEquals([clocks.count(), plan.done], [0, true]);
  }
});

Deno.test("a source that is silent is a stall, before its answer and in it; the disk's time is its own", async () => {
  const silence = Promise.withResolvers<never>();
  await using late = await transfer(() => silence.promise);
  const opening = openPiece(late.context, late.piece);
  late.clocks.expire();
  silence.reject(new TypeError("aborted"));
  const { message, hint } = await failure("transfer_stalled", () => opening);
  assertEquals(
    message,
    "Cannot download reg.example: nothing arrived for 123.456 s",
  );
  assert(hint!.includes("--stall-timeout SECONDS"));
  assertEquals(late.plan.take(undefined)!.to, 30);
  assertEquals(late.clocks.count(), 0);

  const stop: (() => unknown)[] = [];
  await using all = await transfer([10, () => stop[0]()]);
  stop.push(() => {
    all.clocks.expire();
    return new Promise(() => {});
  });
  const open = await opened(all);
  await failure("transfer_stalled", () => readPiece(all.context, open));
  assertEquals([all.part.bytes, all.seen.cancelled], [10, true]);
});

Deno.test("what a connection throws is a cut; who cancels is told the own reason", async () => {
  const broken = () => Promise.reject(new TypeError("connection refused"));
  await using cut = await transfer(broken);
  const { message } = await failure(
    "transfer_interrupted",
    () => openPiece(cut.context, cut.piece),
  );
  assertEquals(
    message,
    "Cannot download reg.example: it was cut (connection refused)",
  );
  assertEquals(cut.plan.take(undefined)!.to, 30);

  await using all = await transfer(broken);
  all.cancel.abort(new Error("enough"));
  await assertRejects(() => openPiece(all.context, all.piece), Error, "enough");

  // What is no connection's is told as it is.
  await using full = await transfer(() => Promise.reject(new Error("full")));
  await assertRejects(() => openPiece(full.context, full.piece), Error, "full");
});

Deno.test("of the whole only what is missing is written", async () => {
  await using all = await transfer([10, 20]);
  const { context, part, plan, seen, clocks } = all;
  {
    using writer = await part.openWriter();
    writer.write(15, new Uint8Array(10).fill(99));
  }
  await readWhole(context, await opened(all));
  const expected = numbered(30).fill(99, 15, 25);
  assertEquals(await all.bytes(), expected);
  assertEquals([part.gaps(), plan.done], [[], true]);
  assertEquals([seen.progress, clocks.count()], [2, 0]);
});

Deno.test("a whole that is too short is cut, and one that is too long is not used", async () => {
  await using short = await transfer([10, 19]);
  const { message } = await failure(
    "transfer_interrupted",
    async () => readWhole(short.context, await opened(short)),
  );
  assertEquals(message, "The transfer from reg.example was cut at byte 29");
  assert(short.plan.done, "what is missing is for the next answer");
  await using long = await transfer([10, 21]);
  await assertRejects(
    async () => readWhole(long.context, await opened(long)),
    RangesUnavailable,
    "reg.example sends more than 30 bytes",
  );
  assertEquals([long.part.bytes, long.seen.cancelled], [10, true]);
  assertEquals(long.clocks.count(), 0);
});
