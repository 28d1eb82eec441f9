import { assert, assertEquals, assertMatch } from "@std/assert";
import { type BlobSource, blobSource } from "../../lib/oci/_blob_source.ts";
import type { RegistryCredentials } from "../../lib/oci/_docker_config.ts";
import { registryGet } from "../../lib/oci/_registry_get.ts";
import { RangesUnavailable } from "../../lib/oci/_ranges_unavailable.ts";
import { readBlob, type ReadBlobOptions } from "../../lib/oci/_read_blob.ts";
import { type HttpClient, httpClient } from "../../lib/system/http_client.ts";
import { openPart } from "../../lib/system/part_file.ts";
import type { Retry } from "../../lib/system/retry.ts";
import {
  type BlobRequest,
  type BlobServer,
  type BlobServerOptions,
  chunked,
  startBlobServer,
} from "../support/blob_server.ts";
import { issueCertificate } from "../support/certificates.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { needs } from "../support/parts.ts";
import { replace } from "../support/replace.ts";

const MIB = 1024 * 1024;
const SIZE = 24 * MIB + 12345;

/** A source of a server's blob. */
function sourceOf(
  { origin, digest, bytes }: Pick<BlobServer, "origin" | "digest" | "bytes">,
  client: HttpClient,
  credentials: RegistryCredentials = {},
): BlobSource {
  const registry = registryGet({
    base: `${origin}/v2`,
    repository: "o/i",
    client,
    credentials: () => Promise.resolve(credentials),
    stallMs: 5000,
  });
  return blobSource(registry, { digest, size: bytes.length });
}

/** What a read took, and what it left. */
interface Outcome {
  retries: Retry[];
  /** Whether the file is the blob. */
  right: boolean;
  error?: unknown;
}

/** Reads a server's blob into a directory, as one run would. */
async function read(
  server: BlobServer,
  dir: string,
  options: Partial<ReadBlobOptions> = {},
  credentials?: RegistryCredentials,
): Promise<Outcome> {
  const retries: Retry[] = [];
  using client = await httpClient(undefined, { http2: false });
  const { digest, bytes: { length: size } } = server;
  await using part = await openPart(dir, { size, digest });
  try {
    await readBlob(sourceOf(server, client, credentials), part, {
      connections: 4,
      stallMs: 5000,
      retryDelayMs: 10,
      onBytes: () => {},
      onRetry: (retry) => retries.push(retry),
      ...options,
    });
  } catch (error) {
    return { retries, right: false, error };
  }
  const actual = await part.sha256(new AbortController().signal);
  return { retries, right: `sha256:${actual}` === digest };
}

/** Reads a blob from a server that answers like that. */
async function readFrom(
  answer: NonNullable<BlobServerOptions["answer"]>,
  options: Partial<ReadBlobOptions> = {},
) {
  await using dir = await temporaryDir();
  await using server = await startBlobServer({ size: SIZE, answer });
  const outcome = await read(server, dir.path, options);
  const { asked } = server;
  return { ...outcome, asked, sent: server.sent(), peak: server.peak() };
}

/** A 206 whose headers or bytes are not what was asked. */
function spoiled(headers: Record<string, string>, body?: BodyInit) {
  return ({ right }: BlobRequest) => {
    const response = right();
    const all = new Headers(response.headers);
    for (const [name, value] of Object.entries(headers)) {
      if (value === "") all.delete(name);
      else all.set(name, value);
    }
    return new Response(body ?? response.body, { status: 206, headers: all });
  };
}

Deno.test("a blob comes over as many connections as allowed, and no byte twice", async () => {
  const { right, sent, peak, asked } = await readFrom(() => undefined);
  assert(right);
  assert(sent <= SIZE + 6 * MIB, `${sent} bytes were sent`);
  assert(peak > 1 && peak <= 4, `${peak} at the same time`);
  assert(asked.length >= 4);
});

Deno.test("a cut, an error and a wrong status in mid-blob cost a retry, and only what was lost", async (t) => {
  const broken = ({ right }: BlobRequest, end: "cut" | "stall") =>
    new Response(chunked(new Uint8Array(0), { end }), {
      status: 206,
      headers: right().headers,
    });
  const faults: [string, string, (request: BlobRequest) => Response][] = [
    [
      "an error of the server",
      "registry_unavailable",
      () => new Response(null, { status: 503 }),
    ],
    ["a rate limit", "rate_limited", () => new Response(null, { status: 429 })],
    [
      "the whole among ranges",
      "transfer_interrupted",
      () => new Response(chunked(new Uint8Array(10)), { status: 200 }),
    ],
    ["a cut", "transfer_interrupted", (request) => broken(request, "cut")],
    [
      "a body that is too short",
      "transfer_interrupted",
      ({ from, to }) =>
        new Response(chunked(new Uint8Array(0)), {
          status: 206,
          headers: { "content-range": `bytes ${from}-${to - 1}/${SIZE}` },
        }),
    ],
    ["a stall", "transfer_stalled", (request) => broken(request, "stall")],
  ];
  for (const [name, code, fault] of faults) {
    await t.step(name, async () => {
      const { right, retries, sent } = await readFrom(
        (request) => request.number === 3 ? fault(request) : undefined,
        { stallMs: code === "transfer_stalled" ? 300 : 60_000 },
      );
      assert(right);
      // On a busy host one that is only slow counts as silent, too.
      const codes = new Set(retries.map(({ error }) => error.code));
      assertEquals([...codes], [code]);
      // On a busy host a connection may be overtaken besides.
      assert(sent <= SIZE + 6 * MIB, `${sent} bytes were sent`);
    });
  }
});

Deno.test("an ETag that changes costs nothing: the digest is what decides", async () => {
  const { right, retries, sent } = await readFrom((request) =>
    spoiled({ etag: `"${request.number}"` })(request)
  );
  assert(right);
  assertEquals(retries, []);
  assert(sent <= SIZE + 6 * MIB, `${sent} bytes were sent`);
});

Deno.test({
  name: "a source that redirects out of HTTPS is refused",
  ...needs("openssl"),
  async fn() {
    await using dir = await temporaryDir();
    const { certFile, keyFile, caFile } = await issueCertificate(dir.path);
    let plain = 0;
    await using http = Deno.serve(
      { hostname: "127.0.0.1", port: 0, onListen: () => {} },
      () => new Response(`${++plain}`),
    );
    const location = `http://127.0.0.1:${http.addr.port}/x`;
    await using https = Deno.serve({
      ...{ hostname: "127.0.0.1", port: 0, onListen: () => {} },
      cert: await Deno.readTextFile(certFile),
      key: await Deno.readTextFile(keyFile),
    }, () => new Response(null, { status: 307, headers: { location } }));
    using client = await httpClient(caFile);
    const origin = `https://127.0.0.1:${https.addr.port}`;
    const source = sourceOf(
      { origin, digest: "sha256:aa", bytes: new Uint8Array(9) },
      client,
    );
    const { signal } = new AbortController();
    const { message } = await failure(
      "redirect_refused",
      () => source.open(0, 9, signal),
    );
    assertMatch(message, /redirected to http:.*, which is not HTTPS$/);
    assertEquals(plain, 0);
  },
});

Deno.test("a source that does not serve ranges as asked is not used", async (t) => {
  const answers: [string, RegExp, (request: BlobRequest) => Response][] = [
    [
      "another range",
      /answers 0-4194303 with "bytes 5-/,
      spoiled({ "content-range": `bytes 5-4194303/${SIZE}` }),
    ],
    ["no Content-Range", /with ""/, spoiled({ "content-range": "" })],
    [
      "another size",
      /has 99 bytes, the manifest says/,
      spoiled({ "content-range": "bytes 0-4194303/99" }),
    ],
    [
      "another length",
      /announces 3 bytes, not/,
      spoiled({ "content-length": "3" }, "abc"),
    ],
    ["gzip", /in the encoding gzip$/, spoiled({ "content-encoding": "gzip" })],
    ["416", /answers 416/, () => new Response(null, { status: 416 })],
    ["404", /answers 404/, () => new Response(null, { status: 404 })],
    ["501", /answers 501/, () => new Response(null, { status: 501 })],
    ["a body that goes on", /sends more than was asked/, ({ right }) =>
      spoiled(
        { "content-length": "" },
        chunked(new Uint8Array(5 * MIB)),
      )({ right } as BlobRequest)],
    [
      "a whole of another size",
      /announces 7 bytes, not/,
      () => new Response("another", { headers: { "content-length": "7" } }),
    ],
    [
      "an authentication that is not understood",
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
      assert(error instanceof RangesUnavailable, String(error));
      assertMatch((error as Error).message, reason);
      assertEquals(retries, []);
    });
  }
});

Deno.test("a server that answers with the whole is read as a stream, over one connection", async () => {
  await using dir = await temporaryDir();
  await using server = await startBlobServer({
    size: SIZE,
    // As a cache does that is empty; it breaks off once, and is full then.
    answer: ({ number }): Response | undefined =>
      number === 1
        ? new Response(chunked(server.bytes.slice(0, 5 * MIB), { end: "cut" }))
        : undefined,
  });
  const { right, retries } = await read(server, dir.path);
  assert(right);
  assertEquals(retries.map(({ error }) => error.code), [
    "transfer_interrupted",
  ]);
  // From its start again it would be 5 MiB more; some may be taken over.
  assert(server.sent() <= SIZE + 4 * MIB, `${server.sent()} bytes were sent`);
});

Deno.test("what a run has got is kept for the next one, and not asked for again", async () => {
  await using dir = await temporaryDir();
  const stop = new AbortController();
  await using server = await startBlobServer({
    size: SIZE,
    answer: ({ number, from, to }): Response | undefined => {
      if (number < 4) return undefined;
      stop.abort();
      return new Response(chunked(server.bytes.slice(from, to)));
    },
  });
  const first = await read(server, dir.path, {
    connections: 1,
    signal: stop.signal,
  });
  assert(first.error instanceof DOMException);
  const before = server.sent();
  assert(before > 8 * MIB);

  await using again = await startBlobServer({
    size: SIZE,
    bytes: server.bytes,
  });
  const second = await read(again, dir.path);
  assert(second.right);
  assert(again.sent() <= SIZE - 8 * MIB, `${again.sent()} bytes were sent`);
});

Deno.test("all connections heed Retry-After together", async () => {
  const times: number[] = [];
  let told = 0;
  const { right, retries } = await readFrom(({ number }) => {
    if (told) times.push(performance.now() - told);
    if (number !== 1 || told) return undefined;
    told = performance.now();
    return new Response(null, {
      status: 429,
      headers: { "retry-after": "1" },
    });
  });
  assert(right);
  assertEquals(retries.length, 1);
  assert(retries[0].delayMs >= 1000);
  assert(Math.min(...times) >= 990, `one came after ${Math.min(...times)} ms`);
});

Deno.test("a slow connection gives its rest to a fast one", async () => {
  let slow = 0;
  const begun = performance.now();
  const { right, sent, retries } = await readFrom(({ number, from, to }) => {
    if (number !== 2) return undefined;
    slow = to - from;
    // 64 KiB each 200 ms: 13 s for a piece.
    return new Response(
      chunked(new Uint8Array(to - from), { pauseMs: 200 }),
      {
        status: 206,
        headers: { "content-range": `bytes ${from}-${to - 1}/${SIZE}` },
      },
    );
  });
  // Its bytes are zeros, so that the few it was left show.
  assertEquals(right, false);
  assert(slow >= 4 * MIB);
  assertEquals(retries, []);
  // The whole piece again would be 4 MiB more.
  assert(sent < SIZE + 4 * MIB, `${sent} bytes were sent`);
  assert(performance.now() - begun < 8000);
});

/** A clock that makes little of what is silence to a connection. */
function hurriedClock(times: number): Disposable {
  const now = performance.now.bind(performance);
  return replace(performance, { now: () => now() * times });
}

Deno.test("a range whose headers do not arrive is read over another connection, and is no failure", async () => {
  using _clock = hurriedClock(10);
  const asked = new Map<number, number>();
  const again = Promise.withResolvers<void>();
  const { right, retries, error } = await readFrom(async ({ from }) => {
    asked.set(from, (asked.get(from) ?? 0) + 1);
    const [, held] = asked.keys();
    if (from !== held) return undefined;
    // Withheld until another connection asks for the same.
    if (asked.get(from)! > 1) again.resolve();
    await again.promise;
    return undefined;
  });
  assertEquals([error, right, retries], [undefined, true, []]);
});

Deno.test("a server that is slow to answer each request is not asked for the same over and over", async () => {
  // 200 ms are silence.
  using _clock = hurriedClock(10);
  const stop = new AbortController();
  const { right, retries, error } = await readFrom(async ({ number }) => {
    if (number > 60) stop.abort(new Error("it is asked over and over"));
    await new Promise((done) => setTimeout(done, 600));
    return undefined;
  }, { signal: stop.signal });
  assertEquals([error, right, retries], [undefined, true, []]);
});

Deno.test("a failure that lasts ends the read with its own code, and keeps the bytes", async () => {
  await using dir = await temporaryDir();
  await using server = await startBlobServer({
    size: SIZE,
    answer: ({ number }) =>
      number < 3 ? undefined : new Response(null, { status: 503 }),
  });
  const { error, retries } = await read(server, dir.path, {
    connections: 1,
    retries: 2,
  });
  await failure("registry_unavailable", () => {
    throw error;
  });
  assertEquals(retries.length, 2);
  const { digest } = server;
  await using part = await openPart(dir.path, { size: SIZE, digest });
  assert(part.kept >= 4 * MIB);
});

Deno.test("a signed address that expires is asked for again, and gets no token", async () => {
  const tokens: string[] = [];
  let signed = 0;
  await using storage: BlobServer = await startBlobServer({
    size: SIZE,
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
    size: SIZE,
    bytes: storage.bytes,
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
  using client = await httpClient(undefined, { http2: false });
  const { digest } = registry;
  await using part = await openPart(dir.path, { size: SIZE, digest });
  const login = { user: "u", password: "p" };
  const source = sourceOf(registry, client, { login });
  await readBlob(source, part, {
    connections: 2,
    stallMs: 5000,
    retryDelayMs: 10,
    onBytes: () => {},
  });
  const actual = await part.sha256(new AbortController().signal);
  assertEquals(`sha256:${actual}`, digest);
  assertEquals(tokens, []);
  assert(signed >= 2);
  // One that is good still is used again: each connection asks for its own.
  assert(signed <= 4, `${signed}`);
});

Deno.test("a token that expires in mid-blob is renewed, at a realm on another host", async () => {
  let issued = 0;
  await using realm = await startBlobServer({
    size: 1,
    hostname: "127.0.0.2",
    answer: ({ request }) =>
      request.headers.get("authorization") === `Basic ${btoa("u:p")}`
        ? Response.json({ token: `t${++issued}` })
        : new Response(null, { status: 401 }),
  });
  const right = `Bearer realm="${realm.origin}/token",service="s"`;
  await using dir = await temporaryDir();
  await using server = await startBlobServer({
    size: SIZE,
    answer: ({ request, number }) =>
      request.headers.get("authorization") === `Bearer t${number > 4 ? 2 : 1}`
        ? undefined
        : new Response(null, {
          status: 401,
          headers: { "www-authenticate": right },
        }),
  });
  const login = { user: "u", password: "p" };
  const { right: done, retries } = await read(server, dir.path, {}, { login });
  assert(done);
  assertEquals([retries, issued], [[], 2]);
});

Deno.test("a registry that refuses each token is not asked for ever", async () => {
  const challenge = 'Basic realm="x"';
  await using dir = await temporaryDir();
  await using server = await startBlobServer({
    size: SIZE,
    answer: () =>
      new Response(null, {
        status: 401,
        headers: { "www-authenticate": challenge },
      }),
  });
  const login = { user: "u", password: "p" };
  const { error } = await read(server, dir.path, {}, { login });
  assert(error instanceof RangesUnavailable);
  assertMatch((error as Error).message, /answers 401/);
  assert(server.asked.length <= 3);
});

Deno.test("a server that falls silent after some bytes is asked for the rest", async () => {
  await using dir = await temporaryDir();
  const digest = `sha256:${"0".repeat(64)}`;
  await using part = await openPart(dir.path, { size: 20, digest });
  const asked: [number, number][] = [];
  const source: BlobSource = {
    host: "registry.example",
    open(from, to) {
      asked.push([from, to]);
      const body = new ReadableStream({
        type: "bytes",
        start(controller) {
          controller.enqueue(new Uint8Array(10));
          // The first answer stays open.
          if (from > 0) controller.close();
        },
      });
      return Promise.resolve({ kind: "range", body });
    },
  };
  const retries: Retry[] = [];
  await readBlob(source, part, {
    connections: 1,
    stallMs: 100,
    retryDelayMs: 1,
    onBytes: () => {},
    onRetry: (retry) => retries.push(retry),
  });
  assertEquals(asked, [[0, 20], [10, 20]]);
  assertEquals(retries.length, 1);
});
