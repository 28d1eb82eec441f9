import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import type { ErrorCode } from "../../lib/errors.ts";
import { httpsByteSource } from "../../lib/hydrate/_https_byte_source.ts";
import { createHttpClient } from "../../lib/system/http_client.ts";
import type { ScheduledRetry } from "../../lib/system/retry.ts";
import {
  createTransfer,
  type TransferOptions,
} from "../../lib/transfer/ranged_transfer.ts";
import { certificateOfFile } from "../support/certificates.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { memoryTarget } from "../support/memory_target.ts";
import { requires } from "../support/parts.ts";
import {
  rangeStart,
  startTlsServer,
  type TlsExchange,
  type TlsServer,
} from "../support/tls_server.ts";

const FILE = new Uint8Array(300_000).map((_, at) => at * 31 + (at >> 8));

const { ignore } = requires("openssl");
const certificate = certificateOfFile(ignore);

/** Runs a test with a server of its own. */
function test(
  name: string,
  answer: (exchange: TlsExchange) => Promise<void>,
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

/** Options of a transfer. */
interface Options extends TransferOptions {
  path?: string;
  caFile?: string;
  maxBytes?: number;
}

/** Opens a transfer with short retry delays. */
async function begin(url: string | URL, options: Options = {}) {
  await using undo = new AsyncDisposableStack();
  const client = undo.use(
    await createHttpClient(
      "caFile" in options ? options.caFile : certificate().caFile,
    ),
  );
  const source = httpsByteSource(new URL(url), client, options.maxBytes);
  const transfer = undo.use(
    createTransfer(source, { retryDelayMs: 1, ...options }),
  );
  const answer = await transfer.openAndPeek(0, 1);
  const all = undo.move();
  const dispose = () => all.disposeAsync();
  return { transfer, ...answer, [Symbol.asyncDispose]: dispose };
}

/** Reads a whole file. */
async function download({ url }: TlsServer, options: Options = {}) {
  const path = options.path ?? "/image.qcow2?sig=s3cr3t";
  await using begun = await begin(new URL(path, url), options);
  const target = memoryTarget(begun.end);
  await begun.transfer.fill(target);
  return { bytes: begun.end, read: target.bytes() };
}

/** Serves the requested range up to `until`, with these headers. */
async function serveRange(
  exchange: TlsExchange,
  until: number,
  headers: Record<string, string> = {},
) {
  const from = rangeStart(exchange);
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

test(
  "HTTPS transfer: downloads a whole file and reports its size first",
  async (exchange) => {
    await serveRange(exchange, FILE.length);
  },
  async (server) => {
    const got = await download(server);
    assertWhole(got);
    assertEquals(got.bytes, FILE.length);
    const { headers } = server.requests[0];
    assertEquals(headers.get("accept-encoding"), "identity");
    assertEquals(headers.get("range"), undefined);
  },
);

test(
  "HTTPS transfer: continues an interrupted transfer after the last received byte",
  async (exchange) => {
    // The first two responses are interrupted, the third is complete.
    const until = [100_000, 200_000, FILE.length][exchange.number - 1];
    await serveRange(exchange, until, { etag: '"v1"' });
  },
  async (server) => {
    const told: ScheduledRetry[] = [];
    const onRetry = (event: ScheduledRetry) => told.push(event);
    assertWhole(await download(server, { onRetry }));
    assertEquals(server.requests.map(rangeStart), [0, 100_000, 200_000]);
    assertEquals(server.requests[1].headers.get("if-range"), '"v1"');
    assertEquals(
      told.map(({ error, attempt }) => [error.code, attempt]),
      [["transfer_interrupted", 2], ["transfer_interrupted", 3]],
    );
  },
);

test(
  "HTTPS transfer: duplicates no bytes when the server ignores the range",
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
  "HTTPS transfer: accepts a Content-Range with unknown total size",
  async (exchange) => {
    const from = rangeStart(exchange);
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
  "HTTPS transfer: rejects a range that starts later than requested",
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
  "HTTPS transfer: reads a chunked body without Content-Length to its end",
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
    assertEquals(got.bytes, Infinity);
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
    `HTTPS transfer: stops when Retry-After asks for an hour, given as ${form}`,
    async (exchange) => {
      await exchange.head(429, { "retry-after": pause() });
    },
    async (server) => {
      const { message } = await expectFailure(
        "rate_limited",
        () => download(server),
      );
      assertMatch(message, /answered 429 and asks to wait 60 min$/);
      assertEquals(server.requests.length, 1);
    },
  );
}

test(
  "HTTPS transfer: waits for the Retry-After time",
  async (exchange) => {
    if (exchange.number > 1) return await serveRange(exchange, FILE.length);
    await exchange.head(503, { "retry-after": "0.25" });
  },
  async (server) => {
    const retries: ScheduledRetry[] = [];
    const onRetry = (retry: ScheduledRetry) => retries.push(retry);
    assertWhole(await download(server, { onRetry }));
    assertEquals(retries.map(({ delayMs }) => delayMs), [250]);
  },
);

test(
  "HTTPS transfer: fails when interruptions exceed the retry budget",
  async (exchange) => {
    await serveRange(exchange, rangeStart(exchange) + 1000);
  },
  async (server) => {
    await expectFailure(
      "transfer_interrupted",
      () => download(server, { retries: 2 }),
    );
    assertEquals(server.requests.length, 3);
  },
);

test(
  "HTTPS transfer: retries when the server closes the connection without a response",
  async (exchange) => {
    if (exchange.number === 3) await serveRange(exchange, FILE.length);
  },
  async (server) => {
    assertWhole(await download(server));
    assertEquals(server.requests.length, 3);
  },
);

const never = (exchange: TlsExchange) => exchange.stall();

test(
  "HTTPS transfer: reports a stalled body as transfer_stalled",
  async (exchange) => {
    await serveRange(exchange, 1000);
    await never(exchange);
  },
  async (server) => {
    const error = await expectFailure(
      "transfer_stalled",
      () => download(server, { retries: 0, stallTimeoutMs: 200 }),
    );
    assert(error.hint?.includes("--stall-timeout"));
  },
);

test(
  "HTTPS transfer: reports a server that never responds as transfer_stalled",
  never,
  async (server) => {
    const options = { retries: 0, stallTimeoutMs: 200 };
    await expectFailure("transfer_stalled", () => download(server, options));
  },
);

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
  "HTTPS transfer: maps each status to an error code and retries only transient ones",
  async (exchange) => {
    await exchange.head(Number(exchange.path.slice(1, 4)), {
      "content-length": 0,
    });
  },
  async (server) => {
    for (const [status, code, attempts] of STATUSES) {
      server.requests.length = 0;
      const path = `/${status}/certificate-tls-dns-refused?sig=s3cr3t`;
      const error = await expectFailure(
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
  "HTTPS transfer: rejects an untrusted certificate without a retry",
  async (exchange) => {
    await serveRange(exchange, FILE.length);
  },
  async (server) => {
    const error = await expectFailure(
      "tls_failed",
      () => begin(`${server.url}/refused-dns-connect`, { caFile: undefined }),
    );
    assert(error.hint?.includes("--ca-file"));
    assertEquals(server.requests.length, 0);
  },
);

test(
  "HTTPS transfer: reports a missing or malformed CA file with its path",
  async () => {
  },
  async (server) => {
    const lostFile = `${certificate().caFile}.none`;
    const lost = await expectFailure(
      "file_unreadable",
      () => download(server, { caFile: lostFile }),
    );
    assert(lost.message.includes(lostFile), lost.message);
    await Deno.writeTextFile(
      lostFile,
      "-----BEGIN CERTIFICATE-----\nnonsense\n",
    );
    const bad = await expectFailure(
      "tls_failed",
      () => download(server, { caFile: lostFile }),
    );
    assert(bad.message.includes(lostFile), bad.message);
  },
);

test(
  "HTTPS transfer: rejects with the abort reason during the body",
  async (exchange) => {
    await serveRange(exchange, 1000);
    await never(exchange);
  },
  async (server) => {
    const abort = new AbortController();
    const { signal } = abort;
    await using begun = await begin(`${server.url}/a`, { signal });
    await assertRejects(
      () =>
        begun.transfer.fill(memoryTarget(begun.end), () => {
          abort.abort(new Error("enough"));
        }),
      Error,
      "enough",
    );
  },
);

const waiting = new AbortController();
test(
  "HTTPS transfer: rejects with the abort reason while waiting for a response",
  async (exchange) => {
    waiting.abort(new Error("enough"));
    await never(exchange);
  },
  async (server) => {
    const { signal } = waiting;
    const begun = () => begin(`${server.url}/a`, { signal });
    await assertRejects(begun, Error, "enough");
  },
);

test(
  "HTTPS transfer: disposing cancels an unread response",
  async (exchange) => {
    await serveRange(exchange, 1000);
    await never(exchange);
  },
  async (server) => {
    await using _unread = await begin(`${server.url}/a`);
  },
);

Deno.test("HTTPS transfer: distinguishes a refused connection from an unknown host", async () => {
  const options = { retries: 0, caFile: undefined };
  await expectFailure(
    "connection_failed",
    () => begin("https://127.0.0.1:2/dns-certificate", options),
  );
  await expectFailure(
    "dns_failed",
    () => begin("https://certificate.tls.invalid/refused", options),
  );
});

Deno.test("HTTPS transfer: reports a server without TLS as tls_failed", async () => {
  await using server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    () => new Response("x"),
  );
  const url = `https://127.0.0.1:${server.addr.port}/`;
  const options = { retries: 0, caFile: undefined };
  await expectFailure("tls_failed", () => begin(url, options));
});

for (
  const [what, says] of [["stated in Content-Length", true], [
    "sent without Content-Length",
    false,
  ]] as const
) {
  test(
    `HTTPS transfer: rejects a file above maxBytes ${what}`,
    async (it) => {
      await it.head(200, says ? { "content-length": 1000 } : {});
      await it.body(FILE.subarray(0, 1000));
    },
    async (server) => {
      assertEquals(
        (await download(server, { maxBytes: 1000 })).read.length,
        1000,
      );
      const { message, hint } = await expectFailure(
        "artifact_unsafe",
        () => download(server, { maxBytes: 999 }),
      );
      assertEquals(
        message,
        `Cannot download ${server.url}/image.qcow2: the file is larger than the limit of 999 bytes`,
      );
      assertEquals(
        hint,
        "for an image, download the file and set image.qcow2 in the manifest to its path; for a checksum list, pass the digest: --sha256 DIGEST",
      );
      // There is no retry.
      assertEquals(server.requests.length, 2);
    },
  );
}

test(
  "HTTPS transfer: accepts a file of 256 GiB and rejects a larger one",
  async (it) => {
    const size = 256 * 1024 ** 3 + it.number - 1;
    await it.head(200, { "content-length": size });
    await it.body(FILE.subarray(0, 1));
    await it.stall();
  },
  async ({ url }) => {
    {
      await using begun = await begin(url);
      assertEquals(begun.end, 256 * 1024 ** 3);
    }
    const { message } = await expectFailure(
      "artifact_unsafe",
      () => begin(url),
    );
    assert(message.endsWith(" limit of 274877906944 bytes"), message);
  },
);

test(
  "HTTPS transfer: rejects more bytes than Content-Length announced",
  async (it) => {
    if (it.number === 1) {
      await it.head(200, { "content-length": 600 });
      return await it.body(FILE.subarray(0, 300));
    }
    await it.head(206, {
      "content-length": 301,
      "content-range": "bytes 300-599/600",
    });
    await it.body(FILE.subarray(300, 601));
  },
  async (server) => {
    const { message, hint } = await expectFailure(
      "checksum_mismatch",
      () => download(server),
    );
    assertEquals(
      message,
      `Cannot download ${server.url}/image.qcow2: the server sent more than the 600 bytes it announced`,
    );
    assertEquals(
      hint,
      "check the server and any proxy; the downloaded bytes were discarded",
    );
  },
);

test(
  "HTTPS transfer: counts missing responses and interruptions in one retry budget",
  async (it) => {
    if (it.number % 2 === 0) await serveRange(it, rangeStart(it) + 100);
  },
  async (server) => {
    await expectFailure(
      "transfer_interrupted",
      () => download(server, { retries: 3 }),
    );
    assertEquals(server.requests.map(rangeStart), [0, 0, 100, 100]);
  },
);

test(
  "HTTPS transfer: reports a response that ends before the file does as interrupted",
  async (it) => {
    const from = rangeStart(it);
    if (from === 0) return await serveRange(it, 299_700);
    const to = Math.min(from + 100, FILE.length);
    await it.head(206, {
      "content-length": to - from,
      "content-range": `bytes ${from}-${to - 1}/${FILE.length}`,
    });
    await it.body(FILE.subarray(from, to));
  },
  async (server) => {
    const { message } = await expectFailure(
      "transfer_interrupted",
      () => download(server, { retries: 1 }),
    );
    assertEquals(
      message,
      `The transfer from ${server.url}/image.qcow2 was interrupted at 299800 of 300000 bytes`,
    );
    assertWhole(await download(server, { retries: 3 }));
  },
);
