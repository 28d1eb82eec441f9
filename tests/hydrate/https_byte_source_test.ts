import { assertEquals } from "@std/assert";
import { httpsByteSource } from "../../lib/hydrate/_https_byte_source.ts";
import { createHttpClient } from "../../lib/system/http_client.ts";
import { certificateOfFile } from "../support/certificates.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { requires } from "../support/parts.ts";
import {
  startTlsServer,
  type TlsExchange,
  type TlsServer,
} from "../support/tls_server.ts";

const FILE = new TextEncoder().encode("0123456789");
const { ignore } = requires("openssl");
const certificate = certificateOfFile(ignore);
const { signal } = new AbortController();

/** What each test gets. */
interface Bench {
  server: TlsServer;
  /** Requests the file from that byte on, up to `to`, and reads the body. */
  read: (
    from: number,
    to?: number,
  ) => Promise<{ text: string; from: number; to: number }>;
  /** The values of a header in all requests so far. */
  sent: (name: string) => (string | undefined)[];
}

/** Runs a test with a server and a source of its own. */
function test(
  name: string,
  answer: (exchange: TlsExchange) => Promise<void>,
  body: (bench: Bench) => Promise<void>,
) {
  Deno.test({
    name,
    ignore,
    async fn() {
      await using server = await startTlsServer(certificate(), answer);
      using client = await createHttpClient(certificate().caFile);
      const url = new URL("/a.qcow2?sig=secret", server.url);
      const source = httpsByteSource(url, client);
      await body({
        server,
        async read(start, requestedEnd = Infinity) {
          const { start: from, end, body } = await source.requestRange(
            start,
            requestedEnd,
            signal,
          );
          return { text: await new Response(body).text(), from, to: end };
        },
        sent: (name) => server.requests.map(({ headers }) => headers.get(name)),
      });
    },
  });
}

/** Answers with bytes of the file. */
async function send(
  exchange: TlsExchange,
  status: number,
  headers: Record<string, string | number>,
  bytes: Uint8Array = FILE,
) {
  await exchange.head(status, { "content-length": bytes.length, ...headers });
  await exchange.body(bytes);
}

test(
  "httpsByteSource() sends no Range for a whole file, and Range with If-Range for the rest",
  (it) =>
    it.number === 1
      ? send(it, 200, { etag: '"v1"' })
      : send(it, 206, { "content-range": "bytes 1-9/10" }, FILE.subarray(1)),
  async ({ read, sent, server }) => {
    assertEquals(await read(0), { text: "0123456789", from: 0, to: 10 });
    assertEquals(await read(1), { text: "123456789", from: 1, to: 10 });
    assertEquals(sent("range"), [undefined, "bytes=1-"]);
    assertEquals(sent("if-range"), [undefined, '"v1"']);
    assertEquals(sent("accept-encoding"), ["identity", "identity"]);
    assertEquals(server.requests[0].path, "/a.qcow2?sig=secret");
  },
);

test(
  "httpsByteSource() requests a range that ends before the end of the file",
  (it) => {
    const [, from, last] = /(\d+)-(\d+)/.exec(it.headers.get("range")!)!;
    const bytes = FILE.subarray(Number(from), Number(last) + 1);
    return send(
      it,
      206,
      { "content-range": `bytes ${from}-${last}/10` },
      bytes,
    );
  },
  async ({ read, sent }) => {
    assertEquals(await read(4, 7), { text: "456", from: 4, to: 7 });
    assertEquals(await read(0, 2), { text: "01", from: 0, to: 2 });
    assertEquals(sent("range"), ["bytes=4-6", "bytes=0-1"]);
  },
);

test(
  "httpsByteSource() sends the ETag of the first response, or of a later 200, as If-Range",
  (it) => {
    const etag = `"v${it.number}"`;
    const { number } = it;
    return number === 3
      ? send(it, 200, { etag })
      : send(it, 206, { etag, "content-range": "bytes 4-9/10" });
  },
  async ({ read, sent }) => {
    for (let nth = 0; nth < 5; nth++) await read(4);
    assertEquals(sent("if-range"), [undefined, '"v1"', '"v1"', '"v3"', '"v3"']);
  },
);

test(
  "httpsByteSource() accepts a 200 without Content-Length in response to a range request",
  async (it) => {
    await it.head(200, {});
    await it.body(FILE);
  },
  async ({ read }) => {
    const whole = { text: "0123456789", from: 0, to: Infinity };
    assertEquals(await read(4), whole);
  },
);

test(
  "httpsByteSource() rejects a Content-Range that starts at another byte",
  (it) => {
    const range = ["bytes 5-9/10", "bytes */10", undefined][it.number - 1];
    return send(it, 206, range ? { "content-range": range } : {});
  },
  async ({ read, server }) => {
    for (const _ of [1, 2, 3]) {
      const { message, hint } = await expectFailure(
        "transfer_interrupted",
        () => read(4),
      );
      assertEquals(
        message,
        `Cannot resume the download of ${server.url}/a.qcow2 at byte 4: the server sent a different range`,
      );
      assertEquals(hint, "try again");
    }
  },
);

test(
  "httpsByteSource() requests the whole file after 416 Range Not Satisfiable",
  (it) =>
    it.number === 1
      ? send(it, 416, { "content-range": "bytes */1" })
      : send(it, 200, {}),
  async ({ read, sent }) => {
    assertEquals(await read(1), { text: "0123456789", from: 0, to: 10 });
    assertEquals(sent("range"), ["bytes=1-", undefined]);
  },
);

test(
  "httpsByteSource() throws for an error status, with the URL",
  (it) => send(it, it.number === 1 ? 416 : 503, {}),
  async ({ read, server }) => {
    const shown = `Cannot download ${server.url}/a.qcow2: the server answered`;
    const first = await expectFailure("failed", () => read(0));
    assertEquals(first.message, `${shown} 416`);
    const second = await expectFailure("registry_unavailable", () => read(4));
    assertEquals(second.message, `${shown} 503`);
    assertEquals(server.requests.length, 2);
  },
);
