import { assertEquals, assertRejects } from "@std/assert";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import {
  abortableChunks,
  writeAll,
  writeAllSync,
} from "../../lib/system/streams.ts";
import { sleep } from "../../lib/system/time.ts";
import { watchedSignal } from "../support/signals.ts";

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

/** Some bytes, and then nothing more. */
function silentBody(bytes: number): ReadableStream<Uint8Array> {
  let sent = false;
  return new ReadableStream({
    async pull(controller) {
      if (sent) return await new Promise(() => {});
      sent = true;
      controller.enqueue(new Uint8Array(bytes).fill(7));
    },
  });
}

/** Only the body is kept: the request is garbage. */
async function bodyOf(url: string, signal: AbortSignal) {
  return (await fetch(url, { signal })).body!;
}

Deno.test("a body that says nothing more is given up at a signal, long after its request", async () => {
  setFlagsFromString("--expose-gc");
  const collectGarbage: () => void = runInNewContext("gc");
  await using server = startServer(() => new Response(silentBody(1000)));
  const stop = new AbortController();
  const body = await bodyOf(server.url, stop.signal);
  let bytes = 0;
  const reading = (async () => {
    for await (const chunk of abortableChunks(body, stop.signal)) {
      bytes += chunk.length;
    }
  })();
  for (let count = 0; count < 5; count++) {
    await new Promise((done) => setTimeout(done, 20));
    collectGarbage();
  }
  stop.abort(new Error("enough"));
  await assertRejects(() => reading, Error, "enough");
  assertEquals(bytes, 1000);
});

Deno.test("a body is read to its end", async () => {
  await using server = startServer(() => new Response("all of it"));
  const { signal } = new AbortController();
  const body = await bodyOf(server.url, signal);
  let text = "";
  for await (const chunk of abortableChunks(body, signal)) {
    text += new TextDecoder().decode(chunk);
  }
  assertEquals(text, "all of it");
});

Deno.test("a body is read by a buffer of 1 MiB, and let go of by who stops early", async () => {
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
  for await (const chunk of abortableChunks(body, signal)) {
    assertEquals(chunk.buffer.byteLength, 1024 * 1024);
    break;
  }
  assertEquals([cancelled, listeners()], [true, 0]);
});

Deno.test("of a body nothing is read at a signal that came before", async () => {
  const body = new ReadableStream({
    type: "bytes",
    pull: () => new Promise<void>(() => {}),
  });
  const signal = AbortSignal.abort(new Error("too late"));
  const next = () => abortableChunks(body, signal).next();
  await assertRejects(next, Error, "too late");
});

Deno.test("what a write does not take is written again, and nothing after the end", async () => {
  const taken: number[][] = [];
  const write = (bytes: Uint8Array) => {
    taken.push([...bytes]);
    return Math.min(bytes.length, 2) || 1;
  };
  const bytes = new Uint8Array([1, 2, 3]);
  await writeAll({ write: (bytes) => Promise.resolve(write(bytes)) }, bytes);
  writeAllSync({ writeSync: write }, bytes);
  assertEquals(taken, [[1, 2, 3], [3], [1, 2, 3], [3]]);
});
