import { assertEquals, assertRejects } from "@std/assert";
import {
  type FileRequest,
  requestFile,
} from "../../lib/hydrate/_https_request.ts";
import { httpClient } from "../../lib/system/http_client.ts";
import { certificateOfFile } from "../support/certificates.ts";
import { failure } from "../support/failure.ts";
import { needs } from "../support/parts.ts";
import {
  type Exchange,
  startTlsServer,
  type TlsServer,
} from "../support/tls_server.ts";

const FILE = new TextEncoder().encode("0123456789");
const { ignore } = needs("openssl");
const certificate = certificateOfFile(ignore);

/** What a test has at hand. */
interface Bench {
  server: TlsServer;
  /** Asks for the file; what is not said is the usual. */
  ask: (request?: Partial<FileRequest>) => ReturnType<typeof requestFile>;
  /** Asks for the file, and reads it. */
  read: (request?: Partial<FileRequest>) => Promise<{
    text: string;
    from: number;
    bytes: number | null;
    etag: string | null;
  }>;
  /** The header of each request so far. */
  sent: (name: string) => (string | undefined)[];
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
      using client = await httpClient(certificate().caFile);
      const url = new URL("/a.qcow2?sig=secret", server.url);
      const usual = { from: 0, etag: null, client, signal: undefined };
      const ask: Bench["ask"] = (request) =>
        requestFile(url, { ...usual, stallTimeoutMs: 60_000, ...request });
      await body({
        server,
        ask,
        async read(request) {
          const { body, from, bytes, etag } = await ask(request);
          let text = "";
          for await (const chunk of body) {
            text += new TextDecoder().decode(chunk);
          }
          return { text, from, bytes, etag };
        },
        sent: (name) => server.requests.map(({ headers }) => headers.get(name)),
      });
    },
  });
}

/** Answers with bytes of the file. */
async function send(
  exchange: Exchange,
  status: number,
  headers: Record<string, string | number>,
  bytes: Uint8Array = FILE,
) {
  await exchange.head(status, { "content-length": bytes.length, ...headers });
  await exchange.body(bytes);
}

test(
  "a whole file is asked for without a range, and described by its server",
  (it) => send(it, 200, { etag: '"v1"' }),
  async ({ read, sent, server }) => {
    const whole = { text: "0123456789", from: 0, bytes: 10, etag: '"v1"' };
    assertEquals(await read(), whole);
    // A version says nothing where all is wanted.
    assertEquals(await read({ etag: '"v1"' }), whole);
    assertEquals(sent("range"), [undefined, undefined]);
    assertEquals(sent("if-range"), [undefined, undefined]);
    assertEquals(sent("accept-encoding"), ["identity", "identity"]);
    assertEquals(server.requests[0].path, "/a.qcow2?sig=secret");
  },
);

test(
  "the rest of a file is asked for by its first byte, and by its version if that is known",
  (it) => send(it, 206, { "content-range": "bytes 4-9/10" }, FILE.subarray(4)),
  async ({ read, sent }) => {
    const rest = { text: "456789", from: 4, bytes: 6, etag: null };
    assertEquals(await read({ from: 4 }), rest);
    assertEquals(await read({ from: 4, etag: '"v1"' }), rest);
    assertEquals(sent("range"), ["bytes=4-", "bytes=4-"]);
    assertEquals(sent("if-range"), [undefined, '"v1"']);
  },
);

test(
  "the second byte of a file is the first that a rest can begin with",
  (it) => send(it, 206, { "content-range": "bytes 1-9/10" }, FILE.subarray(1)),
  async ({ read, sent }) => {
    const { text } = await read({ from: 1, etag: '"v1"' });
    assertEquals(text, "123456789");
    assertEquals([sent("range"), sent("if-range")], [["bytes=1-"], ['"v1"']]);
  },
);

test(
  "a server may send all where the rest was asked for, and need not say how much",
  async (it) => {
    await it.head(200, {});
    await it.body(FILE);
  },
  async ({ read }) => {
    const whole = { text: "0123456789", from: 0, bytes: null, etag: null };
    assertEquals(await read({ from: 4, etag: '"v1"' }), whole);
  },
);

test(
  "a range that is not the one that was asked for is refused",
  (it) => {
    const range = ["bytes 5-9/10", "bytes */10", undefined][it.number - 1];
    return send(it, 206, range ? { "content-range": range } : {});
  },
  async ({ ask, server }) => {
    for (const _ of [1, 2, 3]) {
      const { message, hint } = await failure(
        "transfer_interrupted",
        () => ask({ from: 4 }),
      );
      assertEquals(
        message,
        `Cannot go on with ${server.url}/a.qcow2 at byte 4: the server sent others`,
      );
      assertEquals(hint, "try again");
    }
  },
);

test(
  "a file that is shorter by now is asked for from its start",
  (it) =>
    it.number === 1
      ? send(it, 416, { "content-range": "bytes */1" })
      : send(it, 200, {}),
  async ({ read, sent }) => {
    const { text, from } = await read({ from: 1, etag: '"v1"' });
    assertEquals([text, from], ["0123456789", 0]);
    assertEquals(sent("range"), ["bytes=1-", undefined]);
    assertEquals(sent("if-range"), ['"v1"', undefined]);
  },
);

test(
  "a status that is no file is named, also where no range was asked for",
  (it) => send(it, it.number === 1 ? 416 : 503, {}),
  async ({ ask, server }) => {
    const shown = `Cannot download ${server.url}/a.qcow2: the server answered`;
    const first = await failure("failed", () => ask());
    assertEquals(first.message, `${shown} 416`);
    const second = await failure(
      "registry_unavailable",
      () => ask({ from: 4 }),
    );
    assertEquals(second.message, `${shown} 503`);
    assertEquals(server.requests.length, 2);
  },
);

test(
  "a server that says nothing has stalled, before its answer and within it",
  async (it) => {
    if (it.number > 1) {
      await it.head(200, { "content-length": 10 });
      await it.body(FILE.subarray(0, 5));
    }
    await it.stall();
  },
  async ({ read, server }) => {
    for (const stallTimeoutMs of [250, 300]) {
      const { message, hint } = await failure(
        "transfer_stalled",
        () => read({ stallTimeoutMs }),
      );
      assertEquals(
        message,
        `Cannot download ${server.url}/a.qcow2: nothing arrived for ${
          stallTimeoutMs / 1000
        } s`,
      );
      assertEquals(
        hint,
        "try again, or allow more time: --stall-timeout SECONDS",
      );
    }
    assertEquals(server.requests.length, 2);
  },
);

test(
  "a server that breaks off has interrupted the transfer",
  async (it) => {
    await it.head(200, { "content-length": 10 });
    await it.body(FILE.subarray(0, 5));
  },
  async ({ read, server }) => {
    const { message } = await failure("transfer_interrupted", () => read());
    const words = `Cannot download ${server.url}/a.qcow2: it was cut (`;
    assertEquals(message.slice(0, words.length), words);
  },
);

test(
  "who has stopped before asks nobody, and later ends with the reason given",
  async (it) => {
    if (it.number > 1) {
      await it.head(200, { "content-length": 10 });
      await it.body(FILE.subarray(0, 5));
    }
    await it.stall();
  },
  async ({ ask, server }) => {
    const stopped = AbortSignal.abort(new Error("before"));
    await assertRejects(() => ask({ signal: stopped }), Error, "before");
    assertEquals(server.requests.length, 0);

    const waiting = new AbortController();
    const answer = ask({ signal: waiting.signal });
    while (server.requests.length === 0) {
      await new Promise((done) => setTimeout(done, 1));
    }
    waiting.abort(new Error("waiting"));
    await assertRejects(() => answer, Error, "waiting");

    const reading = new AbortController();
    const { body } = await ask({ signal: reading.signal });
    const read = async () => {
      for await (const _ of body) reading.abort(new Error("reading"));
    };
    await assertRejects(read, Error, "reading");
  },
);

test(
  "a transfer that is cancelled ends, whether or not anybody reads it",
  async (it) => {
    await it.head(200, { "content-length": 10 });
    await it.body(FILE.subarray(0, 5));
    await it.stall();
  },
  async ({ ask }) => {
    // Else the server would wait, and a timer stay.
    (await ask()).cancel();
    const { body, cancel } = await ask();
    for await (const _ of body) break;
    cancel();
    const half = await ask();
    const read = async () => {
      for await (const _ of half.body) half.cancel();
    };
    await failure("transfer_interrupted", read);
  },
);

Deno.test("a server that cannot be reached has not cut a transfer", async () => {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr;
  listener.close();
  const url = new URL(`https://127.0.0.1:${port}/a.qcow2`);
  using client = await httpClient(undefined);
  const usual = { from: 0, etag: null, client, signal: undefined };
  await failure(
    "connection_failed",
    () => requestFile(url, { ...usual, stallTimeoutMs: 60_000 }),
  );
});
