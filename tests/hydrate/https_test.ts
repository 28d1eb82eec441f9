import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import type { ErrorCode } from "../../lib/errors.ts";
import { type HttpsOptions, openHttps } from "../../lib/hydrate/_https.ts";
import type { Retry } from "../../lib/system/retry.ts";
import { certificateOfFile } from "../support/certificates.ts";
import { failure } from "../support/failure.ts";
import { needs } from "../support/parts.ts";
import {
  type Exchange,
  startTlsServer,
  type TlsServer,
} from "../support/tls_server.ts";

const FILE = new Uint8Array(300_000).map((_, at) => at * 31 + (at >> 8));

const { ignore } = needs("openssl");
const certificate = certificateOfFile(ignore);

/** Runs a test with a server of its own. */
function test(
  name: string,
  answer: (exchange: Exchange) => Promise<void>,
  body: (server: TlsServer) => Promise<void>,
) {
  Deno.test({
    name,
    ignore,
    async fn() {
      await using server = await startTlsServer(certificate(), answer);
      await body(server);
    },
  });
}

/** Reads a whole file, impatiently. */
async function download(
  server: TlsServer,
  options: HttpsOptions & { path?: string } = {},
) {
  const url = new URL(options.path ?? "/image.qcow2", server.url);
  using file = await openHttps(url, {
    caFile: certificate().caFile,
    retryDelayMs: 1,
    ...options,
  });
  const chunks: Uint8Array[] = [];
  for await (const chunk of file.chunks) chunks.push(chunk.slice());
  const read = new Uint8Array(
    await new Blob(chunks as BlobPart[]).arrayBuffer(),
  );
  return { bytes: file.bytes, read };
}

/** The first byte that a request asks for. */
function rangeOf({ headers }: Exchange): number {
  return Number(/^bytes=(\d+)-$/.exec(headers.get("range") ?? "")?.[1] ?? 0);
}

/** Serves the rest of the file as asked for, with these headers. */
async function serveRange(
  exchange: Exchange,
  until: number,
  headers: Record<string, string> = {},
) {
  const from = rangeOf(exchange);
  await exchange.head(from > 0 ? 206 : 200, {
    "content-length": FILE.length - from,
    ...from > 0
      ? { "content-range": `bytes ${from}-${FILE.length - 1}/${FILE.length}` }
      : {},
    ...headers,
  });
  await exchange.body(FILE.subarray(from, Math.max(from, until)));
}

function assertWhole({ read }: { read: Uint8Array }) {
  assertEquals(read.length, FILE.length);
  assert(read.every((byte, at) => byte === FILE[at]), "other bytes");
}

test("a file arrives whole, and its size is known before", async (exchange) => {
  await serveRange(exchange, FILE.length);
}, async (server) => {
  const got = await download(server);
  assertWhole(got);
  assertEquals(got.bytes, FILE.length);
  const { headers } = server.requests[0];
  assertEquals(headers.get("accept-encoding"), "identity");
  assertEquals(headers.get("range"), undefined);
});

test("a cut transfer goes on from where it was cut", async (exchange) => {
  // The second answer is cut again, the third is whole.
  const until = [100_000, 200_000, FILE.length][exchange.number - 1];
  await serveRange(exchange, until, { etag: '"v1"' });
}, async (server) => {
  const told: Retry[] = [];
  const onRetry = (event: Retry) => told.push(event);
  assertWhole(await download(server, { onRetry }));
  assertEquals(server.requests.map(rangeOf), [0, 100_000, 200_000]);
  assertEquals(server.requests[1].headers.get("if-range"), '"v1"');
  assertEquals(
    told.map(({ error, attempt }) => [error.code, attempt]),
    [["transfer_interrupted", 2], ["transfer_interrupted", 3]],
  );
});

test(
  "a server that ignores the range serves it anew, and nothing is doubled",
  async (exchange) => {
    await exchange.head(200, { "content-length": FILE.length });
    await exchange.body(
      FILE.subarray(0, exchange.number === 1 ? 100_000 : FILE.length),
    );
  },
  async (server) => {
    assertWhole(await download(server));
    assertEquals(server.requests.length, 2);
  },
);

test(
  "a range whose whole size is not told is gone on with",
  async (exchange) => {
    const from = rangeOf(exchange);
    await serveRange(
      exchange,
      from === 0 ? 100_000 : FILE.length,
      from === 0 ? {} : {
        "content-range": `bytes ${from}-${FILE.length - 1}/*`,
      },
    );
  },
  async (server) => {
    assertWhole(await download(server));
    assertEquals(server.requests.length, 2);
  },
);

test(
  "a range that begins later than asked for is not taken",
  async (exchange) => {
    if (exchange.number !== 2) {
      return await serveRange(
        exchange,
        exchange.number === 1 ? 100_000 : FILE.length,
      );
    }
    await exchange.head(206, {
      "content-length": FILE.length - 150_000,
      "content-range": `bytes 150000-${FILE.length - 1}/${FILE.length}`,
    });
    await exchange.body(FILE.subarray(150_000));
  },
  async (server) => {
    assertWhole(await download(server));
  },
);

test(
  "a body without a length ends where the server ends it",
  async (exchange) => {
    await exchange.head(200, { "transfer-encoding": "chunked" });
    const text = (words: string) => new TextEncoder().encode(words);
    await exchange.body(text(`${FILE.length.toString(16)}\r\n`));
    await exchange.body(FILE);
    await exchange.body(text("\r\n0\r\n\r\n"));
  },
  async (server) => {
    const got = await download(server);
    assertWhole(got);
    assertEquals(got.bytes, null);
  },
);

for (
  const [form, pause] of [
    ["seconds", () => "3600"],
    ["a date", () => new Date(Date.now() + 3_600_000).toUTCString()],
    ["a Unix time", () => `${Math.floor(Date.now() / 1000) + 3600}`],
  ] as const
) {
  test(
    `openHttps() stops where a server asks to wait for an hour, as ${form}`,
    async (exchange) => {
      await exchange.head(429, { "retry-after": pause() });
    },
    async (server) => {
      const { message } = await failure(
        "rate_limited",
        () => download(server),
      );
      assertMatch(message, /answered 429 and asks to wait 60 min$/);
      assertEquals(server.requests.length, 1);
    },
  );
}

test(
  "openHttps() waits as long as the server asks",
  async (exchange) => {
    if (exchange.number > 1) return await serveRange(exchange, FILE.length);
    await exchange.head(503, { "retry-after": "1" });
  },
  async (server) => {
    const retries: Retry[] = [];
    const onRetry = (retry: Retry) => retries.push(retry);
    assertWhole(await download(server, { onRetry }));
    assertEquals(retries.map(({ delayMs }) => delayMs), [1000]);
  },
);

test("a transfer that is cut again and again is given up", async (exchange) => {
  await serveRange(exchange, rangeOf(exchange) + 1000);
}, async (server) => {
  await failure("transfer_interrupted", () => download(server, { retries: 2 }));
  assertEquals(server.requests.length, 3);
});

test(
  "a server that cuts before it answers is tried again",
  async (exchange) => {
    if (exchange.number === 3) await serveRange(exchange, FILE.length);
  },
  async (server) => {
    assertWhole(await download(server));
    assertEquals(server.requests.length, 3);
  },
);

const never = (exchange: Exchange) => exchange.stall();

test(
  "a transfer that stalls is given up, and its name is its own",
  async (exchange) => {
    await serveRange(exchange, 1000);
    await never(exchange);
  },
  async (server) => {
    const error = await failure(
      "transfer_stalled",
      () => download(server, { retries: 0, stallTimeoutMs: 200 }),
    );
    assert(error.hint?.includes("--stall-timeout"));
  },
);

test("a server that never answers has stalled, too", never, async (server) => {
  const options = { retries: 0, stallTimeoutMs: 200 };
  await failure("transfer_stalled", () => download(server, options));
});

test("a reader that is slow is no stall", async (exchange) => {
  await serveRange(exchange, FILE.length);
}, async (server) => {
  const options = {
    caFile: certificate().caFile,
    retries: 0,
    stallTimeoutMs: 2000,
  };
  using file = await openHttps(new URL("/a", server.url), options);
  let bytes = 0;
  for await (const chunk of file.chunks) {
    if (bytes === 0) await new Promise((done) => setTimeout(done, 2300));
    bytes += chunk.length;
  }
  assertEquals(bytes, FILE.length);
});

const STATUSES: [number, ErrorCode, number][] = [
  [401, "unauthorized", 1],
  [403, "forbidden", 1],
  [404, "not_found", 1],
  [410, "not_found", 1],
  [418, "failed", 1],
  [429, "rate_limited", 2],
  [500, "registry_unavailable", 2],
  [503, "registry_unavailable", 2],
];

test(
  "each status has its code, and only what may pass is tried again",
  async (exchange) => {
    await exchange.head(Number(exchange.path.slice(1, 4)), {
      "content-length": 0,
    });
  },
  async (server) => {
    for (const [status, code, attempts] of STATUSES) {
      server.requests.length = 0;
      const path = `/${status}/certificate-tls-dns-refused?sig=s3cr3t`;
      const error = await failure(
        code,
        () => download(server, { path, retries: 1 }),
      );
      assertEquals(server.requests.length, attempts, `${status}`);
      assert(error.message.includes(`${status}`), error.message);
      assert(!error.message.includes("s3cr3t"), error.message);
      assert(error.hint, "no hint");
    }
  },
);

test(
  "a server whose authority is not trusted is refused at once",
  async (exchange) => {
    await serveRange(exchange, FILE.length);
  },
  async (server) => {
    const error = await failure(
      "tls_failed",
      () => openHttps(new URL("/refused-dns-connect", server.url)),
    );
    assert(error.hint?.includes("--ca-file"));
    assertEquals(server.requests.length, 0);
  },
);

test("a CA file that is not there, or is none, is named", async () => {
}, async (server) => {
  const lostFile = `${certificate().caFile}.none`;
  const lost = await failure(
    "file_unreadable",
    () => download(server, { caFile: lostFile }),
  );
  assert(lost.message.includes(lostFile), lost.message);
  await Deno.writeTextFile(lostFile, "-----BEGIN CERTIFICATE-----\nnonsense\n");
  const bad = await failure(
    "tls_failed",
    () => download(server, { caFile: lostFile }),
  );
  assert(bad.message.includes(lostFile), bad.message);
});

test("an abort ends the transfer with its reason", async (exchange) => {
  await serveRange(exchange, 1000);
  await never(exchange);
}, async (server) => {
  const abort = new AbortController();
  using file = await openHttps(new URL("/a", server.url), {
    caFile: certificate().caFile,
    signal: abort.signal,
  });
  await assertRejects(
    async () => {
      for await (const _ of file.chunks) abort.abort(new Error("enough"));
    },
    Error,
    "enough",
  );
});

test("an abort ends the wait for an answer", never, async (server) => {
  const signal = AbortSignal.timeout(100);
  await assertRejects(
    () =>
      openHttps(new URL("/a", server.url), {
        caFile: certificate().caFile,
        signal,
      }),
    DOMException,
  );
});

test(
  "a transfer that nobody reads on is ended by its disposal",
  async (exchange) => {
    await serveRange(exchange, 1000);
    await never(exchange);
  },
  async (server) => {
    using _unread = await openHttps(new URL("/a", server.url), {
      caFile: certificate().caFile,
    });
    using file = await openHttps(new URL("/a", server.url), {
      caFile: certificate().caFile,
    });
    for await (const _ of file.chunks) break;
  },
);

Deno.test("a refused connection and a host that is not there are told apart", async () => {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr;
  listener.close();
  const options = { retries: 0 };
  await failure(
    "connection_failed",
    () =>
      openHttps(new URL(`https://127.0.0.1:${port}/dns-certificate`), options),
  );
  await failure(
    "dns_failed",
    () =>
      openHttps(new URL("https://certificate.tls.invalid/refused"), options),
  );
});

Deno.test("a server without TLS is told as such", async () => {
  await using server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    () => new Response("x"),
  );
  const url = new URL(`https://127.0.0.1:${server.addr.port}/`);
  await failure("tls_failed", () => openHttps(url, { retries: 0 }));
});
