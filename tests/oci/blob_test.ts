import { assertEquals } from "@std/assert";
import { ToolsmithError } from "../../lib/errors.ts";
import { isOfPlace, mayAsk, pullBlob } from "../../lib/oci/blob.ts";
import { RangesUnavailable } from "../../lib/oci/_ranges_unavailable.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { openPart } from "../../lib/system/part_file.ts";
import type { Retry } from "../../lib/system/retry.ts";
import {
  type BlobRequest,
  type BlobServer,
  startBlobServer,
} from "../support/blob_server.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";

const SIZE = 100_000;
type Answer = (request: BlobRequest) => Response | undefined;

const right = () => undefined;
const status = (status: number) => () => new Response(null, { status });

/** Pulls a blob from mirrors and a registry that answer so, the registry last. */
async function pull(
  answers: Answer[],
  given: { signal?: AbortSignal; breaks?: boolean } = {},
) {
  await using undo = new AsyncDisposableStack();
  const dir = undo.use(await temporaryDir());
  const servers: BlobServer[] = [];
  for (const answer of answers) {
    const bytes = servers[0]?.bytes;
    servers.push(
      undo.use(await startBlobServer({ size: SIZE, answer, bytes })),
    );
  }
  const hosts = servers.map(({ origin }) => new URL(origin).host);
  const { digest } = servers[0];
  const part = undo.use(await openPart(dir.path, { size: SIZE, digest }));
  if (given.breaks) part.openWriter = () => Promise.reject(new Error("broken"));
  const failed: [number, string][] = [];
  const retries: Retry[] = [];
  let progress = 0;
  const ended = await pullBlob(
    {
      reference: parseReference(`${hosts.at(-1)}/o/vm:1`),
      registry: { env: new Map() },
      mirrors: servers.slice(0, -1)
        .map(({ origin }) => ({ base: `${origin}/v2`, resolves: true })),
    },
    { title: "i.qcow2", size: SIZE, digest, sha256: digest.slice(7) },
    {
      part,
      connections: 2,
      retries: {
        retries: 1,
        retryDelayMs: 1,
        signal: given.signal,
        onRetry: (retry) => retries.push(retry),
      },
      onBytes: () => progress++,
      onMirrorFailed: (host, why) => failed.push([hosts.indexOf(host), why]),
    },
  ).then(
    (result) => ({ result, error: undefined }),
    (error) => ({ result: undefined, error }),
  );
  const asked = servers.map(({ asked }) => asked.length);
  const is = JSON.stringify(ended.result) ===
    JSON.stringify({ sha256: digest.slice(7) });
  return { ...ended, asked, failed, retries, progress, is, hosts };
}

Deno.test("a blob comes from the first mirror alone, with the digest that it has", async () => {
  const { is, asked, failed, progress } = await pull([right, right, right]);
  assertEquals([is, asked, failed], [true, [1, 0, 0], []]);
  assertEquals(progress > 0, true);
});

Deno.test("without a mirror, or with none that serves it, it comes from the registry", async () => {
  assertEquals((await pull([right])).is, true);
  const { is, asked, failed, retries, hosts } = await pull(
    [status(404), status(503), right],
  );
  assertEquals([is, asked], [true, [1, 2, 1]]);
  assertEquals(failed, [
    [0, `${hosts[0]} answers 404`],
    [1, `Cannot download ${hosts[1]}: the server answered 503`],
  ]);
  assertEquals(retries.length, 1);
});

Deno.test("pullBlob skips a mirror that redirects to where it must not, and throws where the registry does", async () => {
  const away = () =>
    new Response(null, { status: 307, headers: { location: "ftp://x" } });
  const { is, asked, failed } = await pull([away, right]);
  assertEquals([is, asked, failed.length], [true, [1, 1], 1]);
  const { error } = await pull([away]);
  await failure("redirect_refused", () => {
    throw error;
  });
});

Deno.test("a registry without ranges is a reason, and one that is down an error", async () => {
  const none = await pull([status(404), status(416)]);
  const reason = `${none.hosts[1]} answers 416`;
  assertEquals(none.result, { unavailable: reason });
  assertEquals(none.failed.length, 1);
  const down = await pull([status(503)]);
  await failure("registry_unavailable", () => {
    throw down.error;
  });
});

Deno.test("what is no mirror's fault is not blamed on it, and no other is asked", async () => {
  const full = await pull([right, right], { breaks: true });
  assertEquals(full.error.message, "broken");
  assertEquals([full.asked, full.failed], [[1, 0], []]);
  const signal = AbortSignal.abort(new Error("enough"));
  const ended = await pull([right, right], { signal });
  assertEquals(ended.error.message, "enough");
  assertEquals([ended.asked, ended.failed], [[0, 0], []]);
});

Deno.test("another place may do better where one is down, unknown or not trusted", () => {
  const error = (code: ToolsmithError["code"]) => new ToolsmithError(code, "x");
  const of = [
    new RangesUnavailable("x"),
    error("dns_failed"),
    error("tls_failed"),
    error("file_unreadable"),
    error("redirect_refused"),
    error("registry_unavailable"),
    error("rate_limited"),
    error("transfer_stalled"),
  ];
  const not = [error("disk_full"), new Error("x"), new DOMException("x")];
  assertEquals(of.map(isOfPlace), of.map(() => true));
  assertEquals(not.map(isOfPlace), not.map(() => false));
});

const PLACES = {
  reference: parseReference("reg.example/o/vm:1"),
  registry: {},
  mirrors: [
    { base: "https://a.example/v2", resolves: true },
    { base: "http://b.example:5000/v2", resolves: true },
  ],
};

const PERMITTED: [string, string[], boolean][] = [
  ["the registry", ["reg.example:443"], true],
  ["a mirror", ["b.example:5000"], true],
  ["another port", ["reg.example:5000", "a.example:80"], false],
];

for (const [name, net, expected] of PERMITTED) {
  Deno.test({
    name: `where Deno permits ${name}, ${
      expected ? "a" : "no"
    } place may be asked`,
    permissions: { net },
    async fn() {
      assertEquals(await mayAsk(PLACES), expected);
    },
  });
}
