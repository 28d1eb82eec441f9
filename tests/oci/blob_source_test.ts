import { assert, assertEquals, assertRejects } from "@std/assert";
import { ToolsmithError } from "../../lib/errors.ts";
import { blobSource } from "../../lib/oci/_blob_source.ts";
import { RangesUnavailable } from "../../lib/oci/_ranges_unavailable.ts";
import type { RegistryGet } from "../../lib/oci/_registry_get.ts";
import { BusyError } from "../../lib/system/retry_after.ts";

const BLOB = { digest: `sha256:${"a".repeat(64)}`, size: 100 };
const OWN = new URL("https://reg.example/v2/o/vm/blobs/x");
const SIGNED = new URL("https://cdn.example/x?signature=1");
const { signal } = new AbortController();

/** An answer, and whether its body was let go. */
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

/** A source whose registry and storage answer so, and what they are asked. */
function made(registry: Response[], storage: Response[] = []) {
  const asked: string[] = [];
  const get: RegistryGet = {
    host: "reg.example",
    isOwn: (url) => url === OWN,
    get(path, { headers }) {
      asked.push(`${path} ${new Headers(headers).get("range")}`);
      const url = storage.length > 0 ? SIGNED : OWN;
      return Promise.resolve([registry.shift()!, url]);
    },
    getDirect(url, { headers }) {
      asked.push(`${url.host} ${new Headers(headers).get("range")}`);
      return Promise.resolve(storage.shift()!);
    },
  };
  return { source: blobSource(get, BLOB), asked };
}

/** What comes of one answer to the bytes 10 to 19. */
async function opened(status: number, headers: Record<string, string> = {}) {
  const { response, seen } = answer(status, headers);
  try {
    const { kind } = await made([response]).source.open(10, 20, signal);
    assertEquals(seen.cancelled, false);
    return kind;
  } catch (error) {
    assertEquals(seen.cancelled, response.body !== null, "an open body");
    if (error instanceof RangesUnavailable) return error.message;
    assert(error instanceof ToolsmithError, String(error));
    return [error.code, error instanceof BusyError ? error.pauseMs : 0];
  }
}

const RANGES: [string, Record<string, string>, unknown][] = [
  ["the range", RIGHT, "range"],
  ["one of a size that is not said", {
    "content-range": "bytes 10-19/*",
  }, "range"],
  ["its length, too", {
    ...RIGHT,
    "content-length": "10",
    "content-encoding": "identity",
  }, "range"],
  ["another beginning", {
    "content-range": "bytes 11-19/100",
  }, 'reg.example answers 10-19 with "bytes 11-19/100"'],
  ["another end", {
    "content-range": "bytes 10-20/100",
  }, 'reg.example answers 10-19 with "bytes 10-20/100"'],
  ["no range", {}, 'reg.example answers 10-19 with ""'],
  ["a flood", {
    "content-range": "x".repeat(99),
  }, `reg.example answers 10-19 with "${"x".repeat(60)}"`],
  ["another size", {
    "content-range": "bytes 10-19/101",
  }, "reg.example has 101 bytes, the manifest says 100"],
  ["another length", {
    ...RIGHT,
    "content-length": "11",
  }, "reg.example announces 11 bytes, not 10"],
  ["another encoding", {
    ...RIGHT,
    "content-encoding": "y".repeat(50),
  }, `reg.example sends it in the encoding ${"y".repeat(40)}…`],
];

for (const [name, headers, expected] of RANGES) {
  Deno.test(`a 206 with ${name}: ${expected}`, async () => {
    assertEquals(await opened(206, headers), expected);
  });
}

Deno.test("a 200 is the whole, if it has the size of the whole", async () => {
  assertEquals(await opened(200), "whole");
  assertEquals(await opened(200, { "content-length": "100" }), "whole");
  assertEquals(
    await opened(200, { "content-length": "10" }),
    "reg.example announces 10 bytes, not 100",
  );
  const empty = new Response(null, { status: 206, headers: RIGHT });
  await assertRejects(
    () => made([empty]).source.open(10, 20, signal),
    RangesUnavailable,
    "reg.example answers with no body",
  );
});

Deno.test("what may pass is told with the pause that the server asks for, what does not with the status", async () => {
  const after = { "retry-after": "7" };
  assertEquals(await opened(408, after), ["registry_unavailable", 7000]);
  assertEquals(await opened(429, after), ["rate_limited", 7000]);
  for (const status of [500, 502, 503, 504]) {
    assertEquals(await opened(status), ["registry_unavailable", 0]);
  }
  for (
    const status of [204, 400, 401, 404, 407, 409, 416, 428, 430, 499, 501]
  ) {
    const said = `reg.example answers ${status}`;
    assertEquals(await opened(status), said);
  }
});

Deno.test("where the registry has redirected to is asked directly, until the address is no good", async () => {
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
      assertEquals((await source.open(10, 20, signal)).kind, "range");
    }
    assertEquals(asked, [path, direct, direct, path, direct], `${status}`);
    assertEquals(bad.seen.cancelled, true);
  }
  // These say nothing of the address.
  const others = [300, 304, 402, 405, 409, 411, 416, 429, 503];
  for (const status of others) {
    const { source, asked } = made(
      [right()],
      [answer(status).response, right()],
    );
    await source.open(10, 20, signal);
    const error = await assertRejects(() => source.open(10, 20, signal));
    assert((error as Error).message.includes("cdn.example"), String(error));
    assertEquals((await source.open(10, 20, signal)).kind, "range");
    assertEquals(asked, [path, direct, direct]);
  }
});

Deno.test("a registry that serves the blob itself is asked each time", async () => {
  const right = () => answer(206, RIGHT).response;
  const { source, asked } = made([right(), right()]);
  await source.open(10, 20, signal);
  await source.open(10, 20, signal);
  assertEquals(asked.map((it) => it.split(" ")[0]), [
    `blobs/${BLOB.digest}`,
    `blobs/${BLOB.digest}`,
  ]);
  assertEquals(source.host, "reg.example");
});
