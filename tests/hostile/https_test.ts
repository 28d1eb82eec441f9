import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { openHttps } from "../../lib/hydrate/_https.ts";
import { run } from "../../lib/system/process.ts";
import { type Certificate, issueCertificate } from "../support/certificates.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { needs } from "../support/parts.ts";
import {
  type Exchange,
  startTlsServer,
  type TlsServer,
} from "../support/tls_server.ts";
import { startTunnel } from "../support/tunnel.ts";
import { jsonLines, workspace } from "../support/workspace.ts";

const { ignore } = needs("openssl");
const HOST = "images.example.com";

/** Runs a test against a server that answers by path. */
function test(
  name: string,
  answers: Record<string, (exchange: Exchange) => Promise<void>>,
  body: (server: TlsServer, certificate: Certificate) => Promise<void>,
  options: { ignore?: boolean } = {},
) {
  Deno.test({
    name,
    ignore: ignore || options.ignore,
    async fn() {
      await using dir = await temporaryDir();
      const certificate = await issueCertificate(dir.path, [HOST]);
      await using server = await startTlsServer(
        certificate,
        (exchange) => answers[exchange.path](exchange),
      );
      await body(server, certificate);
    },
  });
}

const to = (location: string) => (exchange: Exchange) =>
  exchange.head(302, { location, "content-length": 0 });

async function serve(exchange: Exchange) {
  await exchange.head(200, { "content-length": 5 });
  await exchange.body(new TextEncoder().encode("image"));
}

async function read(server: TlsServer, path: string, caFile: string) {
  const options = { caFile, retries: 0 };
  using file = await openHttps(new URL(path, server.url), options);
  let text = "";
  for await (const chunk of file.chunks) {
    text += new TextDecoder().decode(chunk);
  }
  return text;
}

test("a redirect is followed, on the same host and to another port", {
  "/a": to("/b?x=1"),
  "/b?x=1": to("/c"),
  "/c": serve,
}, async (server, certificate) => {
  await using first = await startTlsServer(
    certificate,
    to(`${server.url}/a`),
  );
  assertEquals(await read(first, "/", certificate.caFile), "image");
  assertEquals(first.requests.length, 1);
  assertEquals(server.requests.map(({ path }) => path), ["/a", "/b?x=1", "/c"]);
});

test("a redirect out of HTTPS is refused, whatever it leads to", {
  "/http": to("http://127.0.0.1:1/image.qcow2"),
  "/file": to("file:///etc/passwd"),
  "/data": to("data:text/plain,x"),
  "/none": to("https://"),
}, async (server, { caFile }) => {
  for (const path of ["/http", "/file", "/data", "/none"]) {
    await failure("redirect_refused", () => read(server, path, caFile));
  }
  assertEquals(server.requests.length, 4);
});

test("redirects in a circle end after ten", {
  "/a": to("/b"),
  "/b": to("/a"),
}, async (server, { caFile }) => {
  const error = await failure(
    "redirect_refused",
    () => read(server, "/a", caFile),
  );
  assertStringIncludes(error.message, "more than 10 times");
  assertEquals(server.requests.length, 11);
});

const PRIVATE = [
  "https://127.0.0.1/c",
  "https://localhost/c",
  "https://[::1]/c",
  "https://169.254.169.254/latest",
  "https://2130706433/c",
];

test("a server of the internet cannot send this host to a private network", {
  ...Object.fromEntries(PRIVATE.map((url, at) => [`/${at}`, to(url)])),
}, async (server, { caFile }) => {
  await using tunnel = startTunnel({
    [`${HOST}:443`]: new URL(server.url).host,
  });
  await using work = await workspace();
  for (const at of PRIVATE.keys()) {
    await work.manifest({
      qcow2: `https://${HOST}/${at}`,
      qcow2_sha256: "0".repeat(64),
    });
    const { code, stdout } = await work.toolsmith(
      ["hydrate", "--json", "--ca-file", caFile],
      { env: tunnel.env, permissions: ["-A"] },
    );
    const { last } = jsonLines(stdout);
    assertEquals([last.code, code], ["redirect_refused", 46], last.message);
    assertStringIncludes(last.message, "this host or its link");
  }
  assertEquals([...new Set(tunnel.asked)], [`${HOST}:443`]);
});

test("a server that goes on beyond the length it announced is cut off", {
  "/a": async (exchange) => {
    if (exchange.number === 1) {
      await exchange.head(200, { "content-length": 2000 });
      return await exchange.body(new Uint8Array(1000));
    }
    await exchange.head(206, {
      "content-range": "bytes 1000-1999/2000",
      "content-length": 1_000_000,
    });
    await exchange.body(new Uint8Array(1_000_000));
  },
}, async (server, { caFile }) => {
  let bytes = 0;
  const options = { caFile, retryDelayMs: 1 };
  using file = await openHttps(new URL("/a", server.url), options);
  const error = await failure("checksum_mismatch", async () => {
    for await (const chunk of file.chunks) bytes += chunk.length;
  });
  assert(bytes <= 2000, `${bytes} bytes came through`);
  assertStringIncludes(error.message, "more than the 2000 bytes");
});

test("an image of more bytes than any has is refused, announced or not", {
  "/announced": (exchange) => exchange.head(200, { "content-length": 2001 }),
  "/chunked": async (exchange) => {
    await exchange.head(200, { "transfer-encoding": "chunked" });
    const chunk = new TextEncoder().encode(`3e8\r\n${"x".repeat(1000)}\r\n`);
    for (let sent = 0; sent < 1000; sent++) await exchange.body(chunk);
  },
}, async (server, { caFile }) => {
  for (const [path, most] of [["/announced", 0], ["/chunked", 2000]] as const) {
    let bytes = 0;
    const error = await failure("artifact_unsafe", async () => {
      const options = { caFile, retries: 0, maxBytes: 2000 };
      using file = await openHttps(new URL(path, server.url), options);
      for await (const chunk of file.chunks) bytes += chunk.length;
    });
    assertStringIncludes(error.message, "more than 2000 bytes");
    assert(bytes <= most, `${bytes} bytes came through`);
  }
});

test("a body without a length and an end leaves the disk its reserve", {
  "/image.qcow2": async (exchange) => {
    await exchange.head(200, { "transfer-encoding": "chunked" });
    const size = 256 * 1024;
    const line = new TextEncoder().encode(`${size.toString(16)}\r\n`);
    const chunk = new Uint8Array(line.length + size + 2);
    chunk.set(line);
    chunk.set([13, 10], line.length + size);
    // As much as the disk holds, twice.
    for (let sent = 0; sent < 64 * 1024 * 1024; sent += size) {
      await exchange.body(chunk);
    }
  },
}, async (server, { caFile }) => {
  await using work = await workspace();
  const small = `${work.dir}/small`;
  await Deno.mkdir(small);
  const mount = await run("mount", {
    args: ["-t", "tmpfs", "-o", "size=32m", "tmpfs", small],
  });
  // A container may not mount: there is no small disk to try this on.
  if (mount.code !== 0) return console.error("skipped: mount is not allowed");
  try {
    await work.manifest({
      qcow2: `${server.url}/image.qcow2`,
      qcow2_sha256: "0".repeat(64),
    });
    const { code, stdout } = await work.toolsmith(
      ["hydrate", "--json", "--ca-file", caFile, "--cache", `${small}/cache`],
      { permissions: ["-P=hydrate", "--allow-net=127.0.0.1"] },
    );
    const { last, events } = jsonLines(stdout);
    assertEquals([last.code, code], ["disk_full", 50], last.message);
    // Refused by the program, and not by the disk.
    assertStringIncludes(last.message, "Not enough space");
    const most = events.filter(({ type }) => type === "download_progress")
      .reduce((most, { bytes }) => Math.max(most, bytes), 0);
    assert(most < 25 * 1024 * 1024, `${most} bytes were written`);
  } finally {
    await run("umount", { args: [small] });
  }
}, { ignore: Deno.build.os !== "linux" || Deno.uid() !== 0 });
