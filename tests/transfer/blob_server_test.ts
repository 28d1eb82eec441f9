import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { blobSource } from "../../lib/oci/_blob_source.ts";
import { repositoryClient } from "../../lib/oci/endpoints.ts";
import { openPartFile } from "../../lib/system/part_file.ts";
import type { ScheduledRetry } from "../../lib/system/retry.ts";
import { hashPartFileWhileFilling } from "../../lib/transfer/file_digest.ts";
import { RangesUnavailableError } from "../../lib/transfer/byte_source.ts";
import {
  createTransfer,
  type TransferOptions,
} from "../../lib/transfer/ranged_transfer.ts";
import {
  type BlobRequest,
  type BlobServer,
  type BlobServerOptions,
  chunkedBody,
  startBlobServer,
} from "../support/blob_server.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { replaceMethod } from "../support/replace_method.ts";
import { holdTimers, scaleClock } from "../support/timers.ts";
import { waitUntil } from "../support/wait_until.ts";

const MIB = 1024 * 1024;
const SIZE = 24 * MIB + 12345;
const BYTES = new Uint8Array(SIZE).map((_, at) => at * 31 + (at >> 8));
/** A delay that no other timer has. */
const STALL_MS = 123_456;

/** Creates a client for the server's repository, with an optional login. */
async function repositoryOf(
  { origin }: BlobServer,
  dir: string,
  login?: string,
) {
  const { host } = new URL(origin);
  const auths = login ? { [host]: { auth: btoa(login) } } : {};
  await Deno.writeTextFile(join(dir, "config.json"), JSON.stringify({ auths }));
  const env = new Map([["DOCKER_CONFIG", dir]]);
  return await repositoryClient({
    ...{ baseUrl: `${origin}/v2`, host, repository: "o/i", resolvesTags: true },
    options: { env },
  });
}

interface Outcome {
  retries: ScheduledRetry[];
  /** Whether the file's digest is that of the blob. */
  right: boolean;
  error?: unknown;
}

/** Downloads a server's blob into a directory, like one run. */
async function read(
  server: BlobServer,
  dir: string,
  options: TransferOptions = {},
  login?: string,
): Promise<Outcome> {
  const retries: ScheduledRetry[] = [];
  const { digest, bytes: { length: size } } = server;
  const { host } = new URL(server.origin);
  using repository = await repositoryOf(server, dir, login);
  await using part = await openPartFile(dir, { size, digest });
  const source = blobSource(repository, host, { digest, size });
  using transfer = createTransfer(source, {
    ...{ connections: 4, stallTimeoutMs: STALL_MS, retryDelayMs: 10 },
    onRetry: (retry) => retries.push(retry),
    ...options,
  });
  try {
    const fill = () => transfer.fill(part);
    const actual = await hashPartFileWhileFilling(part, options.signal, fill);
    return { retries, right: `sha256:${actual}` === digest };
  } catch (error) {
    return { retries, right: false, error };
  }
}

/** Downloads a blob from a server with these responses. */
async function readFrom(
  answer: NonNullable<BlobServerOptions["answer"]>,
  options: TransferOptions = {},
) {
  await using dir = await temporaryDir();
  await using server = await startBlobServer({ bytes: BYTES, answer });
  const outcome = await read(server, dir.path, options);
  const { requestedRanges } = server;
  return {
    ...outcome,
    asked: requestedRanges,
    sent: server.sentBytes(),
    peak: server.peakParallelBodies(),
  };
}

/** Changes headers or the body of a correct 206. */
function spoiled(headers: Record<string, string>, body?: BodyInit) {
  return ({ correctResponse }: BlobRequest) => {
    const response = correctResponse();
    const all = new Headers(response.headers);
    for (const [name, value] of Object.entries(headers)) {
      if (value === "") all.delete(name);
      else all.set(name, value);
    }
    return new Response(body ?? response.body, { status: 206, headers: all });
  };
}

Deno.test("Blob download uses up to the allowed number of connections and transfers no byte twice", async () => {
  // Slow time, so that no takeover of a slow connection discards bytes.
  using _clock = scaleClock(0.001);
  const { right, sent, peak, asked } = await readFrom(() => undefined);
  assertEquals([right, sent], [true, SIZE]);
  assert(peak > 1 && peak <= 4, `${peak} at the same time`);
  assert(asked.length >= 4);
});

Deno.test("Blob download retries a failed range and transfers only the lost bytes again", async (t) => {
  const broken = (
    { correctResponse }: BlobRequest,
    body: ReadableStream<Uint8Array>,
  ) => new Response(body, { status: 206, headers: correctResponse().headers });
  using timers = holdTimers(STALL_MS);
  // Stalls as soon as a connection waits for it.
  const silent = () => {
    let expiring: ReturnType<typeof setInterval>;
    return new ReadableStream<Uint8Array>({
      start: () => void (expiring = setInterval(timers.expire, 5)),
      cancel: () => clearInterval(expiring),
    });
  };
  const faults: [string, string, (request: BlobRequest) => Response][] = [
    [
      "retries a 503",
      "registry_unavailable",
      () => new Response(null, { status: 503 }),
    ],
    [
      "retries a 429",
      "rate_limited",
      () => new Response(null, { status: 429 }),
    ],
    [
      "retries a 200 to a range request",
      "transfer_interrupted",
      () => new Response(chunkedBody(new Uint8Array(10)), { status: 200 }),
    ],
    [
      "retries an interrupted body",
      "transfer_interrupted",
      (request) =>
        broken(request, chunkedBody(new Uint8Array(0), { end: "cut" })),
    ],
    [
      "retries a truncated body",
      "transfer_interrupted",
      ({ from, to }) =>
        new Response(chunkedBody(new Uint8Array(0)), {
          status: 206,
          headers: { "content-range": `bytes ${from}-${to - 1}/${SIZE}` },
        }),
    ],
    [
      "retries a stalled body",
      "transfer_stalled",
      (request) => broken(request, silent()),
    ],
  ];
  for (const [name, code, fault] of faults) {
    await t.step(name, async () => {
      // Slow time, so that a busy host causes no takeover.
      using _clock = scaleClock(0.01);
      const { right, retries, sent } = await readFrom(
        (request) => request.number === 3 ? fault(request) : undefined,
        // Connections that wait at the same time stall, too.
        { retries: 99 },
      );
      assert(right);
      const codes = new Set(retries.map(({ error }) => error.code));
      assertEquals([...codes], [code]);
      // A lost connection loses what Linux lets its sockets buffer, 4 + 6 MiB; a
      // busy host may cause a takeover.
      const most = SIZE + (retries.length + 1) * 10 * MIB;
      assert(sent <= most, `${sent} bytes were sent`);
    });
  }
});

Deno.test("Blob download ignores a changing ETag, because the digest validates the bytes", async () => {
  using _clock = scaleClock(0.001);
  const { right, retries, sent } = await readFrom((request) =>
    spoiled({ etag: `"${request.number}"` })(request)
  );
  assertEquals([right, retries, sent], [true, [], SIZE]);
});

Deno.test("Blob download throws RangesUnavailableError for a response that is not the requested range", async (t) => {
  const answers: [string, RegExp, (request: BlobRequest) => Response][] = [
    [
      "rejects a Content-Range for other bytes",
      /answered bytes 0-4194303 with Content-Range "bytes 5-/,
      spoiled({ "content-range": `bytes 5-4194303/${SIZE}` }),
    ],
    [
      "rejects a 206 without Content-Range",
      /with Content-Range ""/,
      spoiled({ "content-range": "" }),
    ],
    [
      "rejects a Content-Range with another total size",
      /has a blob of 99 bytes, the manifest says/,
      spoiled({ "content-range": "bytes 0-4194303/99" }),
    ],
    [
      "rejects a Content-Length that differs from the range",
      /sent Content-Length 3, expected/,
      spoiled({ "content-length": "3" }, "abc"),
    ],
    [
      "rejects Content-Encoding: gzip",
      /with Content-Encoding gzip$/,
      spoiled({ "content-encoding": "gzip" }),
    ],
    [
      "rejects a 416",
      /answered 416/,
      () => new Response(null, { status: 416 }),
    ],
    [
      "rejects a 404",
      /answered 404/,
      () => new Response(null, { status: 404 }),
    ],
    [
      "rejects a 501",
      /answered 501/,
      () => new Response(null, { status: 501 }),
    ],
    [
      "rejects a body longer than the range",
      /sent more bytes than requested$/,
      ({ correctResponse }) =>
        spoiled(
          { "content-length": "" },
          chunkedBody(new Uint8Array(5 * MIB)),
        )({ correctResponse } as BlobRequest),
    ],
    [
      "rejects a 200 with another Content-Length",
      /sent Content-Length 7, expected/,
      () => new Response("another", { headers: { "content-length": "7" } }),
    ],
    [
      "rejects an unsupported authentication scheme",
      /offers Negotiate, not Basic or Bearer/,
      () =>
        new Response(null, {
          status: 401,
          headers: { "www-authenticate": "Negotiate" },
        }),
    ],
  ];
  for (const [name, reason, answer] of answers) {
    await t.step(name, async () => {
      const { error, retries } = await readFrom(answer);
      assert(error instanceof RangesUnavailableError, String(error));
      assertMatch((error as Error).message, reason);
      assertEquals(retries, []);
    });
  }
});

Deno.test("Blob download reads a 200 response as a stream and resumes after an interruption", async () => {
  await using dir = await temporaryDir();
  await using server = await startBlobServer({
    bytes: BYTES,
    // Like an empty pull-through cache, which is filled after the first request.
    answer: ({ number }): Response | undefined =>
      number === 1
        ? new Response(
          chunkedBody(server.bytes.slice(0, 5 * MIB), { end: "cut" }),
        )
        : undefined,
  });
  // More connections would take over what one of them has requested.
  const { right, retries } = await read(server, dir.path, { connections: 1 });
  assert(right);
  assertEquals(retries.map(({ error }) => error.code), [
    "transfer_interrupted",
  ]);
  // A restart from byte 0 would send 5 MiB more.
  assert(
    server.sentBytes() <= SIZE + 4 * MIB,
    `${server.sentBytes()} bytes were sent`,
  );
});

Deno.test("Blob download keeps a cancelled run's bytes and does not request them again", async () => {
  await using dir = await temporaryDir();
  const stop = new AbortController();
  await using server = await startBlobServer({
    bytes: BYTES,
    answer({ number, correctResponse }) {
      if (number > 1) stop.abort();
      const { headers } = correctResponse();
      const body = chunkedBody(BYTES.slice(0, 9 * MIB), { end: "cut" });
      return new Response(body, { status: 206, headers });
    },
  });
  const { signal } = stop;
  const first = await read(server, dir.path, { connections: 1, signal });
  assert(first.error instanceof DOMException);

  await using again = await startBlobServer({ bytes: BYTES });
  using _clock = scaleClock(0.001);
  const second = await read(again, dir.path);
  assert(second.right);
  const kept = SIZE - again.sentBytes();
  assert(kept > 8 * MIB && kept <= 9 * MIB, `${kept} bytes were kept`);
});

Deno.test("Blob download pauses all connections for the time in Retry-After", async () => {
  const clock = { time: 0 };
  using _clock = replaceMethod(performance, { now: () => clock.time });
  using timers = holdTimers(30_000);
  let asked = 0;
  // Holds all bodies until the 429 has arrived.
  const paused = waitUntil("a pause", () => timers.count() > 0, 1);
  const reading = readFrom(({ number, correctResponse }) => {
    asked = number;
    if (number === 2) {
      const headers = { "retry-after": "30" };
      return new Response(null, { status: 429, headers });
    }
    const { headers, body } = correctResponse();
    const start = () => paused;
    const held = body!.pipeThrough(new TransformStream({ start }));
    return new Response(held, { status: 206, headers });
  });
  // All four connections have finished their ranges and wait.
  await waitUntil("four pauses", () => timers.count() === 4, 1);
  const before = asked;
  clock.time = 30_000;
  timers.expire();
  const { right, retries } = await reading;
  assert(right);
  assertEquals(retries.map(({ delayMs }) => delayMs), [30_000]);
  assert(before <= 4 && asked > before, `${before} of ${asked}`);
});

Deno.test("Blob download takes over a stuck range on another connection without a retry", async () => {
  using _clock = scaleClock(10);
  let held: { from: number; to: number } | undefined;
  const again = Promise.withResolvers<void>();
  const { right, retries } = await readFrom(
    ({ number, from, to, correctResponse }) => {
      if (held && from > held.from && from < held.to) again.resolve();
      if (number !== 2) return undefined;
      held = { from, to };
      const { headers, body } = correctResponse();
      const reader = body!.getReader();
      let chunks = 0;
      // Withheld from the second chunk on, until another connection requests it.
      const pull = async (controller: ReadableStreamDefaultController) => {
        if (chunks++ > 0) await again.promise;
        const { done, value } = await reader.read();
        if (done) controller.close();
        else controller.enqueue(value);
      };
      const cancel = () => reader.cancel();
      const slow = new ReadableStream({ pull, cancel });
      return new Response(slow, { status: 206, headers });
    },
  );
  assertEquals([right, retries], [true, []]);
});

Deno.test("Blob download takes over a range whose headers never arrive without a retry", async () => {
  using _clock = scaleClock(10);
  const asked = new Map<number, number>();
  const again = Promise.withResolvers<void>();
  const { right, retries, error } = await readFrom(async ({ from }) => {
    asked.set(from, (asked.get(from) ?? 0) + 1);
    const [, held] = asked.keys();
    if (from !== held) return undefined;
    // Withheld until another connection requests the same range.
    if (asked.get(from)! > 1) again.resolve();
    await again.promise;
    return undefined;
  });
  assertEquals([error, right, retries], [undefined, true, []]);
});

Deno.test("Blob download throws the last error when retries are used up, and keeps the part file", async () => {
  await using dir = await temporaryDir();
  await using server = await startBlobServer({
    bytes: BYTES,
    answer({ number, correctResponse }) {
      if (number > 1) return new Response(null, { status: 503 });
      const { headers } = correctResponse();
      const body = chunkedBody(BYTES.slice(0, 5 * MIB), { end: "cut" });
      return new Response(body, { status: 206, headers });
    },
  });
  const options = { connections: 1, retries: 2 };
  const { error, retries } = await read(server, dir.path, options);
  await expectFailure("registry_unavailable", () => {
    throw error;
  });
  assertEquals(retries.map(({ error }) => error.code), [
    "transfer_interrupted",
    "registry_unavailable",
  ]);
  const { digest } = server;
  await using part = await openPartFile(dir.path, { size: SIZE, digest });
  assert(part.presentBytes >= 4 * MIB);
});

Deno.test("Blob download requests a new signed URL after a 403 and sends no token to storage", async () => {
  const tokens: string[] = [];
  let signed = 0;
  await using storage: BlobServer = await startBlobServer({
    bytes: BYTES,
    hostname: "127.0.0.2",
    answer({ request, number }) {
      if (request.headers.has("authorization")) tokens.push("leaked");
      const key = new URL(request.url).searchParams.get("signature");
      return number > 2 && key === "1"
        ? new Response(null, { status: 403 })
        : undefined;
    },
  });
  const { port } = new URL(storage.origin);
  await using registry = await startBlobServer({
    bytes: BYTES,
    port: Number(port),
    answer({ request }) {
      if (request.headers.get("authorization") !== `Basic ${btoa("u:p")}`) {
        return new Response(null, {
          status: 401,
          headers: { "www-authenticate": 'Basic realm="x"' },
        });
      }
      const location = `${storage.origin}/blob?signature=${++signed}`;
      return new Response(null, { status: 307, headers: { location } });
    },
  });
  await using dir = await temporaryDir();
  const { right } = await read(registry, dir.path, { connections: 2 }, "u:p");
  assert(right);
  assertEquals(tokens, []);
  assert(signed >= 2);
  // A valid URL is reused: at most one per connection, and one after the expiry.
  assert(signed <= 4, `${signed}`);
});

Deno.test("Blob download renews a token that expires during the download", async () => {
  let issued = 0;
  await using realm = await startBlobServer({
    bytes: BYTES,
    hostname: "127.0.0.2",
    answer: ({ request }) =>
      request.headers.get("authorization") === `Basic ${btoa("u:p")}`
        ? Response.json({ token: `t${++issued}` })
        : new Response(null, { status: 401 }),
  });
  const right = `Bearer realm="${realm.origin}/token",service="s"`;
  await using dir = await temporaryDir();
  await using server = await startBlobServer({
    bytes: BYTES,
    answer: ({ request, number }) =>
      request.headers.get("authorization") === `Bearer t${number > 4 ? 2 : 1}`
        ? undefined
        : new Response(null, {
          status: 401,
          headers: { "www-authenticate": right },
        }),
  });
  const { right: done, retries } = await read(server, dir.path, {}, "u:p");
  assert(done);
  assertEquals([retries, issued], [[], 2]);
});

Deno.test("Blob download stops after three requests when the registry rejects every token", async () => {
  const challenge = 'Basic realm="x"';
  await using dir = await temporaryDir();
  await using server = await startBlobServer({
    bytes: BYTES,
    answer: () =>
      new Response(null, {
        status: 401,
        headers: { "www-authenticate": challenge },
      }),
  });
  const { error } = await read(server, dir.path, {}, "u:p");
  assert(error instanceof RangesUnavailableError);
  assertMatch((error as Error).message, /answered 401/);
  assert(server.requestedRanges.length <= 3);
});
