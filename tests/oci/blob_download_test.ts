import { assert, assertEquals } from "@std/assert";
import { ToolsmithError } from "../../lib/errors.ts";
import {
  downloadBlob,
  hasPermittedEndpoint,
  isEndpointError,
  probeBlob,
} from "../../lib/oci/blob_download.ts";
import { type Endpoint, registryEndpoint } from "../../lib/oci/endpoints.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { openPartFile } from "../../lib/system/part_file.ts";
import type { ScheduledRetry } from "../../lib/system/retry.ts";
import { RangesUnavailableError } from "../../lib/transfer/byte_source.ts";
import { hashPartFileWhileFilling } from "../../lib/transfer/file_digest.ts";
import {
  type BlobRequest,
  type BlobServer,
  startBlobServer,
} from "../support/blob_server.ts";
import { temporaryDir } from "../support/directory.ts";
import { replaceMethod } from "../support/replace_method.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { scaleClock } from "../support/timers.ts";

const SIZE = 100_000;
const BYTES = new Uint8Array(SIZE).map((_, at) => at * 31 + (at >> 8));
type Answer = (request: BlobRequest) => Response | undefined;

const right = () => undefined;
const status = (status: number) => () => new Response(null, { status });

function endpointOf(baseUrl: string): Endpoint {
  const { host } = new URL(baseUrl);
  const options = { env: new Map([["DOCKER_CONFIG", "/nonexistent"]]) };
  return { baseUrl, host, repository: "o/vm", resolvesTags: true, options };
}

/** Downloads a blob from servers with these responses; the last one is the registry. */
async function pull(
  answers: Answer[],
  given: { signal?: AbortSignal; breaks?: boolean; gone?: boolean } = {},
) {
  // Slow time, so that no connection takes over what another one requested.
  using _clock = scaleClock(0.001);
  await using undo = new AsyncDisposableStack();
  const dir = undo.use(await temporaryDir());
  const servers: BlobServer[] = [];
  for (const answer of answers) {
    servers.push(undo.use(await startBlobServer({ bytes: BYTES, answer })));
  }
  const hosts = servers.map(({ origin }) => new URL(origin).host);
  const { digest } = servers[0];
  const part = undo.use(await openPartFile(dir.path, { size: SIZE, digest }));
  if (given.breaks) part.openWriter = () => Promise.reject(new Error("broken"));
  // Not the port of a server that ended: another one may have got it meanwhile.
  if (given.gone) hosts.splice(-1, 1, "127.0.0.1:2");
  const failed: [number, string][] = [];
  const retries: ScheduledRetry[] = [];
  let progress = 0;
  const endpoints = hosts.map((host) => endpointOf(`http://${host}/v2`));
  const fill = () =>
    downloadBlob(
      { mirrors: endpoints.slice(0, -1), registry: endpoints.at(-1)! },
      { title: "i.qcow2", size: SIZE, digest, sha256: digest.slice(7) },
      part,
      {
        ...{ connections: 2, retries: 1, retryDelayMs: 0 },
        signal: given.signal,
        onRetry: (retry) => retries.push(retry),
        onBytesWritten: () => progress++,
        onMirrorFailed: (mirror, reason) =>
          failed.push([hosts.indexOf(mirror), reason]),
      },
    );
  const ended = await hashPartFileWhileFilling(part, given.signal, fill).then(
    (result) => ({ result, error: undefined }),
    (error) => ({ result: undefined, error }),
  );
  const asked = servers.map(({ requestedRanges }) => requestedRanges.length);
  const is = ended.result === digest.slice(7);
  return { ...ended, asked, failed, retries, progress, is, hosts };
}

Deno.test("downloadBlob() downloads the right bytes from the first working mirror only", async () => {
  const { is, asked, failed, progress } = await pull([right, right, right]);
  assertEquals([is, asked, failed], [true, [1, 0, 0], []]);
  assertEquals(progress > 0, true);
});

Deno.test("downloadBlob() downloads from the registry when there is no mirror or all mirrors fail", async () => {
  assertEquals((await pull([right])).is, true);
  const { is, asked, failed, retries, hosts } = await pull(
    [status(404), status(503), right],
  );
  assertEquals([is, asked], [true, [1, 2, 1]]);
  assertEquals(failed, [
    [0, `${hosts[0]} answered 404`],
    [1, `Cannot download ${hosts[1]}: the server answered 503`],
  ]);
  assertEquals(retries.length, 1);
});

Deno.test("downloadBlob() skips a mirror that sends a forbidden redirect, and throws redirect_refused if the registry sends one", async () => {
  const away = () =>
    new Response(null, { status: 307, headers: { location: "ftp://x" } });
  const { is, asked, failed } = await pull([away, right]);
  assertEquals([is, asked, failed.length], [true, [1, 1], 1]);
  const { error } = await pull([away]);
  await expectFailure("redirect_refused", () => {
    throw error;
  });
});

Deno.test("downloadBlob() throws RangesUnavailableError after a 416 or a refused connection, and registry_unavailable after a 503", async () => {
  const none = await pull([status(404), status(416)]);
  const reason = `${none.hosts[1]} answered 416`;
  assert(none.error instanceof RangesUnavailableError);
  assertEquals([none.error.message, none.error.cause], [reason, undefined]);
  assertEquals(none.failed.length, 1);
  const gone = await pull([right], { gone: true });
  assert(gone.error instanceof RangesUnavailableError);
  const { cause } = gone.error;
  assert(cause instanceof ToolsmithError);
  assertEquals(cause.code, "connection_failed");
  const down = await pull([status(503)]);
  await expectFailure("registry_unavailable", () => {
    throw down.error;
  });
});

Deno.test("downloadBlob() throws a local write error or the abort reason, and tries no other endpoint", async () => {
  const full = await pull([right, right], { breaks: true });
  assertEquals(full.error.message, "broken");
  assertEquals([full.asked, full.failed], [[1, 0], []]);
  const signal = AbortSignal.abort(new Error("enough"));
  const ended = await pull([right, right], { signal });
  assertEquals(ended.error.message, "enough");
  assertEquals([ended.asked, ended.failed], [[0, 0], []]);
});

Deno.test("isEndpointError() returns true for errors of one endpoint, such as DNS, TLS or a stall", () => {
  const error = (code: ToolsmithError["code"]) => new ToolsmithError(code, "x");
  const of = [
    new RangesUnavailableError("x"),
    error("dns_failed"),
    error("tls_failed"),
    error("file_unreadable"),
    error("redirect_refused"),
    error("registry_unavailable"),
    error("rate_limited"),
    error("transfer_stalled"),
  ];
  const not = [error("disk_full"), new Error("x"), new DOMException("x")];
  assertEquals(of.map(isEndpointError), of.map(() => true));
  assertEquals(not.map(isEndpointError), not.map(() => false));
});

const ENDPOINTS = {
  registry: endpointOf("https://reg.example/v2"),
  mirrors: ["https://a.example/v2", "http://b.example:5000/v2"].map(endpointOf),
};

const PERMITTED: [string, string[], boolean][] = [
  ["the registry", ["reg.example:443"], true],
  ["a mirror", ["b.example:5000"], true],
  ["another port", ["reg.example:5000", "a.example:80"], false],
];

for (const [name, net, expected] of PERMITTED) {
  Deno.test({
    name:
      `hasPermittedEndpoint() returns ${expected} with --allow-net for ${name}`,
    permissions: { net },
    async fn() {
      assertEquals(await hasPermittedEndpoint(ENDPOINTS), expected);
    },
  });
}

Deno.test({
  name: "probeBlob() reads no CA file without permission for the registry",
  permissions: { net: false },
  async fn() {
    const read: unknown[] = [];
    using _reads = replaceMethod(Deno, {
      readTextFile: (path: string | URL) => {
        read.push(path);
        return Promise.resolve("");
      },
    });
    const reference = parseReference("oci://registry.test/demo:1");
    const registry = registryEndpoint(reference, { caFile: "/ca.pem" });
    await probeBlob(registry, "sha256:0");
    assertEquals(read, []);
  },
});
