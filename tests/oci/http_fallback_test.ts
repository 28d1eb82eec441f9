import { assertEquals, assertStringIncludes } from "@std/assert";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "@std/path";
import { ToolsmithError } from "../../lib/errors.ts";
import { busyRegistryGuard } from "../../lib/oci/_http_fallback.ts";
import { orasClient } from "../../lib/oci/oras_client.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { fakeOras, shell } from "../support/fake_oras.ts";
import { foundTools, requires } from "../support/parts.ts";
import { replaceMethod } from "../support/replace_method.ts";
import { holdTimers } from "../support/timers.ts";
import { waitUntil } from "../support/wait_until.ts";

const TYPE = "application/vnd.oci.image.manifest.v1+json";
const LOGIN = `Basic ${btoa("me:s3cret")}`;

/** Starts a registry that requires a login and offers these schemes. */
async function site(challenges: string[], found = 200) {
  await using undo = new AsyncDisposableStack();
  const dir = undo.use(await temporaryDir());
  const asked: (string | undefined)[] = [];
  // Not Deno.serve(), which joins the headers into one.
  const server = createServer(({ headers: { authorization } }, response) => {
    asked.push(authorization);
    if (authorization === LOGIN) {
      response.writeHead(found, { "content-type": TYPE });
      return response.end(
        found === 200
          ? JSON.stringify({ schemaVersion: 2, mediaType: TYPE, layers: [] })
          : undefined,
      );
    }
    response.setHeader("www-authenticate", challenges);
    response.writeHead(401).end();
  });
  await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
  undo.defer(() => new Promise((done) => server.close(() => done())));
  const host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  const auths = { [host]: { auth: btoa("me:s3cret") } };
  await Deno.writeTextFile(
    join(dir.path, "config.json"),
    JSON.stringify({ auths }),
  );
  const env = new Map([
    ["TOOLSMITH_ORAS", foundTools.oras!],
    ["DOCKER_CONFIG", dir.path],
  ]);
  const all = undo.move();
  return {
    asked,
    fetch: (signal?: AbortSignal) =>
      orasClient({ env, signal }).fetchManifest(
        parseReference(`${host}/o/vm:1`),
      ),
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

const real = requires("oras");

Deno.test({
  name:
    "OrasClient.fetchManifest() logs in with Basic when the registry offers Negotiate first",
  ...real,
  async fn() {
    for (
      const challenges of [
        ['Negotiate, Basic realm="x"'],
        ["Negotiate", 'Basic realm="x"'],
        ["Negotiate YII=, NTLM", 'Basic realm="x"'],
      ]
    ) {
      await using all = await site(challenges);
      const { fetchedWithoutOras, layers } = await all.fetch();
      assertEquals([fetchedWithoutOras, layers], [true, []]);
      // Sent once only, after the challenge.
      assertEquals(all.asked.filter(Boolean), [LOGIN]);
    }
  },
});

Deno.test({
  name:
    "OrasClient.fetchManifest() names the offered schemes when none is supported",
  ...real,
  async fn() {
    await using all = await site(["Negotiate", 'Digest realm="x"']);
    const { message } = await expectFailure("unauthorized", () => all.fetch());
    assertStringIncludes(
      message,
      "the registry offers Negotiate, Digest, and only Basic and Bearer authentication is supported",
    );
    assertEquals(all.asked.filter(Boolean), []);
  },
});

Deno.test({
  name:
    "OrasClient.fetchManifest() without oras maps each registry error to its code",
  ...real,
  async fn() {
    for (
      const [code, status] of [
        ["forbidden", 403],
        ["not_found", 404],
        ["rate_limited", 429],
        ["registry_unavailable", 503],
      ] as const
    ) {
      await using all = await site(["Negotiate, Basic realm=x"], status);
      await expectFailure(code, () => all.fetch());
    }
  },
});

Deno.test({
  name:
    "OrasClient.fetchManifest() sends no password without oras when oras supports the first scheme",
  ...real,
  async fn() {
    // oras finds no password: it reads the variable of this process.
    await using all = await site(['Basic realm="x"', "Negotiate"]);
    const { message } = await expectFailure("unauthorized", () => all.fetch());
    assertStringIncludes(message, "(oras: ");
    assertEquals(all.asked.filter(Boolean), []);
  },
});

Deno.test({
  name:
    "OrasClient.fetchManifest() asks a registry that hangs for its schemes for no more than 10 seconds",
  ...shell,
  async fn() {
    await using fake = await fakeOras(
      "echo 'Error: response status code 401: unauthorized' >&2; exit 1",
    );
    using registry = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    using timers = holdTimers(10_000);
    const { port } = registry.addr as Deno.NetAddr;
    const reference = parseReference(`127.0.0.1:${port}/o/vm:1`);
    const fetching = orasClient(fake).fetchManifest(reference);
    const failed = expectFailure("unauthorized", () => fetching);
    await waitUntil("the request for the schemes", () => timers.count() > 0);
    timers.expire();
    assertStringIncludes((await failed).message, "(oras: ");
  },
});

Deno.test({
  name:
    "OrasClient.fetchManifest() requests no schemes over plain HTTP, where it sends no login",
  ...shell,
  async fn() {
    await using fake = await fakeOras(
      "echo 'Error: response status code 401: unauthorized' >&2; exit 1",
    );
    const headers = { "www-authenticate": "Negotiate" };
    using _network = replaceMethod(globalThis, {
      fetch: () => Promise.resolve(new Response("", { status: 401, headers })),
    });
    const client = orasClient({ env: fake.env, plainHttp: true });
    const reference = parseReference("reg.example/o/vm:1");
    const fetch = () => client.fetchManifest(reference);
    const { message } = await expectFailure("unauthorized", fetch);
    assertStringIncludes(message, "credentials are not sent over plain HTTP");
  },
});

/** A guard, a registry with a changeable status, and an oras that may fail. */
function guardedRegistry() {
  const seen = { requests: 0, runs: 0 };
  const now = { status: 200, headers: {}, orasFails: true };
  const server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    () => {
      seen.requests++;
      const manifest = { schemaVersion: 2, mediaType: TYPE, layers: [] };
      return Response.json(manifest, now);
    },
  );
  const reference = parseReference(`127.0.0.1:${server.addr.port}/o/vm:1`);
  const orasError = new ToolsmithError("registry_unavailable", "from oras");
  const work = () => {
    seen.runs++;
    return now.orasFails ? Promise.reject(orasError) : Promise.resolve("oras");
  };
  const guard = busyRegistryGuard({ env: new Map() });
  return {
    seen,
    now,
    run: (instead?: () => string) => guard(reference, work, instead),
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
}

Deno.test("busyRegistryGuard() runs oras again only when the registry has recovered", async () => {
  await using all = guardedRegistry();
  const { now, seen, run } = all;
  const fails = async () =>
    (await expectFailure("registry_unavailable", run)).message;
  now.status = 503;
  assertEquals(await fails(), "from oras");
  assertEquals(await fails(), "from oras");
  assertEquals(seen, { runs: 1, requests: 2 });
  Object.assign(now, { status: 200, orasFails: false });
  assertEquals(await run(), "oras");
  assertEquals(seen, { runs: 2, requests: 3 });
  assertEquals(await run(), "oras");
  assertEquals(seen, { runs: 3, requests: 3 });
});

Deno.test("busyRegistryGuard() returns the manifest's result, or else oras's error, or the registry's Retry-After", async () => {
  for (const status of [200, 404, 503]) {
    await using all = guardedRegistry();
    const { now, seen, run } = all;
    now.status = status;
    const failure = await expectFailure("registry_unavailable", () => run());
    assertEquals(failure.message, "from oras");
    assertEquals(seen, { runs: 1, requests: 1 });
  }
  await using all = guardedRegistry();
  const { now, seen, run } = all;
  assertEquals(await run(() => "manifest"), "manifest");
  Object.assign(now, { status: 429, headers: { "retry-after": "7" } });
  const { message } = await expectFailure("rate_limited", () => run());
  assertStringIncludes(message, "asks to wait 7 s");
  assertEquals(seen, { runs: 2, requests: 2 });
});
