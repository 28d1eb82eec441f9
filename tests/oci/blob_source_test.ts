import { assert, assertEquals, assertRejects } from "@std/assert";
import { ToolsmithError } from "../../lib/errors.ts";
import { blobSource } from "../../lib/oci/_blob_source.ts";
import { RetryAfterError } from "../../lib/system/retry.ts";
import { RangesUnavailableError } from "../../lib/transfer/byte_source.ts";

const BLOB = { digest: `sha256:${"a".repeat(64)}`, size: 100 };
const OWN = new URL("https://reg.example/v2/o/vm/blobs/x");
const SIGNED = new URL("https://cdn.example/x?signature=1");
const { signal } = new AbortController();

/** Creates a response that records whether its body was cancelled. */
function answer(status: number, headers: Record<string, string> = {}) {
  const seen = { cancelled: false };
  const body = new ReadableStream({
    type: "bytes",
    cancel() {
      seen.cancelled = true;
    },
  });
  const bare = [204, 304].includes(status);
  const response = new Response(bare ? null : body, { status, headers });
  return { response, seen };
}

const RIGHT = { "content-range": "bytes 10-19/100" };

/** Creates a source with these responses, and records the requests. */
function made(registry: Response[], storage: Response[] = []) {
  const asked: string[] = [];
  const repository: Parameters<typeof blobSource>[0] = {
    isRegistryUrl: (url) => url === OWN,
    get(path, { headers }) {
      asked.push(`${path} ${new Headers(headers).get("range")}`);
      const url = storage.length > 0 ? SIGNED : OWN;
      return Promise.resolve([registry.shift()!, url]);
    },
    getAnonymously(url, { headers }) {
      asked.push(`${url.host} ${new Headers(headers).get("range")}`);
      return Promise.resolve(storage.shift()!);
    },
  };
  return { source: blobSource(repository, "reg.example", BLOB), asked };
}

/** Requests the bytes 10 to 19, and returns how the response was interpreted. */
async function opened(status: number, headers: Record<string, string> = {}) {
  const { response, seen } = answer(status, headers);
  try {
    const { source } = made([response]);
    const { start, end } = await source.requestRange(10, 20, signal);
    assertEquals(seen.cancelled, false);
    return start === 0 && end === 100
      ? "whole"
      : start === 10 && end === 20
      ? "range"
      : [start, end];
  } catch (error) {
    assertEquals(seen.cancelled, response.body !== null, "an open body");
    if (error instanceof RangesUnavailableError) return error.message;
    assert(error instanceof ToolsmithError, String(error));
    return [
      error.code,
      error instanceof RetryAfterError ? error.retryAfterMs : 0,
    ];
  }
}

const RANGES: [string, Record<string, string>, unknown][] = [
  ["the requested range", RIGHT, "range"],
  ["an unknown total size", {
    "content-range": "bytes 10-19/*",
  }, "range"],
  ["a matching Content-Length", {
    ...RIGHT,
    "content-length": "10",
    "content-encoding": "identity",
  }, "range"],
  ["another start", {
    "content-range": "bytes 11-19/100",
  }, 'reg.example answered bytes 10-19 with Content-Range "bytes 11-19/100"'],
  ["another end", {
    "content-range": "bytes 10-20/100",
  }, 'reg.example answered bytes 10-19 with Content-Range "bytes 10-20/100"'],
  [
    "no Content-Range",
    {},
    'reg.example answered bytes 10-19 with Content-Range ""',
  ],
  ["an overlong Content-Range", {
    "content-range": "x".repeat(99),
  }, `reg.example answered bytes 10-19 with Content-Range "${"x".repeat(60)}"`],
  ["another total size", {
    "content-range": "bytes 10-19/101",
  }, "reg.example has a blob of 101 bytes, the manifest says 100"],
  ["another Content-Length", {
    ...RIGHT,
    "content-length": "11",
  }, "reg.example sent Content-Length 11, expected 10"],
  ["a Content-Encoding", {
    ...RIGHT,
    "content-encoding": "y".repeat(50),
  }, `reg.example sent the blob with Content-Encoding ${"y".repeat(40)}…`],
];

for (const [name, headers, expected] of RANGES) {
  Deno.test(`blobSource() checks a 206 with ${name}: ${expected}`, async () => {
    assertEquals(await opened(206, headers), expected);
  });
}

Deno.test("blobSource() accepts a 200 as the whole blob only if its length is the blob's size", async () => {
  assertEquals(await opened(200), "whole");
  assertEquals(await opened(200, { "content-length": "100" }), "whole");
  assertEquals(
    await opened(200, { "content-length": "10" }),
    "reg.example sent Content-Length 10, expected 100",
  );
  const empty = new Response(null, { status: 206, headers: RIGHT });
  await assertRejects(
    () => made([empty]).source.requestRange(10, 20, signal),
    RangesUnavailableError,
    "reg.example answered without a body",
  );
});

Deno.test("blobSource() throws a transient error for 408, 429, 500, 502, 503 and 504, and RangesUnavailableError for other statuses", async () => {
  const after = { "retry-after": "7" };
  assertEquals(await opened(408, after), ["registry_unavailable", 7000]);
  assertEquals(await opened(429, after), ["rate_limited", 7000]);
  for (const status of [500, 502, 503, 504]) {
    assertEquals(await opened(status), ["registry_unavailable", 0]);
  }
  for (
    const status of [204, 400, 401, 404, 407, 409, 416, 428, 430, 499, 501]
  ) {
    const said = `reg.example answered ${status}`;
    assertEquals(await opened(status), said);
  }
});

Deno.test("blobSource() requests the redirect target directly until the target expires or redirects again", async () => {
  const right = () => answer(206, RIGHT).response;
  const asks = "bytes=10-19";
  const path = `blobs/${BLOB.digest} ${asks}`;
  const direct = `cdn.example ${asks}`;
  const again = [301, 302, 303, 307, 308, 400, 401, 403, 404, 410];
  for (const status of again) {
    const bad = answer(status);
    const { source, asked } = made(
      [right(), right()],
      [right(), bad.response, right()],
    );
    for (let count = 0; count < 4; count++) {
      assertEquals((await source.requestRange(10, 20, signal)).start, 10);
    }
    assertEquals(asked, [path, direct, direct, path, direct], `${status}`);
    assertEquals(bad.seen.cancelled, true);
  }
  // These statuses do not mean that the URL has expired.
  const others = [300, 304, 402, 405, 409, 411, 416, 429, 503];
  for (const status of others) {
    const { source, asked } = made(
      [right()],
      [answer(status).response, right()],
    );
    await source.requestRange(10, 20, signal);
    const error = await assertRejects(() =>
      source.requestRange(10, 20, signal)
    );
    assert((error as Error).message.includes("cdn.example"), String(error));
    assertEquals((await source.requestRange(10, 20, signal)).start, 10);
    assertEquals(asked, [path, direct, direct]);
  }
});

Deno.test("blobSource() accepts the response of a redirect target that expired for another connection meanwhile", async () => {
  const right = () => answer(206, RIGHT).response;
  const late = Promise.withResolvers<Response>();
  const renewed = Promise.withResolvers<void>();
  const direct = [late.promise, answer(403).response];
  const registry = [Promise.resolve(), renewed.promise];
  const source = blobSource(
    {
      isRegistryUrl: (url) => url.host === OWN.host,
      get: () => registry.shift()!.then(() => [right(), SIGNED]),
      getAnonymously: () => Promise.resolve(direct.shift()!),
    },
    "reg.example",
    BLOB,
  );
  const request = () => source.requestRange(10, 20, signal);
  await request();
  const first = request();
  const second = request();
  while (registry.length > 0) await Promise.resolve();
  late.resolve(right());
  assertEquals((await first).start, 10);
  renewed.resolve();
  assertEquals((await second).start, 10);
});

Deno.test("blobSource() requests each range from a registry that does not redirect", async () => {
  const right = () => answer(206, RIGHT).response;
  const { source, asked } = made([right(), right()]);
  await source.requestRange(10, 20, signal);
  await source.requestRange(10, 20, signal);
  assertEquals(asked.map((it) => it.split(" ")[0]), [
    `blobs/${BLOB.digest}`,
    `blobs/${BLOB.digest}`,
  ]);
  assertEquals(source.displayName, "reg.example");
});

Deno.test("blobSource() throws RangesUnavailableError if the first connection fails, and a connection error after a response", async () => {
  for (
    const code of ["connection_failed", "dns_failed", "tls_failed"] as const
  ) {
    const lost = new ToolsmithError(code, "no way");
    const answers = [() => Promise.reject(lost)];
    const repository: Parameters<typeof blobSource>[0] = {
      isRegistryUrl: () => true,
      get: () => answers.shift()!(),
      getAnonymously: () => Promise.reject(new Error("asked")),
    };
    const source = blobSource(repository, "reg.example", BLOB);
    const open = () => source.requestRange(10, 20, signal);
    const { message, cause } = await assertRejects(
      open,
      RangesUnavailableError,
    );
    assertEquals([message, cause], ["no way", lost]);
    answers.push(() => Promise.resolve([answer(503).response, OWN]) as never);
    await assertRejects(open, ToolsmithError, "answered 503");
    answers.push(() => Promise.reject(lost));
    assertEquals(await open().catch((error) => error), lost);
  }
});
