import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import * as fc from "fast-check";
import { GuestNetwork } from "../../lib/net/network.ts";
import { cpuMs } from "../support/assert_linear.ts";
import {
  ACK,
  dnsQuery,
  FIN,
  GATEWAY,
  GUEST,
  ipFrame,
  type NetConnection,
  type NetGuest,
  onesSum,
  parseIp,
  RST,
  startNetGuest,
  SYN,
  u16,
} from "../support/net_guest.ts";
import { replaceMethod } from "../support/replace_method.ts";
import { installManualClock, type ManualClock } from "../support/timers.ts";
import {
  clientHello,
  ENCRYPTED_HELLO,
  serverName,
  tlsRecords,
} from "../support/client_hello.ts";

const GET = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
const UNKNOWN = Object.assign(new Error("unknown"), { code: "ENOTFOUND" });

/** A server on loopback that serves each connection with a function. */
function startServer(serve: (conn: Deno.TcpConn) => Promise<void>) {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const all: Promise<void>[] = [];
  let count = 0;
  const done = (async () => {
    for await (const conn of listener) {
      count++;
      all.push(
        (async () => {
          using _conn = conn;
          await serve(conn);
        })().catch(() => {}),
      );
    }
  })();
  const { port } = listener.addr as Deno.NetAddr;
  return {
    at: `127.0.0.1:${port}`,
    count: () => count,
    async [Symbol.asyncDispose]() {
      listener.close();
      await done;
      await Promise.all(all);
    },
  };
}

/** Reads to the end. */
async function readAll(conn: Deno.TcpConn): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of conn.readable) chunks.push(chunk);
  return Uint8Array.from(chunks.flatMap((it) => [...it]));
}

/** The event with this number: the guest may see a reset before it is reported. */
async function nthEvent(guest: NetGuest, number: number) {
  // Under a fake clock, no timer passes.
  while (guest.events.length < number) await guest.ask("a.test");
  return guest.events[number - 1];
}

/** Sends back what arrives, and then ends. */
async function echo(conn: Deno.TcpConn) {
  const buffer = new Uint8Array(65536);
  for (let count; (count = await conn.read(buffer)) !== null;) {
    for (let at = 0; at < count;) {
      at += await conn.write(buffer.subarray(at, count));
    }
  }
  await conn.closeWrite();
}

Deno.test("GuestNetwork forwards both ways to a mapped name, half-close included", async () => {
  await using server = startServer(async (conn) => {
    const buffer = new Uint8Array(100);
    let length = 0;
    for (let count; (count = await conn.read(buffer)) !== null;) {
      length += count;
    }
    await conn.write(new TextEncoder().encode(`${length} bytes`));
  });
  const mapping = `a.test:7=${server.at}`;
  await using guest = await startNetGuest({ rules: [mapping] });
  const connection = await guest.connect("A.test.", 7);
  await connection.write("hello\n");
  await connection.end();
  assertEquals(text(await connection.readAll()), "6 bytes");
  const [{ type, allowed, host, port, reason }] = guest.events;
  assertEquals([type, allowed, host, port, reason], [
    ...["egress", true, "a.test", 7],
    `rule ${mapping}`,
  ]);
});

Deno.test("GuestNetwork forwards megabytes both ways unchanged", async () => {
  await using server = startServer(echo);
  await using guest = await startNetGuest({ rules: [`a.test:7=${server.at}`] });
  const connection = await guest.connect("a.test", 7);
  const bytes = new Uint8Array(3_000_001);
  // Not text, so nothing waits for the end of a line.
  for (let at = 0; at < bytes.length; at++) {
    bytes[at] = 200 + at * 7 + (at >> 8);
  }
  const writing = connection.write(bytes).then(() => connection.end());
  assertEquals(await connection.readAll(), bytes);
  await writing;
});

Deno.test("GuestNetwork forwards a server that speaks first", async () => {
  await using server = startServer(async (conn) => {
    await conn.write(new TextEncoder().encode("220 ready\r\n"));
    await readAll(conn);
  });
  await using guest = await startNetGuest({
    rules: [`a.test:25=${server.at}`],
  });
  const connection = await guest.connect("a.test", 25);
  assertEquals(await connection.readText(11), "220 ready\r\n");
  await connection.write("EHLO me\r\n");
});

Deno.test("GuestNetwork forwards anything after the server's 101, which may arrive in parts", async () => {
  const parts = ["HTTP/1", ".1 101 Switching Protocols\r\n\r\n"];
  await using server = startServer(async (conn) => {
    await conn.read(new Uint8Array(1000));
    for (const part of parts) {
      await conn.write(new TextEncoder().encode(part));
    }
    await echo(conn);
  });
  await using guest = await startNetGuest({
    rules: [`a.test:80=${server.at}`],
  });
  const connection = await guest.connect("a.test", 80);
  await connection.write(GET.replace("\r\n\r\n", "\r\nUpgrade: websocket$&"));
  const answer = parts.join("");
  assertEquals(await connection.readText(answer.length), answer);
  await connection.write("no HTTP");
  const all = `${answer}no HTTP`;
  assertEquals(await connection.readText(all.length), all);
});

Deno.test("GuestNetwork refuses TLS and HTTP for another host with RST, and the server reads nothing", async () => {
  const read: number[] = [];
  await using server = startServer(async (conn) => {
    read.push((await readAll(conn)).length);
  });
  await using guest = await startNetGuest({
    rules: [80, 443, 8080].map((port) => `a.test:${port}=${server.at}`),
  });
  const wrong: [number, string | Uint8Array, RegExp][] = [
    [443, tlsRecords(clientHello([serverName("b.test")])), /b\.test/],
    [443, tlsRecords(clientHello([ENCRYPTED_HELLO])), /ECH/],
    [443, GET, /without TLS/],
    [80, GET.replace("a.test", "b.test"), /b\.test/],
    [8080, GET.replace("a.test", "b.test"), /b\.test/],
    [80, "SSH-2.0\r\n", /not an HTTP/],
  ];
  for (const [at, [port, bytes, reason]] of wrong.entries()) {
    const connection = await guest.connect("a.test", port);
    await connection.write(bytes).catch(() => {});
    await connection.reset();
    // Each connection is allowed, and then refused.
    const { allowed, host, ...last } = await nthEvent(guest, 2 * at + 2);
    assertEquals([allowed, host, last.port], [false, "a.test", port]);
    assert(reason.test(last.reason), last.reason);
  }
  assertEquals(server.count(), wrong.length);
  assertEquals(read, wrong.map(() => 0));
});

Deno.test("GuestNetwork refuses ports, addresses and names without a rule at once", async () => {
  let lookups = 0;
  await using guest = await startNetGuest({
    rules: ["a.test:81", "*.b.test"],
    resolve() {
      lookups++;
      return Promise.resolve(["127.0.0.1", "10.0.0.1"]);
    },
  });
  for (
    const address of [
      GATEWAY,
      "10.0.2.2",
      "169.254.169.254",
      "198.19.7.7",
      "1.1.1.1",
      "127.0.0.1",
    ]
  ) {
    await assertRejects(() => guest.connect(address, 80), Error, "reset");
    assertEquals(guest.events.pop()?.host, address);
  }
  await assertRejects(() => guest.connect("a.test", 80), Error, "reset");
  for (const name of ["b.test", "c.test", "a.test.c.test", "", "x.aa.test"]) {
    assertEquals(await guest.ask(name), { code: 3, address: undefined });
  }
  assertEquals(lookups, 1);
  assertEquals(
    guest.events.map(({ host, port, allowed }) => [host, port, allowed]),
    [
      ["a.test", 80, false],
      ...["b.test", "c.test", "a.test.c.test", "", "x.aa.test"].map((
        it,
      ) => [it, null, false]),
    ],
  );
});

Deno.test("GuestNetwork dials no private address of an allowed name, whatever DNS said before", async () => {
  await using server = startServer(echo);
  const port = Number(server.at.split(":")[1]);
  const answers: Record<string, string[]> = {
    "loopback.test": ["127.0.0.1"],
    "metadata.test": ["169.254.169.254"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "nat64.test": ["64:ff9b::7f00:1"],
    "6to4.test": ["2002:7f00:1::"],
    "ula.test": ["fd00::1"],
    "link.test": ["fe80::1%eth0"],
    "ten.test": ["10.0.0.1", "192.168.0.1", "100.64.0.1"],
    "self.test": ["::1", "::", "0.0.0.0"],
    "synthetic.test": ["198.19.0.1"],
  };
  const own = Deno.networkInterfaces().map(({ address }) => address);
  answers["own.test"] = own;
  await using guest = await startNetGuest({
    rules: [...Object.keys(answers), "turning.test"],
    resolve: (name) => Promise.resolve(answers[name]),
  });
  answers["turning.test"] = ["1.1.1.1"];
  await guest.ask("turning.test");
  answers["turning.test"] = ["127.0.0.1"];
  for (const name of Object.keys(answers)) {
    await assertRejects(() => guest.connect(name, port), Error, "reset");
    const { allowed, reason } = guest.events.at(-1)!;
    assertEquals(allowed, false);
    assertEquals(reason, `private or this host: ${answers[name].join(", ")}`);
  }
  assertEquals(server.count(), 0);
});

Deno.test("GuestNetwork dials only the public addresses of a mixed answer, IPv4 first", async () => {
  const dialed: string[] = [];
  const { connect } = Deno;
  Deno.connect = ((options: Deno.ConnectOptions) => {
    if (!("port" in options)) return connect(options);
    dialed.push(`${options.hostname}:${options.port}`);
    return Promise.reject(new Error("nobody"));
  }) as typeof Deno.connect;
  try {
    await using guest = await startNetGuest({
      rules: ["a.test", "10.1.2.3:22"],
      resolve: () =>
        Promise.resolve([
          "10.0.0.1",
          "2606:4700::1",
          "1.1.1.1",
          "127.0.0.1",
          "1.0.0.1",
        ]),
    });
    await assertRejects(() => guest.connect("a.test", 443), Error, "reset");
    assertEquals(dialed, ["1.1.1.1:443", "1.0.0.1:443", "2606:4700::1:443"]);
    const { allowed, reason } = guest.events.at(-1)!;
    assertEquals([allowed, reason], [true, "cannot connect: nobody"]);
    // An address that a rule names is dialed, although it is private.
    await assertRejects(() => guest.connect("10.1.2.3", 22), Error, "reset");
    assertEquals(dialed.pop(), "10.1.2.3:22");
    await assertRejects(() => guest.connect("10.1.2.3", 23), Error, "reset");
    assertEquals(dialed.length, 3);
  } finally {
    Deno.connect = connect;
  }
});

Deno.test("GuestNetwork with all hosts dials any but this one, and judges nothing", async () => {
  await using server = startServer(echo);
  const { connect } = Deno;
  const dialed: unknown[] = [];
  const [hostname, port] = server.at.split(":");
  Deno.connect = ((options: Deno.ConnectOptions) => {
    if (!("port" in options)) return connect(options);
    dialed.push(options.hostname);
    return connect({ hostname, port: Number(port) });
  }) as typeof Deno.connect;
  try {
    await using guest = await startNetGuest({
      rules: "all",
      resolve: (name) =>
        Promise.resolve(name === "self.test" ? ["127.0.0.1"] : ["10.9.9.9"]),
    });
    for (const to of ["1.1.1.1", "10.9.8.7", "any.test"]) {
      const connection = await guest.connect(to, 443);
      await connection.write("not TLS");
      assertEquals(await connection.readText(7), "not TLS");
      await connection.end();
      await connection.readAll();
    }
    const own = Deno.networkInterfaces().map(({ address }) => address)
      .filter((it) => it.includes("."));
    for (
      const to of [
        "127.0.0.1",
        "169.254.169.254",
        "self.test",
        "0.0.0.0",
        ...own,
      ]
    ) {
      await assertRejects(() => guest.connect(to, 443), Error, "reset");
    }
    assertEquals(dialed, ["1.1.1.1", "10.9.8.7", "10.9.9.9"]);
  } finally {
    Deno.connect = connect;
  }
});

Deno.test("GuestNetwork answers DNS to any server: A, AAAA, HTTPS, EDNS, case; and nothing malformed", async () => {
  await using guest = await startNetGuest({
    rules: ["a.test", "gone.test", "broken.test", "*.w.test"],
    resolve: (name) =>
      name === "gone.test"
        ? Promise.reject(UNKNOWN)
        : name === "broken.test"
        ? Promise.reject(new Error("no resolver"))
        : Promise.resolve(["1.1.1.1"]),
  });
  const first = { code: 0, address: "198.19.0.0" };
  assertEquals(await guest.ask("a.test"), first);
  assertEquals(await guest.ask("A.TEST", { server: "8.8.8.8" }), first);
  assertEquals(await guest.ask("x.w.test"), { code: 0, address: "198.19.0.1" });
  for (const type of [28, 65, 16, 255]) {
    assertEquals(await guest.ask("a.test", { type }), {
      code: 0,
      address: undefined,
    });
  }
  for (const type of [1, 28]) {
    assertEquals((await guest.ask("gone.test", { type })).code, 3);
    assertEquals((await guest.ask("broken.test", { type })).code, 2);
  }
  // EDNS: an additional record. The answer has none, and copies id and question.
  const edns = [...dnsQuery("a.test"), 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
  edns[11] = 1;
  await guest.sendUdp("9.9.9.9", 53, edns, 777);
  const { source, payload } = await guest.nextIp();
  const query = dnsQuery("a.test");
  assertEquals(source, "9.9.9.9");
  assertEquals([...payload.subarray(0, 8)], [
    ...u16(53),
    ...u16(777),
    0,
    8 + query.length + 16,
    0,
    0,
  ]);
  assertEquals([...payload.subarray(8)], [
    ...[7, 7, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0, ...query.slice(12)],
    ...[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 19, 0, 0],
  ]);
  const malformed = [
    ...[
      [],
      [1, 2, 3],
      dnsQuery("a.test").slice(0, -1),
      dnsQuery("a".repeat(64)),
    ],
    ...[
      dnsQuery("a.".repeat(200)),
      dnsQuery("a.test").with(2, 0x81),
      dnsQuery("a.test").with(5, 2),
    ],
    [...dnsQuery("").slice(0, 12), 0xc0, 12, 0, 1, 0, 1],
  ];
  for (const bytes of malformed) await guest.sendUdp(GATEWAY, 53, bytes);
  assertEquals(await guest.ask("a.test"), first);
  // Over TCP nobody answers.
  await assertRejects(() => guest.connect(GATEWAY, 53), Error, "reset");
});

Deno.test("GuestNetwork keeps only so many names and lookups", async () => {
  const held = Promise.withResolvers<string[]>();
  let lookups = 0;
  await using guest = await startNetGuest({
    rules: ["*.test"],
    resolve(name) {
      lookups++;
      return name.startsWith("slow") ? held.promise : Promise.resolve([]);
    },
  });
  for (let index = 0; index < 64; index++) {
    await guest.sendUdp(GATEWAY, 53, dnsQuery(`slow${index}.test`));
  }
  assertEquals((await guest.ask("more.test")).code, 2);
  assertEquals(lookups, 64);
  held.resolve([]);
  for (let index = 0; index < 64; index++) await guest.nextIp();
  const codes = new Set<number>();
  for (let index = 64; index <= 4096; index++) {
    codes.add((await guest.ask(`name${index}.test`)).code);
  }
  assertEquals([...codes], [0, 2]);
  assertEquals((await guest.ask("slow0.test")).code, 0);
});

Deno.test("GuestNetwork answers DHCP with one lease, and ARP for all but the guest", async () => {
  await using guest = await startNetGuest();
  const request = (type: number) => {
    const bytes = new Uint8Array(250);
    bytes.set([1, 1, 6, 0, 9, 9, 9, 9]);
    bytes.set([0x52, 0x55, 0xc6, 0x12, 0, 2], 28);
    bytes.set([0x63, 0x82, 0x53, 0x63, 0, 53, 1, type, 255], 236);
    return bytes;
  };
  for (const [type, reply] of [[1, 2], [3, 5]]) {
    const payload = [
      ...u16(68),
      ...u16(67),
      ...u16(258),
      0,
      0,
      ...request(type),
    ];
    await guest.sendIp(17, "255.255.255.255", payload, { source: "0.0.0.0" });
    const { source, payload: udp } = await guest.nextIp();
    const bytes = [...udp.subarray(8)];
    assertEquals([source, [...udp.subarray(0, 4)]], [GATEWAY, [0, 67, 0, 68]]);
    assertEquals(bytes.slice(0, 8), [2, 1, 6, 0, 9, 9, 9, 9]);
    assertEquals(bytes.slice(16, 20).join("."), GUEST);
    assertEquals(bytes.slice(28, 34), [0x52, 0x55, 0xc6, 0x12, 0, 2]);
    const options = bytes.slice(240, bytes.lastIndexOf(255));
    assertEquals(options.slice(0, 3), [53, 1, reply]);
    assertEquals(options.slice(-4), [26, 2, ...u16(64_000)]);
  }
  for (
    const bytes of [
      request(7),
      request(8),
      request(1).subarray(0, 230),
      request(1).with(236, 0),
    ]
  ) {
    await guest.sendUdp(GATEWAY, 67, bytes, 68);
  }
  const arp = (sender: string, target: string) => [
    ...[255, 255, 255, 255, 255, 255, 0x52, 0x55, 0xc6, 0x12, 0, 2, 8, 6],
    ...[
      0,
      1,
      8,
      0,
      6,
      4,
      0,
      1,
      0x52,
      0x55,
      0xc6,
      0x12,
      0,
      2,
      ...sender.split(".").map(Number),
    ],
    ...[0, 0, 0, 0, 0, 0, ...target.split(".").map(Number)],
  ];
  await guest.sendFrame(arp("0.0.0.0", GUEST));
  await guest.sendFrame(arp(GUEST, GUEST));
  await guest.sendFrame(arp(GUEST, GATEWAY).slice(0, 41));
  await guest.sendFrame(arp(GUEST, "198.19.0.7"));
  assertEquals([...await guest.nextFrame()], [
    ...[0x52, 0x55, 0xc6, 0x12, 0, 2, 0x52, 0x55, 0xc6, 0x12, 0, 1, 8, 6],
    ...[0, 1, 8, 0, 6, 4, 0, 2, 0x52, 0x55, 0xc6, 0x12, 0, 1, 198, 19, 0, 7],
    ...[0x52, 0x55, 0xc6, 0x12, 0, 2, 198, 18, 0, 2],
  ]);
});

Deno.test("GuestNetwork refuses UDP and ping by ICMP, and drops all else", async () => {
  await using guest = await startNetGuest({
    rules: ["a.test"],
    resolve: () => Promise.resolve([]),
  });
  await guest.ask("a.test");
  const dropped = [
    ipFrame(17, "1.1.1.1", Array(20).fill(1), { source: "198.18.0.3" }),
    ipFrame(17, "1.1.1.1", Array(20).fill(1), { mac: [2, 0, 0, 0, 0, 9] }),
    ipFrame(17, "1.1.1.1", Array(20).fill(1), { fragment: 0x2000 }),
    ipFrame(17, "1.1.1.1", Array(20).fill(1), { fragment: 5 }),
    ipFrame(17, "224.0.0.251", Array(20).fill(1)),
    ipFrame(17, "255.255.255.255", Array(20).fill(1)),
    ipFrame(1, "1.1.1.1", [3, 13, 0, 0, 0, 0, 0, 0]),
    ipFrame(6, "1.1.1.1", Array(19).fill(0)),
    ipFrame(17, "1.1.1.1", Array(20).fill(1)).with(14, 0x65),
    ipFrame(17, "1.1.1.1", Array(20).fill(1)).with(14, 0x44),
    ipFrame(17, "1.1.1.1", Array(20).fill(1)).with(16, 9),
    ...[new Uint8Array(), new Uint8Array(13)],
    // IPv6.
    Uint8Array.from([
      ...Array(6).fill(1),
      0x52,
      0x55,
      0xc6,
      0x12,
      0,
      2,
      0x86,
      0xdd,
      ...Array(60).fill(1),
    ]),
  ];
  for (const frame of dropped) await guest.sendFrame(frame);
  const refused: [number, string, number[], string, number | null, string][] = [
    [17, "1.1.1.1", [0, 9, 1, 187, 0, 8, 0, 0], "1.1.1.1", 443, "UDP"],
    [17, "198.19.0.0", [0, 9, 1, 187, 0, 9, 0, 0, 1], "a.test", 443, "UDP"],
    [1, "8.8.8.8", [8, 0, 0, 0, 0, 0, 0, 0], "8.8.8.8", null, "ping"],
    [132, "8.8.8.8", Array(12).fill(2), "8.8.8.8", null, "IP protocol"],
  ];
  for (const [protocol, to, payload, host, port, reason] of refused) {
    await guest.sendIp(protocol, to, payload);
    const { source, payload: icmp } = await guest.nextIp();
    assertEquals([source, icmp[0], icmp[1]], [to, 3, 13]);
    assertEquals(onesSum(icmp), 0xffff);
    const quoted = ipFrame(protocol, to, payload).subarray(14);
    assertEquals([...icmp.subarray(8)], [...quoted]);
    assertEquals(
      guest.events.pop(),
      {
        ...{ type: "egress", allowed: false, host, port, reason },
      } as unknown as typeof guest.events[0],
    );
  }
  assertEquals(guest.events, []);
});

Deno.test("GuestNetwork survives any frame", async () => {
  await using guest = await startNetGuest({
    rules: ["a.test"],
    resolve: () => Promise.reject(UNKNOWN),
  });
  const frame = fc.oneof(
    fc.uint8Array({ maxLength: 100 }),
    fc.tuple(
      fc.constantFrom(1, 6, 17, 41),
      fc.constantFrom(GATEWAY, "1.1.1.1", "198.19.0.0", GUEST),
      fc.uint8Array({ maxLength: 80 }),
      fc.array(fc.tuple(fc.nat(120), fc.nat(255)), { maxLength: 3 }),
    ).map(([protocol, to, payload, changes]) => {
      const bytes = ipFrame(protocol, to, payload);
      for (const [at, value] of changes) {
        if (at < bytes.length) bytes[at] = value;
      }
      return bytes;
    }),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(frame, { maxLength: 20 }), async (frames) => {
      for (const it of frames) await guest.sendFrame(it);
    }),
    { numRuns: 300 },
  );
  await guest.sendUdp(GATEWAY, 53, dnsQuery("last.test"), 4242);
  while (true) {
    const packet = parseIp(await guest.nextFrame());
    const isLast = packet?.protocol === 17 && packet.payload[2] === 4242 >> 8 &&
      packet.payload[3] === (4242 & 255);
    if (isLast) break;
  }
});

Deno.test("GuestNetwork hangs up on a frame longer than QEMU's", async () => {
  for (const length of [[0, 1, 16, 1], [255, 255, 255, 255]]) {
    await using guest = await startNetGuest();
    await guest.sendRaw(length);
    await guest.ended;
  }
});

Deno.test("GuestNetwork accepts only one guest, and frames that arrive byte by byte", async () => {
  await using guest = await startNetGuest();
  const frame = ipFrame(1, "8.8.8.8", [8, 0, 0, 0, 0, 0, 0, 0]);
  const bytes = [0, 0, 0, frame.length, ...frame];
  for (const byte of bytes) await guest.sendRaw([byte]);
  assertEquals((await guest.nextIp()).payload[0], 3);
  await assertRejects(() =>
    Deno.connect({ transport: "unix", path: guest.path })
  );
});

Deno.test("GuestNetwork bounds connections and dials", async () => {
  const held = Promise.withResolvers<string[]>();
  await using guest = await startNetGuest({
    rules: ["a.test"],
    resolve: () => held.promise,
  });
  const asking = guest.ask("a.test");
  held.resolve([]);
  const { address } = await asking;
  const slow = Promise.withResolvers<string[]>();
  let dials = 0;
  await using other = await startNetGuest({
    rules: ["a.test"],
    resolve: () => ++dials > 1 ? slow.promise : Promise.resolve([]),
  });
  await other.ask("a.test");
  for (let index = 0; index < 100; index++) {
    const port = 1000 + index;
    const syn = [
      ...u16(port),
      0,
      80,
      ...Array(8).fill(0),
      0x50,
      SYN,
      1,
      0,
      0,
      0,
      0,
      0,
    ];
    await other.sendIp(6, address!, syn);
  }
  // Any answer proves that all of them were read.
  await other.sendIp(1, "8.8.8.8", [8, 0, 0, 0, 0, 0, 0, 0]);
  await other.nextIp();
  assertEquals(dials, 65);
  slow.resolve([]);
});

Deno.test("GuestNetwork holds at most 512 connections, and refuses the next one", async () => {
  const { connect } = Deno;
  using _connect = replaceMethod(Deno, {
    connect(options: Deno.ConnectOptions) {
      if (!("port" in options)) return connect(options);
      const silent = Promise.withResolvers<null>();
      const close = () => silent.resolve(null);
      return Promise.resolve({
        read: () => silent.promise,
        setNoDelay() {},
        closeWrite: () => Promise.resolve(),
        ...{ close, [Symbol.dispose]: close },
      });
    },
  });
  await using guest = await startNetGuest({ rules: ["10.1.2.3"] });
  for (let count = 0; count < 512; count++) {
    await guest.connect("10.1.2.3", 22);
  }
  await assertRejects(() => guest.connect("10.1.2.3", 22), Error, "reset");
  const { allowed, reason } = guest.events.at(-1)!;
  assertEquals([allowed, reason], [false, "too many connections"]);
});

Deno.test("GuestNetwork reports at most 200 decisions a tick, and how many more there were", async () => {
  using clock = installManualClock();
  await using guest = await startNetGuest();
  for (let index = 0; index < 250; index++) {
    await guest.ask(`name${index}.test`);
  }
  assertEquals(guest.events.length, 200);
  await clock.pass(250);
  assertEquals(guest.events.at(-1)?.host, "*");
  assertEquals(guest.events.at(-1)?.reason, "50 more");
  await guest.ask("next.test");
  assertEquals(guest.events.length, 202);
});

Deno.test("GuestNetwork retransmits what is lost, until it gives up", async () => {
  using clock = installManualClock();
  await using server = startServer(echo);
  await using guest = await startNetGuest({ rules: [`a.test:7=${server.at}`] });
  const connection = await guest.connect("a.test", 7);
  let lost = 0;
  // The first two segments of the answer, twice.
  const seen = new Map<number, number>();
  guest.lose = ({ data, sequence }) => {
    if (data.length === 0) return false;
    const times = (seen.get(sequence) ?? 0) + 1;
    seen.set(sequence, times);
    if (times > 2) return false;
    lost++;
    return true;
  };
  const writing = connection.write("hello\n");
  const reading = connection.readText(6);
  let isDone = false;
  Promise.all([writing, reading]).then(() => isDone = true);
  for (let ticks = 0; !isDone && ticks < 1000; ticks++) await clock.pass(250);
  assertEquals(await reading, "hello\n");
  assertEquals(lost, 2);
  // A guest that answers no more loses the connection.
  connection.acknowledges = false;
  guest.lose = undefined;
  await connection.send(ACK, [1]);
  await connection.segment(({ data }) => data.length === 1);
  const passing = Array.from({ length: 1100 }, () => clock.pass(250));
  await connection.reset();
  await Promise.all(passing);
});

Deno.test("GuestNetwork ends at once, whatever lookups and connections are doing", async () => {
  const never = new Promise<string[]>(() => {});
  await using server = startServer(async (conn) => {
    await conn.write(new TextEncoder().encode("hello"));
    await readAll(conn);
  });
  await using guest = await startNetGuest({
    rules: [`a.test:25=${server.at}`, "slow.test"],
    resolve: () => never,
  });
  const connection = await guest.connect("a.test", 25);
  await connection.readText(5);
  await guest.sendUdp(GATEWAY, 53, dnsQuery("slow.test"));
  await guest.network[Symbol.asyncDispose]();
  await guest.ended;
});

Deno.test("GuestNetwork acknowledges many segments at once, and answers one that only asks", async () => {
  using clock = installManualClock();
  await using server = startServer(async (conn) => void await readAll(conn));
  await using guest = await startNetGuest({ rules: [`a.test:9=${server.at}`] });
  const connection = await guest.connect("a.test", 9);
  const { segments } = connection;
  let next = segments[0].acknowledged;
  const send = async (bytes: number) => {
    await connection.send(ACK, new Uint8Array(bytes));
    next = next + bytes >>> 0;
  };
  const acknowledgment = () =>
    connection.segment(({ acknowledged }) => acknowledged === next);
  // The first one starts the delay.
  for (let sent = 0; sent < 3; sent++) {
    await send(1);
    // Frames keep their order: this answer comes after all that the segment caused.
    await guest.ask("a.test");
    assertEquals(segments.length, 1);
    if (sent < 2) await clock.pass(0.9);
  }
  await clock.pass(0.2);
  await acknowledgment();
  assertEquals(segments.length, 2);
  // Such as a keep-alive probe: a segment without data, at a byte that has arrived.
  await connection.send(ACK, [], { sequence: next - 1 >>> 0 });
  await guest.ask("a.test");
  await clock.pass(2);
  await guest.ask("a.test");
  assertEquals(segments.length, 3);
  // The guest repeats data whose acknowledgment got lost.
  await connection.send(ACK, [0], { sequence: next - 1 >>> 0 });
  await guest.ask("a.test");
  await clock.pass(2);
  await guest.ask("a.test");
  assertEquals(segments.length, 4);
  // Half of the window does not wait.
  for (let sent = 0; sent < 9; sent++) await send(60_000);
  await acknowledgment();
  const { length } = segments;
  const timers = clock.count();
  await send(1);
  await guest.ask("a.test");
  assertEquals([segments.length, clock.count()], [length, timers + 1]);
  // A reset leaves no timer.
  await connection.send(RST);
  await guest.ask("a.test");
  assertEquals([segments.length, clock.count()], [length, timers]);
});

Deno.test("GuestNetwork acknowledges with the data that it sends", async () => {
  using clock = installManualClock();
  await using server = startServer(echo);
  await using guest = await startNetGuest({ rules: [`a.test:7=${server.at}`] });
  const connection = await guest.connect("a.test", 7);
  const timers = clock.count();
  await connection.write([200]);
  await connection.segment(({ data }) => data.length === 1);
  assertEquals(clock.count(), timers);
  assertEquals(connection.segments.length, 2);
});

Deno.test("GuestNetwork probes a closed window, and fills no more than the window", async () => {
  using clock = installManualClock();
  await using server = startServer(async (conn) => {
    await conn.write(new TextEncoder().encode("hello"));
    await readAll(conn);
  });
  await using guest = await startNetGuest({
    rules: [`a.test:25=${server.at}`],
  });
  const connection = await guest.connect("a.test", 25, { window: 0 });
  const [synAck] = connection.segments;
  for (let ticks = 0; ticks < 8; ticks++) await clock.pass(250);
  await connection.segment(({ flags, sequence }) =>
    flags === ACK && sequence === synAck.sequence
  );
  assertEquals(
    connection.segments.every(({ data }) => data.length === 0),
    true,
  );
  connection.window = 3;
  await connection.acknowledge();
  assertEquals(await connection.readText(3), "hel");
  connection.window = 100;
  await connection.acknowledge();
  assertEquals(await connection.readText(5), "hello");
});

Deno.test("GuestNetwork holds at most 1.6 MiB of a guest that ignores its window", async () => {
  const done = Promise.withResolvers<void>();
  await using server = startServer(() => done.promise);
  await using guest = await startNetGuest({ rules: [`a.test:9=${server.at}`] });
  using _done = { [Symbol.dispose]: () => done.resolve() };
  const connection = await guest.connect("a.test", 9);
  const data = new Uint8Array(60_000).fill(200);
  let most = 0;
  // Until the host's own buffers are full.
  for (let rounds = 0; rounds < 100 && most < 1e6; rounds++) {
    let sequence = connection.segments.at(-1)!.acknowledged;
    for (let count = 0; count < 20; count++) {
      await connection.send(ACK, data, { sequence });
      sequence = sequence + data.length >>> 0;
    }
    await guest.ask("b.test");
    most = Math.max(most, guest.network.heldBytes);
  }
  assert(most > 1e6 && most < 1.6 * 2 ** 20, `${most}`);
  await connection.send(RST);
  await guest.ask("b.test");
  assertEquals(guest.network.heldBytes, 0);
});

Deno.test("GuestNetwork ignores what it knows already, and takes the rest of a segment", async () => {
  await using server = startServer(echo);
  await using guest = await startNetGuest({ rules: [`a.test:7=${server.at}`] });
  const connection = await guest.connect("a.test", 7);
  const bytes = new TextEncoder().encode("one\ntwo\n");
  const { acknowledged: first } = connection.segments[0];
  await connection.write(bytes.subarray(0, 4));
  await connection.send(ACK, bytes.subarray(0, 4), { sequence: first });
  // Beyond what it expects: dropped.
  await connection.send(ACK, bytes, { sequence: first + 100 >>> 0 });
  await connection.send(ACK, bytes, { sequence: first });
  assertEquals(await connection.readText(8), "one\ntwo\n");
});

/**
 * Sends until the server, which reads nothing, and the network take no more. Under the
 * clock, no acknowledgment is on its way then.
 */
async function fillUp(
  guest: NetGuest,
  connection: NetConnection,
  clock: ManualClock,
) {
  const data = new Uint8Array(60_000).fill(200);
  for (let before = -1; guest.network.heldBytes !== before;) {
    // What the guest did not get acknowledged is sent again.
    let sequence = connection.segments.at(-1)!.acknowledged;
    if (guest.network.heldBytes > 1e6) before = guest.network.heldBytes;
    for (let count = 0; count < 20; count++) {
      await connection.send(ACK, data, { sequence });
      sequence = sequence + data.length >>> 0;
    }
    for (let turn = 0; turn < 5; turn++) await guest.ask("other.test");
  }
  await clock.pass(2);
  await guest.ask("other.test");
}

Deno.test("GuestNetwork opens its window once the server reads, and loses no data that it dropped", async () => {
  using clock = installManualClock();
  const gate = Promise.withResolvers<void>();
  const total = Promise.withResolvers<number>();
  await using server = startServer(async (conn) => {
    await gate.promise;
    let length = 0;
    for await (const chunk of conn.readable) length += chunk.length;
    total.resolve(length);
  });
  await using guest = await startNetGuest({ rules: [`a.test:9=${server.at}`] });
  using _gate = { [Symbol.dispose]: () => gate.resolve() };
  const connection = await guest.connect("a.test", 9);
  const { segments } = connection;
  const nextSegment = (after: number, isOpen = false) =>
    connection.segment((it) =>
      segments.indexOf(it) >= after && (it.window > 0 || !isOpen)
    );
  await fillUp(guest, connection, clock);
  const last = new Uint8Array(1000).fill(200);
  const { acknowledged: sequence } = segments.at(-1)!;
  const answer = nextSegment(segments.length);
  await connection.send(ACK | FIN, last, { sequence });
  await guest.ask("other.test");
  await clock.pass(2);
  const { acknowledged, window } = await answer;
  assertEquals(window, 0);
  const update = nextSegment(segments.length, true);
  gate.resolve();
  assert((await update).window << 5 >= 2 ** 19);
  await connection.send(ACK | FIN, last, { sequence: acknowledged });
  const sent = acknowledged - segments[0].acknowledged >>> 0;
  assertEquals(await total.promise, sent + last.length);
});

Deno.test("GuestNetwork hangs up on a server that reads nothing when the guest resets the connection", async () => {
  using clock = installManualClock();
  const held = Promise.withResolvers<void>();
  const closed = Promise.withResolvers<void>();
  await using server = startServer(() => held.promise);
  using _held = { [Symbol.dispose]: () => held.resolve() };
  await using guest = await startNetGuest({ rules: [`a.test:9=${server.at}`] });
  const { connect } = Deno;
  using _connect = replaceMethod(Deno, {
    async connect(options: Deno.ConnectOptions) {
      const peer = await connect(options);
      const close = peer[Symbol.dispose];
      peer[Symbol.dispose] = () => (close.call(peer), closed.resolve());
      return peer;
    },
  });
  const connection = await guest.connect("a.test", 9);
  await fillUp(guest, connection, clock);
  await connection.send(RST);
  await closed.promise;
});

Deno.test("GuestNetwork dials once while the guest repeats its SYN, and hangs up on RST", async () => {
  const closed = Promise.withResolvers<void>();
  await using server = startServer((conn) =>
    readAll(conn).then(() => {}, () => {}).finally(closed.resolve)
  );
  await using guest = await startNetGuest({ rules: [`a.test:9=${server.at}`] });
  const { address } = await guest.ask("a.test");
  const gate = Promise.withResolvers<void>();
  // Otherwise the network waits for its dials when an assertion fails.
  using _gate = { [Symbol.dispose]: () => gate.resolve() };
  const { connect } = Deno;
  const signals: AbortSignal[] = [];
  using _connect = replaceMethod(Deno, {
    async connect(options: Deno.ConnectOptions & { signal: AbortSignal }) {
      signals.push(options.signal);
      await gate.promise;
      return await connect(options);
    },
  });
  const sendSegment = async (guestPort: number, flags: number) => {
    const ports = [...u16(guestPort), ...u16(9)];
    const segment = [...ports, ...Array(8).fill(0), 0x50, flags];
    await guest.sendIp(6, address!, [...segment, 1, 0, 0, 0, 0, 0]);
  };
  for (const flags of [SYN, SYN, RST, RST]) await sendSegment(50000, flags);
  const opening = guest.connect(address!, 9);
  await sendSegment(40000, SYN);
  await guest.ask("b.test");
  assertEquals(signals.map(({ aborted }) => aborted), [true, false]);
  gate.resolve();
  const connection = await opening;
  assertEquals(connection.guestPort, 40000);
  assertEquals(connection.segments[0].flags, SYN | ACK);
  await connection.send(RST);
  await closed.promise;
});

Deno.test("GuestNetwork ends although servers read nothing", async () => {
  using clock = installManualClock();
  const held = Promise.withResolvers<void>();
  await using server = startServer(async (conn) => {
    // The second connection is closed by the guest and the server, but not empty.
    if (server.count() === 2) await conn.closeWrite();
    await held.promise;
  });
  await using guest = await startNetGuest({ rules: [`a.test:9=${server.at}`] });
  using _held = { [Symbol.dispose]: () => held.resolve() };
  const first = await guest.connect("a.test", 9);
  await fillUp(guest, first, clock);
  await first.send(RST);
  const second = await guest.connect("a.test", 9);
  await second.readAll();
  await fillUp(guest, second, clock);
  const { acknowledged } = second.segments.at(-1)!;
  await second.send(ACK | FIN, [], { sequence: acknowledged });
  await guest.ask("other.test");
  await clock.pass(2);
  await second.segment((it) => it.acknowledged === acknowledged + 1 >>> 0);
  await guest.network[Symbol.asyncDispose]();
});

Deno.test("GuestNetwork keeps few frames for a guest that does not read, and writes them in linear time", async () => {
  const dir = await Deno.makeTempDir();
  const path = join(dir, "net");
  const network = new GuestNetwork({ path, rules: [], emit: () => {} });
  using link = await Deno.connect({ transport: "unix", path });
  for (let index = 0; index < 500_000; index++) {
    network.send(new Uint8Array(58));
  }
  const buffer = new Uint8Array(1 << 20);
  let bytes = await link.read(buffer) ?? 0;
  network.send(new Uint8Array(59));
  const spent = await cpuMs(async () => {
    while (bytes % 58 !== 1) bytes += await link.read(buffer) ?? 0;
  });
  assert(bytes < 58 * 120_000, `${bytes} bytes`);
  assert(spent < 2000, `${spent} ms`);
  await network[Symbol.asyncDispose]();
  await Deno.remove(dir, { recursive: true });
});

Deno.test("GuestNetwork reports allowed connections during a flood of refused ones, and short reasons", async () => {
  using clock = installManualClock();
  await using server = startServer(echo);
  await using guest = await startNetGuest({
    rules: [`a.test:443=${server.at}`],
  });
  for (let index = 0; index < 250; index++) {
    await guest.ask(`name${index}.test`);
  }
  const connection = await guest.connect("a.test", 443);
  assertEquals(guest.events.length, 201);
  assertEquals(guest.events.at(-1)?.allowed, true);
  await clock.pass(250);
  const { allowed, host, reason } = guest.events.at(-1)!;
  assertEquals([allowed, host, reason], [false, "*", "50 more"]);
  const name = "\x9b" + "b".repeat(9000);
  await connection.write(tlsRecords(clientHello([serverName(name)])))
    .catch(() => {});
  await connection.reset();
  const { reason: last } = await nthEvent(guest, 203);
  assert(last.length < 320 && !/\p{Cc}/u.test(last), last);
  // Too short for a header of UDP.
  await guest.sendIp(17, "1.1.1.1", [1, 2, 3]);
  await guest.nextIp();
  assertEquals(guest.events.at(-1)?.port, null);
});

Deno.test("GuestNetwork dials no public address of this host, NAT64 and 6to4 included", async () => {
  const own = Deno.networkInterfaces()[0];
  using _interfaces = replaceMethod(Deno, {
    networkInterfaces: () => [{ ...own, address: "9.8.7.6" }],
  });
  const { connect } = Deno;
  const dialed: string[] = [];
  using _connect = replaceMethod(Deno, {
    connect(options: Deno.ConnectOptions) {
      if (!("port" in options)) return connect(options);
      dialed.push(options.hostname!);
      return Promise.reject(new Error("nobody"));
    },
  });
  const answers = ["9.8.7.6", "64:ff9b::908:706", "2002:908:706::1", "9.8.7.7"];
  await using guest = await startNetGuest({
    rules: ["a.test"],
    resolve: () => Promise.resolve([...answers]),
  });
  await assertRejects(() => guest.connect("a.test", 443), Error, "reset");
  assertEquals(dialed, ["9.8.7.7"]);
});
