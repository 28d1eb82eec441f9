import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { httpsByteSource } from "../../lib/hydrate/_https_byte_source.ts";
import { createHttpClient } from "../../lib/system/http_client.ts";
import { createTransfer } from "../../lib/transfer/ranged_transfer.ts";
import { memoryTarget } from "../support/memory_target.ts";
import { runProcess } from "../../lib/system/process.ts";
import {
  type Certificate,
  certificateOfFile,
} from "../support/certificates.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { hydrateInProcess } from "../support/hydrate_here.ts";
import { requires } from "../support/parts.ts";
import {
  startTlsServer,
  type TlsExchange,
  type TlsServer,
} from "../support/tls_server.ts";
import { startTunnel } from "../support/tunnel.ts";
import { jsonLines, workspace } from "../support/workspace.ts";

const { ignore } = requires("openssl");
const HOST = "images.example.com";
const certificate = certificateOfFile(ignore, [HOST]);

/** Registers a test with an HTTPS server that has a handler for each path. */
function test(
  name: string,
  answers: Record<string, (exchange: TlsExchange) => Promise<void>>,
  body: (server: TlsServer, certificate: Certificate) => Promise<void>,
  options: { ignore?: boolean } = {},
) {
  Deno.test({
    name,
    ignore: ignore || options.ignore,
    async fn() {
      await using server = await startTlsServer(
        certificate(),
        (exchange) => answers[exchange.path](exchange),
      );
      await body(server, certificate());
    },
  });
}

const to = (location: string) => (exchange: TlsExchange) =>
  exchange.head(302, { location, "content-length": 0 });

async function serve(exchange: TlsExchange) {
  await exchange.head(200, { "content-length": 5 });
  await exchange.body(new TextEncoder().encode("image"));
}

/** Downloads a file into memory. */
async function read(
  server: TlsServer,
  path: string,
  { caFile, maxBytes, retries = 0, onBytes }: {
    caFile: string;
    maxBytes?: number;
    retries?: number;
    onBytes?: (bytes: number) => void;
  },
): Promise<string> {
  using client = await createHttpClient(caFile);
  const url = new URL(path, server.url);
  const source = httpsByteSource(url, client, maxBytes);
  using transfer = createTransfer(source, { retries, retryDelayMs: 1 });
  const target = memoryTarget((await transfer.openAndPeek(0, 1)).end);
  await transfer.fill(target, () => onBytes?.(target.bytes().length));
  return new TextDecoder().decode(target.bytes());
}

test("HTTPS download follows redirects to the same host and to another port", {
  "/a": to("/b?x=1"),
  "/b?x=1": to("/c"),
  "/c": serve,
}, async (server, certificate) => {
  await using first = await startTlsServer(
    certificate,
    to(`${server.url}/a`),
  );
  assertEquals(await read(first, "/", certificate), "image");
  assertEquals(first.requests.length, 1);
  assertEquals(server.requests.map(({ path }) => path), ["/a", "/b?x=1", "/c"]);
});

test("HTTPS download refuses a redirect to any scheme other than HTTPS", {
  "/http": to("http://127.0.0.1:1/image.qcow2"),
  "/file": to("file:///etc/passwd"),
  "/data": to("data:text/plain,x"),
  "/none": to("https://"),
}, async (server, { caFile }) => {
  for (const path of ["/http", "/file", "/data", "/none"]) {
    await expectFailure(
      "redirect_refused",
      () => read(server, path, { caFile }),
    );
  }
  assertEquals(server.requests.length, 4);
});

test("HTTPS download stops a redirect loop after ten redirects", {
  "/a": to("/b"),
  "/b": to("/a"),
}, async (server, { caFile }) => {
  const error = await expectFailure(
    "redirect_refused",
    () => read(server, "/a", { caFile }),
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

test(
  "HTTPS download refuses a redirect from a public server to loopback or a link-local address",
  {
    ...Object.fromEntries(PRIVATE.map((url, at) => [`/${at}`, to(url)])),
  },
  async (server, { caFile }) => {
    await using tunnel = startTunnel({
      [`${HOST}:443`]: new URL(server.url).host,
    });
    await using work = await workspace();
    for (const at of PRIVATE.keys()) {
      await work.manifest({
        qcow2: `https://${HOST}/${at}`,
        qcow2_sha256: "0".repeat(64),
      });
      const options = { variables: tunnel.env, caFile };
      const { code, status, message } = await hydrateInProcess(work, options);
      assertEquals([code, status], ["redirect_refused", 46], message);
      assertStringIncludes(message, "this host or its link-local network");
    }
    assertEquals([...new Set(tunnel.asked)], [`${HOST}:443`]);
  },
);

test(
  "HTTPS download stops when the server sends more bytes than it announced",
  {
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
  },
  async (server, { caFile }) => {
    let bytes = 0;
    const onBytes = (count: number) => bytes = count;
    const options = { caFile, retries: 3, onBytes };
    const error = await expectFailure(
      "checksum_mismatch",
      () => read(server, "/a", options),
    );
    assert(bytes <= 2000, `${bytes} bytes came through`);
    assertStringIncludes(error.message, "more than the 2000 bytes");
  },
);

test(
  "HTTPS download refuses an image larger than maxBytes, with or without Content-Length",
  {
    "/announced": (exchange) => exchange.head(200, { "content-length": 2001 }),
    "/chunked": async (exchange) => {
      await exchange.head(200, { "transfer-encoding": "chunked" });
      const chunk = new TextEncoder().encode(`3e8\r\n${"x".repeat(1000)}\r\n`);
      for (let sent = 0; sent < 1000; sent++) await exchange.body(chunk);
    },
  },
  async (server, { caFile }) => {
    for (
      const [path, most] of [["/announced", 0], ["/chunked", 2000]] as const
    ) {
      let bytes = 0;
      const onBytes = (count: number) => bytes = count;
      const options = { caFile, maxBytes: 2000, onBytes };
      const error = await expectFailure(
        "artifact_unsafe",
        () => read(server, path, options),
      );
      assertStringIncludes(error.message, "limit of 2000 bytes");
      assert(bytes <= most, `${bytes} bytes came through`);
    }
  },
);

test(
  "hydrate stops an endless HTTPS body before it uses the disk space that Toolsmith keeps free",
  {
    "/image.qcow2": async (exchange) => {
      await exchange.head(200, { "transfer-encoding": "chunked" });
      const size = 256 * 1024;
      const line = new TextEncoder().encode(`${size.toString(16)}\r\n`);
      const chunk = new Uint8Array(line.length + size + 2);
      chunk.set(line);
      chunk.set([13, 10], line.length + size);
      // Twice the size of the disk.
      for (let sent = 0; sent < 64 * 1024 * 1024; sent += size) {
        await exchange.body(chunk);
      }
    },
  },
  async (server, { caFile }) => {
    await using work = await workspace();
    const small = `${work.dir}/small`;
    await Deno.mkdir(small);
    const mount = await runProcess("mount", {
      args: ["-t", "tmpfs", "-o", "size=32m", "tmpfs", small],
    });
    // Containers may not mount a small file system.
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
      // Stopped before the disk was full.
      assertStringIncludes(last.message, "Not enough disk space");
      const most = events.filter(({ type }) => type === "download_progress")
        .reduce((most, { bytes }) => Math.max(most, bytes), 0);
      assert(most < 25 * 1024 * 1024, `${most} bytes were written`);
    } finally {
      // The hashing thread may still have the file open.
      await runProcess("umount", { args: ["--lazy", small] });
    }
  },
  requires("root"),
);
