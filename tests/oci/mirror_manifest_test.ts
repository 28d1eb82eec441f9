import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import { fetchMirroredManifest } from "../../lib/oci/mirror_manifest.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import type { RegistryOptions } from "../../lib/oci/registry.ts";
import { asDigest, sha256OfText } from "../../lib/system/digest.ts";
import { heldTimers } from "../support/timers.ts";

const IMAGE = parseReference("reg.example:5000/owner/vm:1");
const MANIFEST = JSON.stringify({ schemaVersion: 2, layers: [] });
const DIGEST = asDigest(await sha256OfText(MANIFEST));
const EXACT = { ...IMAGE, tag: undefined, digest: DIGEST };

interface Given {
  reference?: typeof IMAGE;
  /** Whether each mirror may say what a tag names. */
  resolves?: boolean[];
  registry?: RegistryOptions;
  check?: () => void;
}

/** Asks two mirrors, which answer like that; says what was asked and given up. */
async function ask(
  answers: ((request: Request) => Response | Promise<Response>)[],
  given: Given = {},
) {
  await using servers = new AsyncDisposableStack();
  const closing = new AbortController();
  const requests: { at: number; url: URL; headers: Headers }[] = [];
  const failed: [number, string][] = [];
  const hosts: string[] = [];
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
      // Answers that never come are not waited for.
      closing.abort();
      await server.finished;
    });
    hosts.push(`127.0.0.1:${server.addr.port}`);
    const resolves = given.resolves?.[at] ?? true;
    return { base: `http://${hosts[at]}/v2`, resolves };
  });
  const { reference = IMAGE, registry = {}, check = () => {} } = given;
  const env = new Map([["DOCKER_CONFIG", "/nonexistent"]]);
  const places = { reference, registry: { env, ...registry }, mirrors };
  const found = await fetchMirroredManifest(places, {
    check,
    onMirrorFailed: (host, why) => failed.push([hosts.indexOf(host), why]),
  });
  return { digest: found?.digest, requests, failed };
}

const serve = () => new Response(MANIFEST);
const refuse = (status: number) => () => new Response("no", { status });

Deno.test("the first mirror that has the manifest is asked alone, in the registry's name", async () => {
  const { digest, requests, failed } = await ask([serve, serve]);
  assertEquals([digest, failed], [DIGEST, []]);
  assertEquals(requests.map(({ at }) => at), [0]);
  const [{ url, headers }] = requests;
  assertEquals(url.pathname, "/v2/owner/vm/manifests/1");
  assertEquals(url.search, "?ns=reg.example%3A5000");
  assertEquals(headers.get("accept-encoding"), "identity");
  assertEquals(headers.get("accept")?.split(", ").length, 4);
});

Deno.test("a mirror that may not resolve tags is asked for digests alone", async () => {
  const resolves = [false, true];
  const tag = await ask([serve, serve], { resolves });
  assertEquals([tag.digest, tag.failed], [DIGEST, []]);
  assertEquals(tag.requests.map(({ at }) => at), [1]);
  const exact = await ask([serve, serve], { resolves, reference: EXACT });
  const [{ at, url }] = exact.requests;
  assertEquals([at, exact.requests.length], [0, 1]);
  assertEquals(url.pathname, `/v2/owner/vm/manifests/${DIGEST}`);
  const none = await ask([serve], { resolves });
  assertEquals([none.digest, none.requests, none.failed], [undefined, [], []]);
});

Deno.test("a mirror that does not have it is given up with a reason, and the next one asked", async () => {
  const large = " ".repeat(1024 * 1024 - MANIFEST.length + 1) + MANIFEST;
  const other = asDigest(await sha256OfText("{}"));
  const cases: [() => Response | Promise<Response>, string, Given?][] = [
    [refuse(404), "it answers 404"],
    [refuse(503), "it answers 503"],
    [() => new Response(null, { status: 204 }), "it answers 204"],
    [
      () => new Response("{}"),
      `it sent a manifest with the digest ${other}`,
      { reference: EXACT },
    ],
    [() => new Response(large), "its manifest is too long"],
  ];
  for (const [answer, why, given] of cases) {
    const { digest, failed } = await ask([answer, serve], given);
    assertEquals(failed, [[0, why]]);
    assertEquals(digest, DIGEST);
  }
  const none = await ask([refuse(404), refuse(403)]);
  assertEquals(none.digest, undefined);
  assertEquals(none.failed, [[0, "it answers 404"], [1, "it answers 403"]]);
});

Deno.test("a manifest of a mirror may have a mebibyte, and is refused if the image will not do", async () => {
  const largest = " ".repeat(1024 * 1024 - MANIFEST.length) + MANIFEST;
  const { failed, digest } = await ask([() => new Response(largest)]);
  assertEquals(failed, []);
  assertEquals(digest, asDigest(await sha256OfText(largest)));
  let checks = 0;
  const old = await ask([serve, serve], {
    check() {
      if (++checks === 1) throw new Error("it is out of date");
    },
  });
  assertEquals(old.failed, [[0, "it is out of date"]]);
  assertEquals([old.digest, checks], [DIGEST, 2]);
});

Deno.test("a mirror that is silent is waited for as long as a registry, before its answer and in it", async () => {
  for (const stallTimeoutMs of [undefined, 123_456]) {
    const held = stallTimeoutMs ?? 60_000;
    using clocks = heldTimers(held);
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
        new RegExp(`: nothing arrived for ${held / 1000} s$`),
      );
      assertEquals(clocks.count(), 0);
    }
  }
});

Deno.test("who cancels while a mirror is asked gets the own reason, and no mirror is blamed", async () => {
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
