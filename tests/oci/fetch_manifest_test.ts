import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import { fetchManifestFromMirrors } from "../../lib/oci/fetch_manifest.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import type { RegistryOptions } from "../../lib/oci/registry_options.ts";
import { sha256OfText, sha256ToDigest } from "../../lib/system/digest.ts";
import { holdTimers } from "../support/timers.ts";

const IMAGE = parseReference("reg.example:5000/owner/vm:1");
const SHA256 = "1".repeat(64);
const MANIFEST = manifest(SHA256);
const DIGEST = sha256ToDigest(await sha256OfText(MANIFEST));
const EXACT = { ...IMAGE, tag: undefined, digest: DIGEST };

interface Given {
  reference?: typeof IMAGE;
  /** Whether each mirror may resolve tags. */
  resolvesTags?: boolean[];
  registry?: RegistryOptions;
}

/** Requests a manifest from mirrors; returns the requests and the failed mirrors. */
async function ask(
  answers: ((request: Request) => Response | Promise<Response>)[],
  given: Given = {},
) {
  await using servers = new AsyncDisposableStack();
  const closing = new AbortController();
  const requests: { at: number; url: URL; headers: Headers }[] = [];
  const failed: [number, string][] = [];
  const hosts: string[] = [];
  const env = new Map([["DOCKER_CONFIG", "/nonexistent"]]);
  const mirrors = answers.map((answer, at) => {
    const { signal } = closing;
    const server = Deno.serve(
      { hostname: "127.0.0.1", port: 0, signal, onListen: () => {} },
      (request) => {
        const headers = new Headers(request.headers);
        requests.push({ at, url: new URL(request.url), headers });
        return answer(request);
      },
    );
    servers.defer(async () => {
      // A handler may never respond.
      closing.abort();
      await server.finished;
    });
    hosts.push(`127.0.0.1:${server.addr.port}`);
    return {
      ...{ baseUrl: `http://${hosts[at]}/v2`, host: hosts[at] },
      ...{ query: "ns=reg.example%3A5000", repository: "owner/vm" },
      resolvesTags: given.resolvesTags?.[at] ?? true,
      options: { env, ...given.registry },
    };
  });
  const { reference = IMAGE } = given;
  const found = await fetchManifestFromMirrors(
    mirrors,
    reference,
    SHA256,
    (host, why) => failed.push([hosts.indexOf(host), why]),
  );
  return { digest: found?.digest, requests, failed };
}

/** Returns the manifest of an image with this SHA-256. */
function manifest(sha256: string): string {
  const annotations = { "org.opencontainers.image.title": "i.qcow2" };
  const digest = sha256ToDigest(sha256);
  const layer = { mediaType: "a/b", digest, size: 1, annotations };
  return JSON.stringify({ schemaVersion: 2, layers: [layer] });
}

const serve = () => new Response(MANIFEST);
const refuse = (status: number) => () => new Response("no", { status });

Deno.test("fetchManifestFromMirrors() requests the manifest from the first mirror only, with the ns query", async () => {
  const { digest, requests, failed } = await ask([serve, serve]);
  assertEquals([digest, failed], [DIGEST, []]);
  assertEquals(requests.map(({ at }) => at), [0]);
  const [{ url, headers }] = requests;
  assertEquals(url.pathname, "/v2/owner/vm/manifests/1");
  assertEquals(url.search, "?ns=reg.example%3A5000");
  assertEquals(headers.get("accept-encoding"), "identity");
  assertEquals(headers.get("accept")?.split(", ").length, 4);
});

Deno.test("fetchManifestFromMirrors() requests no tag from a mirror without the resolve capability", async () => {
  const resolvesTags = [false, true];
  const tag = await ask([serve, serve], { resolvesTags });
  assertEquals([tag.digest, tag.failed], [DIGEST, []]);
  assertEquals(tag.requests.map(({ at }) => at), [1]);
  const exact = await ask([serve, serve], { resolvesTags, reference: EXACT });
  const [{ at, url }] = exact.requests;
  assertEquals([at, exact.requests.length], [0, 1]);
  assertEquals(url.pathname, `/v2/owner/vm/manifests/${DIGEST}`);
  const none = await ask([serve], { resolvesTags });
  assertEquals([none.digest, none.requests, none.failed], [undefined, [], []]);
});

Deno.test("fetchManifestFromMirrors() skips a mirror without the manifest, reports why and tries the next", async () => {
  const large = " ".repeat(1024 * 1024 - MANIFEST.length + 1) + MANIFEST;
  const other = sha256ToDigest(await sha256OfText("{}"));
  const cases: [() => Response | Promise<Response>, string, Given?][] = [
    [refuse(404), "the server answered 404"],
    [refuse(503), "the server answered 503"],
    [() => new Response(null, { status: 204 }), "the server answered 204"],
    [
      () => new Response("{}"),
      `the server sent a file with the digest ${other}, expected ${DIGEST}`,
      { reference: EXACT },
    ],
    [() => new Response(large), "the file exceeds 1 MiB"],
  ];
  for (const [answer, why, given] of cases) {
    const { digest, failed } = await ask([answer, serve], given);
    assertEquals(failed, [[0, why]]);
    assertEquals(digest, DIGEST);
  }
  const none = await ask([refuse(404), refuse(403)]);
  assertEquals(none.digest, undefined);
  assertEquals(none.failed, [[0, "the server answered 404"], [
    1,
    "the server answered 403",
  ]]);
});

Deno.test("fetchManifestFromMirrors() accepts a manifest of 1 MiB and skips a mirror that has another image", async () => {
  const largest = " ".repeat(1024 * 1024 - MANIFEST.length) + MANIFEST;
  const { failed, digest } = await ask([() => new Response(largest)]);
  assertEquals(failed, []);
  assertEquals(digest, sha256ToDigest(await sha256OfText(largest)));
  const other = () => new Response(manifest("2".repeat(64)));
  const old = await ask([other, serve]);
  assertEquals(old.failed.map(([at]) => at), [0]);
  assertMatch(old.failed[0][1], /^Checksum mismatch for i\.qcow2 in /);
  assertEquals(old.digest, DIGEST);
  const mediaType = "application/vnd.oci.image.index.v1+json";
  const index = JSON.stringify({
    mediaType,
    manifests: [{
      ...{ mediaType: "a/b", digest: DIGEST, size: 1 },
      platform: { architecture: "amd64", os: "linux" },
    }],
  });
  const indexed = await ask([() => new Response(index)]);
  assertEquals(indexed.failed, []);
  assertEquals(indexed.digest, sha256ToDigest(await sha256OfText(index)));
  const empty = JSON.stringify({ mediaType, manifests: [] });
  const skipped = await ask([() => new Response(empty), serve]);
  assertEquals(skipped.failed.map(([at]) => at), [0]);
  assertEquals(skipped.digest, DIGEST);
});

Deno.test("fetchManifestFromMirrors() skips a mirror after the stall timeout, before or during its response", async () => {
  for (const stallTimeoutMs of [undefined, 123_456]) {
    const held = stallTimeoutMs ?? 60_000;
    using clocks = holdTimers(held);
    const silent = () => {
      clocks.expire();
      return new Promise<Response>(() => {});
    };
    const stuck = () => {
      const pull = () => {
        setTimeout(clocks.expire, 50);
        return new Promise<void>(() => {});
      };
      return new Response(new ReadableStream({ pull }));
    };
    for (const answer of [silent, stuck]) {
      const registry = { stallTimeoutMs };
      const { digest, failed } = await ask([answer, serve], { registry });
      assertEquals([digest, failed.length], [DIGEST, 1]);
      const [[mirror, reason]] = failed;
      assertEquals(mirror, 0);
      assertMatch(
        reason,
        new RegExp(`: no progress for ${held / 1000} s$`),
      );
      assertEquals(clocks.count(), 0);
    }
  }
});

Deno.test("fetchManifestFromMirrors() throws the caller's abort reason and reports no mirror as failed", async () => {
  const cancel = new AbortController();
  const given = { registry: { signal: cancel.signal } };
  let asked = 0;
  const answer = () => {
    asked++;
    cancel.abort(new Error("enough"));
    return new Promise<Response>(() => {});
  };
  const error = await assertRejects(() => ask([answer, serve], given));
  assertEquals((error as Error).message, "enough");
  assertEquals(asked, 1);
});
