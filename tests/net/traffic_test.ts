import { assert, assertEquals, assertRejects } from "@std/assert";
import * as fc from "fast-check";
import { assertLinear } from "../support/assert_linear.ts";
import { serverNameOf } from "../../lib/net/_client_hello.ts";
import { forwardJudged } from "../../lib/net/_traffic.ts";
import { RefusedError } from "../../lib/net/rules.ts";
import {
  clientHello,
  ENCRYPTED_HELLO,
  GREASE,
  serverName,
  type TlsExtensions,
  tlsRecords,
} from "../support/client_hello.ts";

const encoder = new TextEncoder();
const decoder = {
  decode: (bytes: Uint8Array) => String.fromCharCode(...bytes),
};

interface StreamOptions {
  port?: number;
  /** Bytes of each read. @default all of one part */
  step?: number;
  answer?: Promise<string>;
}

/** Forwards parts; returns what was forwarded and why it was refused. */
async function forward(
  parts: (string | Uint8Array)[],
  { port = 80, step, answer = Promise.resolve("") }: StreamOptions = {},
) {
  const chunks = parts.flatMap((part) => {
    const bytes = typeof part === "string"
      ? Uint8Array.from(part, (it) => it.charCodeAt(0))
      : part;
    if (!step) return [bytes];
    return Array.from(
      { length: Math.ceil(bytes.length / step) },
      (_, at) => bytes.subarray(at * step, (at + 1) * step),
    );
  });
  let forwarded = "";
  const refused = await forwardJudged({
    ...{ host: "a.test", port, answer },
    read: () => Promise.resolve(chunks.shift()),
    write(bytes) {
      forwarded += decoder.decode(bytes);
      return Promise.resolve();
    },
  }).then(() => undefined, (error) => {
    assert(error instanceof RefusedError, error);
    return error.message;
  });
  return { forwarded, refused };
}

const head = (...lines: string[]) =>
  lines.map((it) => `${it}\r\n`).join("") + "\r\n";
const GET = head("GET / HTTP/1.1", "Host: a.test");

Deno.test("forwardJudged() forwards TLS for the host, however it arrives", async () => {
  const hellos: TlsExtensions[] = [
    [serverName("a.test")],
    [serverName("A.Test.")],
    [[GREASE, []], [0x1a1a, [0]], serverName("a.test"), [
      21,
      Array(300).fill(0),
    ]],
  ];
  for (const extensions of hellos) {
    const message = clientHello(extensions);
    for (const size of [16384, 100, 1]) {
      const records = tlsRecords(message, size);
      for (const step of [undefined, 1, 7]) {
        for (const port of [443, 80, 8443]) {
          const parts = [records, "more"];
          const { forwarded, refused } = await forward(parts, { port, step });
          assertEquals(refused, undefined);
          assertEquals(forwarded, decoder.decode(records) + "more");
        }
      }
    }
  }
});

Deno.test("forwardJudged() refuses TLS for another host, without a name, or with an encrypted one, and forwards nothing", async () => {
  const name = serverName("a.test");
  const cases: [TlsExtensions | undefined, RegExp][] = [
    [[serverName("b.test")], /^TLS server name "b\.test"$/],
    [[serverName("a.test\0.b.test")], /server name/],
    [[serverName("x.a.test")], /server name/],
    [[serverName("")], /without server name/],
    [[], /without server name/],
    [undefined, /without server name/],
    [[name, ENCRYPTED_HELLO], /ECH/],
    [[ENCRYPTED_HELLO, name], /ECH/],
    [[name, [0xffce, [1]]], /ECH/],
    [[name, name], /malformed/],
    [[[0, []]], /malformed/],
    [[[0, [...name[1], 0]]], /malformed/],
    [[[0, [0, 4, 1, 0, 1, 97]]], /malformed/],
    // A list of two names.
    [[[0, [0, 8, 0, 0, 1, 97, 0, 0, 1, 98]]], /malformed/],
  ];
  for (const [extensions, reason] of cases) {
    for (const port of [443, 80, 8443]) {
      const records = tlsRecords(clientHello(extensions));
      const { forwarded, refused } = await forward([records], { port });
      assertEquals(forwarded, "");
      assert(reason.test(refused!), `${refused} ${reason}`);
    }
  }
});

Deno.test("forwardJudged() refuses malformed records and messages", async () => {
  const message = clientHello([serverName("a.test")]);
  const good = tlsRecords(message);
  const changed = (at: number, value: number) => {
    const bytes = good.slice();
    bytes[at] = value;
    return bytes;
  };
  const twoMessages = Uint8Array.from([...message, 1]);
  const cases = [
    // The version, an empty record, another type within, another message.
    ...[changed(1, 2), Uint8Array.of(22, 3, 1, 0, 0), changed(5, 2)],
    ...[
      tlsRecords(twoMessages),
      tlsRecords(clientHello([serverName("a.test")], 3)),
    ],
    // A length of the message that never comes.
    Uint8Array.from(
      { length: 70_000 },
      (_, at) =>
        at % 16389 < 5 ? [22, 3, 1, 64, 0][at % 16389] : at === 5 ? 1 : 255,
    ),
    Uint8Array.from([
      ...good.subarray(0, 20),
      ...tlsRecords(message).subarray(0, 5),
    ]),
  ];
  const second = tlsRecords(message, 60);
  second[65] = 23;
  for (const bytes of [...cases, second]) {
    const { forwarded } = await forward([bytes], { port: 443 });
    assertEquals(forwarded, "");
  }
  // It ends within the message: nothing is forwarded, and nothing is refused.
  assertEquals(await forward([good.subarray(0, 50)], { port: 443 }), {
    forwarded: "",
    refused: undefined,
  });
});

Deno.test("serverNameOf() returns the name or throws RefusedError, for any mutation of a ClientHello", () => {
  const message = clientHello([
    ...[[GREASE, []], [43, [2, 3, 4]]] as TlsExtensions,
    serverName("a.test"),
    [21, Array(20).fill(0)],
  ]);
  const change = fc.record({
    at: fc.nat(message.length - 1),
    to: fc.integer({ min: 0, max: 255 }),
  });
  fc.assert(
    fc.property(
      fc.array(change, { minLength: 1, maxLength: 4 }),
      fc.nat(message.length),
      (changes, cut) => {
        const bytes = message.slice(0, cut > 100 ? undefined : cut);
        for (const { at, to } of changes) if (at < bytes.length) bytes[at] = to;
        try {
          const name = serverNameOf(bytes);
          // What was understood is in the message, after a length of its own.
          const start = decoder.decode(bytes).indexOf(name);
          assertEquals(bytes[start - 2] << 8 | bytes[start - 1], name.length);
          assertEquals(
            bytes.length,
            4 + (bytes[1] << 16 | bytes[2] << 8 | bytes[3]),
          );
        } catch (error) {
          if (!(error instanceof RefusedError)) throw error;
        }
      },
    ),
    { numRuns: 3000 },
  );
});

Deno.test("forwardJudged() forwards HTTP for the host, kept connections and bodies included", async () => {
  const all = [
    GET,
    head("GET http://A.TEST:80/x?y HTTP/1.1", "host:  a.test.:80\t"),
    head("OPTIONS * HTTP/1.1", "Host: a.test", "X-Empty:", "X: \xe9 a"),
    head("POST /p HTTP/1.1", "Host: a.test", "Content-Length: 27") +
    "GET / HTTP/1.1\r\nHost: b\r\n\r\n",
    head("PUT /c HTTP/1.1", "Transfer-Encoding: Chunked", "Host: a.test") +
    "4\r\n\r\n\r\n\r\n1B\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n\r\n0\r\n\r\n",
    head("GET /\xff HTTP/1.0", "Host: a.test"),
    GET,
  ].join("");
  for (const step of [undefined, 1, 3, 50]) {
    for (const port of [80, 8080]) {
      const text = port === 80 ? all : all.replaceAll(":80 ", ":8080 ")
        .replaceAll(":80/", ":8080/").replaceAll(":80\t", ":8080\t");
      assertEquals(await forward([text], { port, step }), {
        forwarded: text,
        refused: undefined,
      });
    }
  }
});

Deno.test("forwardJudged() refuses HTTP for another host, or that two servers could understand differently", async () => {
  const host = "Host: a.test";
  const post = (...lines: string[]) => head("POST / HTTP/1.1", host, ...lines);
  const cases: Record<string, string[]> = {
    "Host": [
      head("GET / HTTP/1.1", "Host: b.test"),
      head("GET / HTTP/1.1", "Host: a.test:81"),
      head("GET / HTTP/1.1", "Host: a.test b.test"),
      head("GET / HTTP/1.1", "Host: a.test\xa0"),
      head("GET / HTTP/1.1", "Host: b@a.test"),
      head("GET / HTTP/1.1", "Host:"),
      head("GET / HTTP/1.1"),
      head("GET / HTTP/1.0"),
    ],
    "two": [
      head("GET / HTTP/1.1", host, "Host: b.test"),
      head("GET / HTTP/1.1", host, host),
      post("Content-Length: 1", "Content-Length: 1"),
      post("Transfer-Encoding: chunked", "transfer-encoding: chunked"),
    ],
    "target": [
      head("GET http://b.test/ HTTP/1.1", host),
      head("GET http://a.test@b.test/ HTTP/1.1", host),
      head("GET https://a.test/ HTTP/1.1", host),
      head("GET ftp://a.test/ HTTP/1.1", host),
      head("GET http://a.test?@b.test/ HTTP/1.1", host),
      head("GET http://a.test#@b.test/ HTTP/1.1", host),
      head("GET http://a.test\\@b.test/ HTTP/1.1", host),
      head("GET a.test:80 HTTP/1.1", host),
      head("GET *x HTTP/1.1", host),
    ],
    "CONNECT": [head("CONNECT a.test:443 HTTP/1.1", host)],
    "length": [
      post("Content-Length: 1", "Transfer-Encoding: chunked"),
      post("Content-Length: +1"),
      post("Content-Length: 1, 1"),
      post("Content-Length: 0x1"),
      post("Content-Length:"),
      post("Transfer-Encoding: gzip, chunked"),
      post("Transfer-Encoding: xchunked"),
      post("Transfer-Encoding:"),
      head("POST / HTTP/1.0", host, "Transfer-Encoding: chunked"),
    ],
    // Some servers take such a body for the next request.
    "body": [
      head("GET / HTTP/1.1", host, "Content-Length: 1"),
      head("head / HTTP/1.1", host, "Transfer-Encoding: chunked"),
    ],
    "line": [
      head("GET / HTTP/1.1", "Host : a.test"),
      head("GET / HTTP/1.1", host, " Host: b.test"),
      head("GET / HTTP/1.1", host, "\tfolded"),
      head("GET / HTTP/1.1", host, "no colon"),
      head("GET / HTTP/1.1", host, ": x"),
      head("GET / HTTP/1.1", host, "X: a\0b"),
      post("Content_Length: 5"),
      post("transfer_Encoding: chunked"),
      "\n" + GET,
      "GET / HTTP/1.1\nHost: a.test\n\n",
      "GET / HTTP/1.1\r\nHost: a.test\r\nX: y\n\r\n",
      "GET / HTTP/1.1\r\nHost: a.test\rHost: b.test\r\n\r\n",
    ],
    "request": [
      "\r\n" + GET,
      " " + GET,
      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
      head("GET /"),
      head("GET  / HTTP/1.1", host),
      head("GET\t/ HTTP/1.1", host),
      head("GET / HTTP/1.1 ", host),
      head("get / http/1.1", host),
      head("GET / HTTP/1.2", host),
      head("GET / HTTP/11.1", host),
      head("GET /a b HTTP/1.1", host),
    ],
    "upgrade": [
      head("GET / HTTP/1.1", host, "Upgrade: h2c"),
      head("GET / HTTP/1.1", host, "Upgrade: websocket, h2c"),
      GET + head("GET / HTTP/1.1", host, "Upgrade: websocket"),
    ],
  };
  for (const [reason, texts] of Object.entries(cases)) {
    for (const text of texts) {
      for (const step of [undefined, 1]) {
        const kept = text.startsWith(GET) ? GET : "";
        const { forwarded, refused } = await forward([text], { step });
        assertEquals(forwarded, kept, text);
        assert(
          refused?.includes(reason),
          `${JSON.stringify(text)}: ${refused}`,
        );
      }
    }
  }
});

Deno.test("forwardJudged() judges each request of a kept connection, behind any body", async () => {
  const wrong = head("GET / HTTP/1.1", "Host: b.test");
  const before = [
    GET,
    head("POST / HTTP/1.1", "Host: a.test", "Content-Length: 3") + "abc",
    head("POST / HTTP/1.1", "Host: a.test", "Transfer-Encoding: chunked") +
    "3\r\nabc\r\n0\r\n\r\n",
  ];
  for (const first of before) {
    const { forwarded, refused } = await forward([first + wrong]);
    assertEquals([forwarded, refused], [first, 'HTTP Host "b.test"']);
  }
});

Deno.test("forwardJudged() refuses chunks that two servers could understand differently", async () => {
  const start = head(
    "POST / HTTP/1.1",
    "Host: a.test",
    "Transfer-Encoding: chunked",
  );
  const bodies = [
    ...["3\nabc\r\n0\r\n\r\n", "3;x=y\r\nabc\r\n0\r\n\r\n", "0x3\r\nabc\r\n"],
    ...[
      "3\r\nabcd\r\n0\r\n\r\n",
      "3 \r\nabc\r\n",
      "-1\r\n",
      "\r\n",
      "fffffffff\r\n",
    ],
    ...["0\r\nHost: b.test\r\n\r\n", "3\r\nabc\n\n0\r\n\r\n"],
  ];
  for (const body of bodies) {
    const { refused } = await forward([start + body]);
    assert(/HTTP (chunk|line)/.test(refused!), `${body}: ${refused}`);
  }
});

Deno.test("forwardJudged() forwards no head of more than 64 KiB, and no unfinished one", async () => {
  const long = "GET / HTTP/1.1\r\nHost: a.test\r\n";
  const filler = `X: ${"a".repeat(1000)}\r\n`;
  for (const text of [long + filler.repeat(70), "GET /" + "a".repeat(70_000)]) {
    const { forwarded, refused } = await forward([text], { step: 5000 });
    assertEquals([forwarded, refused], ["", "HTTP head of more than 64 KiB"]);
  }
  const fits = long + filler.repeat(60) + "\r\n";
  assertEquals((await forward([fits])).forwarded, fits);
  assertEquals(await forward([GET.slice(0, -1)], { step: 1 }), {
    forwarded: "",
    refused: undefined,
  });
});

Deno.test("forwardJudged() forwards a WebSocket's bytes only after the server's 101", async () => {
  const upgrade = head(
    "GET /ws HTTP/1.1",
    "Host: a.test",
    "Connection: Upgrade",
    "Upgrade: WebSocket",
  );
  const frames = "\x81\x05hel\r\n";
  const answer = Promise.withResolvers<string>();
  let isDone = false;
  const running = forward([upgrade + frames], { answer: answer.promise })
    .finally(() => isDone = true);
  for (let turn = 0; turn < 50; turn++) await Promise.resolve();
  assertEquals(isDone, false);
  answer.resolve("HTTP/1.1 101");
  assertEquals((await running).forwarded, upgrade + frames);
  // Any other answer leaves the connection with HTTP.
  for (const text of ["HTTP/1.1 200", "HTTP/1.1", ""]) {
    const answer = Promise.resolve(text);
    const refusing = await forward([upgrade + frames], { answer });
    assertEquals(refusing.forwarded, upgrade);
    assert(refusing.refused !== undefined);
    assertEquals(
      (await forward([upgrade + GET], { answer })).forwarded,
      upgrade + GET,
    );
  }
});

Deno.test("forwardJudged() forwards other protocols, except on ports 80 and 443", async () => {
  const texts = [
    ...["SSH-2.0-OpenSSH_9\r\n", "EHLO me\r\nMAIL\r\n", "*1\r\n$4\r\nPING\r\n"],
    ...[
      "\0\0\0\x08\x04\xd2\x16\x2f",
      "GET key\r\n",
      "0032git-upload-pack /x\0host=a\0",
    ],
    ...["0 \x02\x01\x01", "\x80\x80\x01"],
    ...["\x14\x04", "\x17\0\0\x01abc", "x".repeat(300) + "\r\n"],
  ];
  for (const text of texts) {
    for (const step of text.length > 1000 ? [undefined] : [undefined, 1]) {
      const other = await forward([text], { port: 9418, step });
      assertEquals(other, { forwarded: text, refused: undefined });
    }
    assertEquals((await forward([text], { port: 80 })).forwarded, "");
    assertEquals(await forward([text], { port: 443 }), {
      forwarded: "",
      refused: "port 443 without TLS",
    });
  }
});

Deno.test("forwardJudged() judges what could become HTTP or TLS on any port", async () => {
  const wrong = [
    head("GET / HTTP/1.1", "Host: b.test"),
    "\r\n" + head("GET / HTTP/1.1", "Host: b.test"),
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "GET / http/1.1\nHost: b.test\n\n",
    "GET /" + "a".repeat(70_000),
    // Servers read long methods, and control characters.
    "A".repeat(70_000),
    head("A".repeat(300) + " / HTTP/1.1", "Host: b.test"),
    head("GET /\x01 HTTP/1.1", "Host: b.test"),
    head("GET / HTTP/1.1\r", "Host: b.test"),
    // Servers skip an alert before a ClientHello.
    "\x15\x03\x01\0\x02\x01\x64" +
    decoder.decode(tlsRecords(clientHello([serverName("b.test")]))),
    "\x14\x03\x01\0\x01\x01",
  ];
  for (const text of wrong) {
    for (const step of [undefined, 1]) {
      if (step && text.length > 1000) continue;
      const { forwarded, refused } = await forward([text], {
        port: 8080,
        step,
      });
      assertEquals(forwarded, "");
      assert(refused !== undefined);
    }
  }
});

Deno.test("forwardJudged() forwards only requests whose Host it has read, for any bytes", async () => {
  const piece = fc.constantFrom(
    ...["GET / HTTP/1.1", "\r\n", "\n", "\r", "Host: a.test", "Host: b.test"],
    ...["Content-Length: 5", "Transfer-Encoding: chunked", "5", "0", "hello"],
    ...[" ", "\r\n\r\n", "POST /x HTTP/1.1\r\nHost: a.test\r\n", ":", "\0"],
  );
  await fc.assert(
    fc.asyncProperty(fc.array(piece, { maxLength: 30 }), async (pieces) => {
      const text = pieces.join("");
      const { forwarded } = await forward([text]);
      assert(text.startsWith(forwarded));
      if (forwarded !== "") assert(forwarded.includes("Host: a.test\r\n"));
    }),
    { numRuns: 2000 },
  );
});

Deno.test("forwardJudged() passes errors of the streams on", async () => {
  const fail = () => Promise.reject(new Error("gone"));
  const base = { host: "a.test", port: 22, answer: Promise.resolve("") };
  const write = () => Promise.resolve();
  await assertRejects(
    () => forwardJudged({ ...base, read: fail, write }),
    Error,
    "gone",
  );
  const read = () => Promise.resolve(encoder.encode("SSH-2.0\r\n"));
  await assertRejects(
    () => forwardJudged({ ...base, read, write: fail }),
    Error,
    "gone",
  );
});

Deno.test("forwardJudged() reads the ClientHello of a real client", async () => {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr as Deno.NetAddr;
  const accepting = listener.accept();
  const client = await Deno.connect({ port });
  const server = await accepting;
  listener.close();
  const tls = await Deno.startTls(client, { hostname: "a.test" });
  const shaking = tls.handshake().catch(() => {});
  const buffer = new Uint8Array(16384);
  const hello = buffer.subarray(0, await server.read(buffer) ?? 0);
  server.close();
  await shaking;
  tls.close();
  for (const step of [undefined, 1]) {
    assertEquals(await forward([hello], { port: 443, step }), {
      forwarded: decoder.decode(hello),
      refused: undefined,
    });
  }
});

Deno.test("forwardJudged() judges a ClientHello that follows a HelloRetryRequest, too", async () => {
  const own = decoder.decode(tlsRecords(clientHello([serverName("a.test")])));
  const other = clientHello([serverName("b.test")]);
  const change = "\x14\x03\x03\0\x01\x01";
  const early = "\x17\x03\x03\0\x03\x01\0\0";
  const hello = "\x16\x03\x03\0\x7a\x02\0\0\x76\x03\x03";
  const answer = Promise.resolve(`${hello}\xcf`);
  for (const step of [undefined, 1]) {
    for (const between of ["", change, early + change]) {
      const start = own + between;
      for (const size of [16384, 3, 1]) {
        const parts = [start, tlsRecords(other, size)];
        const refused = 'TLS server name "b.test"';
        const expected = { forwarded: start, refused };
        const options = { port: 443, step, answer };
        assertEquals(await forward(parts, options), expected);
      }
      // Its own name again; and whatever follows a ServerHello is encrypted.
      for (const [end, random] of [[own + early, "\xcf"], ["\x16\x01", "a"]]) {
        const answer = Promise.resolve(hello + random);
        const expected = { forwarded: start + end, refused: undefined };
        const options = { port: 443, step, answer };
        assertEquals(await forward([start + end], options), expected);
      }
    }
  }
  // Nothing passes before the server has answered.
  const late = Promise.withResolvers<string>();
  let isDone = false;
  const running = forward([own + change + own], { answer: late.promise })
    .finally(() => isDone = true);
  for (let turn = 0; turn < 50; turn++) await Promise.resolve();
  assertEquals(isDone, false);
  late.resolve("");
  assertEquals((await running).forwarded, own + change + own);
});

Deno.test("forwardJudged() takes linear time for any header line", async () => {
  for (const space of [" ", "\t "]) {
    await assertLinear(
      "white space before a control character",
      (size) => `X:${space.repeat(size / space.length)}\0\r\n`,
      (line) => forward([`GET / HTTP/1.1\r\nHost: a.test\r\n${line}\r\n`]),
      60_000,
    );
  }
});
