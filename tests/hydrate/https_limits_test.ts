import { assert, assertEquals } from "@std/assert";
import { type HttpsOptions, openHttps } from "../../lib/hydrate/_https.ts";
import type { Retry } from "../../lib/system/retry.ts";
import { certificateOfFile } from "../support/certificates.ts";
import { failure } from "../support/failure.ts";
import { needs } from "../support/parts.ts";
import {
  type Exchange,
  fromOf,
  startTlsServer,
  type TlsServer,
} from "../support/tls_server.ts";

const FILE = crypto.getRandomValues(new Uint8Array(1000));
const { ignore } = needs("openssl");
const certificate = certificateOfFile(ignore);

/** What a test has at hand. */
interface Bench {
  server: TlsServer;
  /** Where requests began. */
  asked: () => number[];
  /** Reads the file. */
  read: (options?: HttpsOptions) => Promise<{
    bytes: number | null;
    from: number;
    got: Uint8Array;
  }>;
}

/** Runs a test with a server of its own. */
function test(
  name: string,
  answer: (exchange: Exchange) => Promise<void>,
  body: (bench: Bench) => Promise<void>,
) {
  Deno.test({
    name,
    ignore,
    async fn() {
      await using server = await startTlsServer(certificate(), answer);
      const { caFile } = certificate();
      const url = new URL("/a?sig=secret", server.url);
      await body({
        server,
        asked: () => server.requests.map(fromOf),
        async read(options) {
          const usual = { caFile, retryDelayMs: 1 };
          using file = await openHttps(url, { ...usual, ...options });
          const { bytes, from, chunks } = file;
          const got: number[] = [];
          for await (const chunk of chunks) {
            assert(chunk.length > 0);
            got.push(...chunk);
          }
          return { bytes, from, got: new Uint8Array(got) };
        },
      });
    },
  });
}

/** Serves the rest of a file of that size, as far as it goes. */
async function rest(
  it: Exchange,
  options: { size?: number; until?: number } = {},
) {
  const { size = FILE.length, until = size } = options;
  const from = fromOf(it);
  await it.head(from > 0 ? 206 : 200, {
    "content-length": size - from,
    ...from > 0 ? { "content-range": `bytes ${from}-${size - 1}/${size}` } : {},
  });
  await it.body(FILE.subarray(from, Math.max(from, until)));
}

/** Serves a file without its size. */
async function unsized(it: Exchange) {
  await it.head(200, {});
  await it.body(FILE);
}

for (const [what, answer] of Object.entries({ rest, unsized })) {
  const size = what === "rest" ? 1000 : null;
  test(
    `a file has as many bytes as allowed, and no more (${what})`,
    (it) => answer(it),
    async ({ read, server }) => {
      const whole = { bytes: size, from: 0, got: FILE };
      assertEquals(await read({ maxBytes: 1000 }), whole);
      const { message, hint } = await failure(
        "artifact_unsafe",
        () => read({ maxBytes: 999 }),
      );
      assertEquals(
        message,
        `Cannot download ${server.url}/a: it has more than 999 bytes`,
      );
      assertEquals(
        hint,
        "fetch it yourself: a manifest can name a file, and --sha256 a digest",
      );
      // It is not asked for again.
      assertEquals(server.requests.length, 2);
    },
  );
}

test("256 GiB of a file are read, and no more", async (it) => {
  const size = 256 * 1024 ** 3 + it.number - 1;
  await it.head(200, { "content-length": size });
  await it.stall();
}, async ({ server }) => {
  const { caFile } = certificate();
  const url = new URL("/a", server.url);
  {
    using file = await openHttps(url, { caFile });
    assertEquals(file.bytes, 256 * 1024 ** 3);
  }
  const { message } = await failure(
    "artifact_unsafe",
    () => openHttps(url, { caFile }),
  );
  assert(message.endsWith(" more than 274877906944 bytes"), message);
});

test(
  "what is there of a file of the same size is gone on with",
  (it) => rest(it),
  async ({ read, asked }) => {
    const resume = { from: 400, size: 1000 };
    const { bytes, from, got } = await read({ resume });
    assertEquals([bytes, from, got], [1000, 400, FILE.slice(400)]);
    assertEquals(asked(), [400]);
  },
);

test(
  "what is there of a file of another size is asked for again",
  (it) => rest(it),
  async ({ read, asked }) => {
    const { bytes, from, got } = await read({
      resume: { from: 400, size: 999 },
    });
    assertEquals([bytes, from, got], [1000, 0, FILE]);
    assertEquals(asked(), [400, 0]);
  },
);

test(
  "a server that sends all where the rest was asked for is read from its start",
  async (it) => {
    await it.head(200, { "content-length": 1000 });
    await it.body(FILE);
  },
  async ({ read, asked }) => {
    const { from, got } = await read({ resume: { from: 400, size: 999 } });
    assertEquals([from, got, asked()], [0, FILE, [400]]);
  },
);

test(
  "a cut is told as often as it is tried again",
  (it) => {
    const until = fromOf(it) + 100;
    return rest(it, { until });
  },
  async ({ read, server, asked }) => {
    const told: Retry[] = [];
    const onRetry = (retry: Retry) => told.push(retry);
    // Three times, where nothing else is said.
    const { hint } = await failure(
      "transfer_interrupted",
      () => read({ onRetry }),
    );
    assert(hint);
    assertEquals(asked(), [0, 100, 200, 300]);
    for (const [nth, { error, attempt, attempts, delayMs }] of told.entries()) {
      assertEquals([attempt, attempts], [nth + 2, 4]);
      assertEquals(error.code, "transfer_interrupted");
      assert(delayMs <= 2 ** nth * 1.25 + 0.5, `${delayMs}`);
    }
    assertEquals(told.length, 3);
    server.requests.length = 0;
    await failure("transfer_interrupted", () => read({ retries: 0 }));
    assertEquals(asked(), [0]);
  },
);

test(
  "an answer that ends well before the file does is a cut, too",
  async (it) => {
    const from = fromOf(it);
    if (from === 0) return await rest(it, { until: 300 });
    const to = Math.min(from + 100, 1000);
    await it.head(206, {
      "content-length": to - from,
      "content-range": `bytes ${from}-${to - 1}/1000`,
    });
    await it.body(FILE.subarray(from, to));
  },
  async ({ read, server, asked }) => {
    const { message } = await failure(
      "transfer_interrupted",
      () => read({ retries: 1 }),
    );
    assertEquals(
      message,
      `The transfer of ${server.url}/a was cut at 400 of 1000 bytes`,
    );
    server.requests.length = 0;
    assertEquals((await read({ retries: 7 })).got, FILE);
    assertEquals(asked(), [0, 300, 400, 500, 600, 700, 800, 900]);
  },
);

test("failures to answer and cuts are counted together", async (it) => {
  if (it.number % 2 === 1) return;
  await rest(it, { until: fromOf(it) + 100 });
}, async ({ read, asked }) => {
  await failure("transfer_interrupted", () => read({ retries: 3 }));
  assertEquals(asked(), [0, 0, 100, 100]);
});

test("what is refused is not asked for again", async (it) => {
  await it.head(404, { "content-length": 0 });
}, async ({ read, asked }) => {
  await failure("not_found", () => read());
  assertEquals(asked(), [0]);
});

test(
  "a server that sends more than it announced is not believed",
  async (it) => {
    if (it.number === 1) return await rest(it, { size: 600, until: 300 });
    await it.head(206, {
      "content-length": 301,
      "content-range": "bytes 300-599/600",
    });
    await it.body(FILE.subarray(300, 601));
  },
  async ({ read, server }) => {
    const { message, hint } = await failure("checksum_mismatch", () => read());
    assertEquals(
      message,
      `Cannot download ${server.url}/a: the server sent more than the 600 bytes it announced`,
    );
    assertEquals(
      hint,
      "nothing was kept; the server or a proxy on the way is broken",
    );
  },
);

test(
  "a server that begins anew is followed to where it was cut, and not doubled",
  async (it) => {
    await it.head(200, { "content-length": 1000 });
    // In pieces, so that the cut lies within one.
    const pieces = it.number === 1 ? [350] : [100, 100, 100, 100, 1, 599];
    let at = 0;
    for (const length of pieces) {
      await it.body(FILE.subarray(at, at += length));
      await new Promise((done) => setTimeout(done, 5));
    }
  },
  async ({ read, asked }) => {
    const { got } = await read();
    assertEquals([got, asked()], [FILE, [0, 350]]);
  },
);
