import { assertEquals, assertRejects } from "@std/assert";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { readBodyChunks, readLimitedBody } from "../../lib/system/http_body.ts";
import { startStallTimer } from "../../lib/system/stall_timer.ts";
import { type Deadline, sleep } from "../../lib/system/time.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { holdTimers, installManualClock } from "../support/timers.ts";
import { watchedSignal } from "../support/signals.ts";
import { waitUntil } from "../support/wait_until.ts";

function startServer(answer: () => Response) {
  const closing = new AbortController();
  const server = Deno.serve(
    { port: 0, signal: closing.signal, onListen: () => {} },
    answer,
  );
  return {
    url: `http://127.0.0.1:${server.addr.port}`,
    async [Symbol.asyncDispose]() {
      closing.abort();
      await server.finished;
    },
  };
}

/** A body that sends some bytes and then stalls. */
function stalledBody(bytes: number): ReadableStream<Uint8Array> {
  let sent = false;
  return new ReadableStream({
    async pull(controller) {
      if (sent) return await new Promise(() => {});
      sent = true;
      controller.enqueue(new Uint8Array(bytes).fill(7));
    },
  });
}

/** A stall timer that only the signal expires. */
function timerFor(signal: AbortSignal): Deadline {
  return { signal, restart() {}, pause() {}, [Symbol.dispose]() {} };
}

/** Keeps only the body, so that the request can be garbage-collected. */
async function bodyOf(url: string, signal: AbortSignal) {
  return (await fetch(url, { signal })).body!;
}

Deno.test("readBodyChunks() stops a stalled body on abort, even after the request was garbage-collected", async () => {
  setFlagsFromString("--expose-gc");
  const collectGarbage: () => void = runInNewContext("gc");
  await using server = startServer(() => new Response(stalledBody(1000)));
  const stop = new AbortController();
  const body = await bodyOf(server.url, stop.signal);
  let bytes = 0;
  const reading = (async () => {
    for await (
      const chunk of readBodyChunks(body, timerFor(stop.signal), "x")
    ) {
      bytes += chunk.length;
    }
  })();
  await waitUntil("the body stalls", () => bytes === 1000);
  for (let count = 0; count < 5; count++) {
    await new Promise((done) => setTimeout(done, 20));
    collectGarbage();
  }
  stop.abort(new Error("enough"));
  await assertRejects(() => reading, Error, "enough");
  assertEquals(bytes, 1000);
});

Deno.test("readBodyChunks() reads a body to its end", async () => {
  await using server = startServer(() => new Response("all of it"));
  const { signal } = new AbortController();
  const body = await bodyOf(server.url, signal);
  let text = "";
  for await (const chunk of readBodyChunks(body, timerFor(signal), "x")) {
    text += new TextDecoder().decode(chunk);
  }
  assertEquals(text, "all of it");
});

Deno.test("readBodyChunks() reads into a 1 MiB buffer, and cancels the body when the reader stops early", async () => {
  const { signal, listeners } = watchedSignal();
  let cancelled = false;
  const body = new ReadableStream({
    type: "bytes",
    pull: (controller) => controller.enqueue(new Uint8Array(3)),
    async cancel() {
      await sleep(1);
      cancelled = true;
    },
  });
  for await (const chunk of readBodyChunks(body, timerFor(signal), "x")) {
    assertEquals(chunk.buffer.byteLength, 1024 * 1024);
    break;
  }
  assertEquals([cancelled, listeners()], [true, 0]);
});

Deno.test("readBodyChunks() reads nothing when its signal is already aborted", async () => {
  const body = new ReadableStream({
    type: "bytes",
    pull: () => new Promise<void>(() => {}),
  });
  const signal = AbortSignal.abort(new Error("too late"));
  const next = () => readBodyChunks(body, timerFor(signal), "x").next();
  await assertRejects(next, Error, "too late");
});

Deno.test("readBodyChunks() runs the stall timer only while waiting for a chunk", async () => {
  using clocks = holdTimers(123_456);
  const steps = [new Uint8Array(3), "stall"] as const;
  let at = 0;
  const body = new ReadableStream({
    type: "bytes",
    pull(controller) {
      const step = steps[at++];
      assertEquals(clocks.count(), 1);
      if (step !== "stall") return controller.enqueue(step.slice());
      clocks.expire();
      return new Promise<void>(() => {});
    },
  }, { highWaterMark: 0 });
  using watch = startStallTimer("download x", { stallTimeoutMs: 123_456 });
  const { message } = await expectFailure("transfer_stalled", async () => {
    for await (const chunk of readBodyChunks(body, watch, "x")) {
      assertEquals([chunk.length, clocks.count()], [3, 0]);
    }
  });
  assertEquals(message, "Cannot download x: no progress for 123.456 s");
  assertEquals(clocks.count(), 0);
});

Deno.test("readLimitedBody() applies the stall timeout to the whole read, even if bytes keep arriving", async () => {
  using clock = installManualClock();
  using watch = startStallTimer("download x", {});
  let passing: Promise<void> | undefined;
  const body = new ReadableStream({
    type: "bytes",
    async pull(controller) {
      await (passing = clock.pass(40_000));
      if (!watch.signal.aborted) controller.enqueue(new Uint8Array(1));
    },
  }, { highWaterMark: 0 });
  const read = () => readLimitedBody(body, watch, { shown: "x", limit: 9 });
  await expectFailure("transfer_stalled", read);
  await passing;
  assertEquals(clock.time, 80_000);
});

Deno.test("readLimitedBody() reports a broken body as an interrupted transfer, and an abort with its reason", async () => {
  const broken = () =>
    new ReadableStream({
      type: "bytes",
      pull: () => Promise.reject(new TypeError("connection reset")),
    });
  const read = (signal: AbortSignal) =>
    readLimitedBody(broken(), timerFor(signal), { shown: "x", limit: 9 });
  const { message } = await expectFailure(
    "transfer_interrupted",
    () => read(new AbortController().signal),
  );
  assertEquals(
    message,
    "Cannot download x: the transfer was interrupted (connection reset)",
  );
  const signal = AbortSignal.abort(new Error("enough"));
  await assertRejects(() => read(signal), Error, "enough");
});

Deno.test("readLimitedBody() returns up to the limit of bytes, and undefined for a longer body", async () => {
  const read = (text: string | null) => {
    const { signal } = new AbortController();
    const { body } = new Response(text && new Blob([text]).stream());
    const options = { shown: "x", limit: 5 };
    return readLimitedBody(body && asBytes(body), timerFor(signal), options);
  };
  assertEquals(await read("12345"), new TextEncoder().encode("12345"));
  assertEquals(await read("123456"), undefined);
  assertEquals(await read(null), new Uint8Array());
});

/** A byte stream, like the body of a response. */
function asBytes(body: ReadableStream<Uint8Array<ArrayBuffer>>) {
  const reader = body.getReader();
  return new ReadableStream({
    type: "bytes",
    async pull(controller) {
      const { done, value } = await reader.read();
      if (!done) return controller.enqueue(value);
      controller.close();
      controller.byobRequest?.respond(0);
    },
  });
}
