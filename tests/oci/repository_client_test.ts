import { assert, assertEquals, assertRejects } from "@std/assert";
import { hasNetPermission } from "../../lib/oci/_permission_queries.ts";
import { repositoryClient } from "../../lib/oci/endpoints.ts";
import type { RegistryOptions } from "../../lib/oci/registry_options.ts";
import { RangesUnavailableError } from "../../lib/transfer/byte_source.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";

const NEVER = new AbortController().signal;

/** Requests the path `x` from a fake server, and records the requests. */
async function get(
  answer: (path: string, request: Request) => Response | Promise<Response>,
  { port: given, query, ...options }: RegistryOptions & {
    port?: number;
    query?: string;
  } = {},
  signal = NEVER,
) {
  const asked: string[] = [];
  const closing = new AbortController();
  // 127.0.0.1 and localhost are two hosts on the same server.
  const server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, signal: closing.signal, onListen() {} },
    (request) => {
      const { hostname, pathname, search } = new URL(request.url);
      const known = request.headers.get("authorization") ?? "nobody";
      asked.push(`${hostname}${pathname}${search} ${known}`);
      return answer(pathname, request);
    },
  );
  const { port } = server.addr;
  const host = `127.0.0.1:${given ?? port}`;
  await using dir = await temporaryDir();
  const auths = { [host]: { auth: btoa("u:p") } };
  await Deno.writeTextFile(
    `${dir.path}/config.json`,
    JSON.stringify({ auths }),
  );
  const env = new Map([["DOCKER_CONFIG", dir.path]]);
  using repository = await repositoryClient({
    ...{ baseUrl: `http://${host}/v2`, host, query, repository: "o/vm" },
    ...{ resolvesTags: true, options: { env, ...options } },
  });
  const start = "127.0.0.1/v2/o/vm/";
  try {
    const [response, url] = await repository
      .get("x", { headers: { range: "bytes=0-1" }, signal });
    const text = await response.text();
    const { status } = response;
    return { asked, start, port, status, text, url, repository };
  } catch (error) {
    return { asked, start, port, error };
  } finally {
    closing.abort();
    await server.finished;
  }
}

const to = (location: string, status = 307) =>
  new Response("a body", { status, headers: { location } });
const unknown = (challenge: string) =>
  new Response("a body", {
    status: 401,
    headers: { "www-authenticate": challenge },
  });

Deno.test("RepositoryClient.get() requests a path below the repository with query and headers", async () => {
  let range: string | null = "";
  const { asked, status, text, url, port, repository } = await get(
    (_, { headers }) => {
      range = headers.get("range");
      return new Response("fine", { status: 206 });
    },
    { query: "ns=ghcr.io" },
  );
  assertEquals(asked, ["127.0.0.1/v2/o/vm/x?ns=ghcr.io nobody"]);
  assertEquals([status, text, range], [206, "fine", "bytes=0-1"]);
  assertEquals(url!.href, `http://127.0.0.1:${port}/v2/o/vm/x?ns=ghcr.io`);
  assert(repository!.isRegistryUrl(new URL("/else", url)));
  assert(
    !repository!.isRegistryUrl(new URL(`http://localhost:${port}/v2/o/vm/x`)),
  );
  assert(
    !repository!.isRegistryUrl(new URL(`https://127.0.0.1:${port}/v2/o/vm/x`)),
  );
});

Deno.test("RepositoryClient.get() follows 301, 302, 303, 307 and 308, and no other status", async () => {
  for (const status of [301, 302, 303, 307, 308]) {
    const { asked, text } = await get((path) =>
      path === "/end" ? new Response("there") : to("/end", status)
    );
    assertEquals(text, "there", `${status}`);
    assertEquals(asked.length, 2);
  }
  for (const status of [300, 304]) {
    const bare = new Response(null, { status, headers: { location: "/end" } });
    assertEquals((await get(() => bare)).status, status);
  }
  const none = await get(() => new Response("no address", { status: 307 }));
  assertEquals([none.status, none.text], [307, "no address"]);
});

Deno.test("RepositoryClient.get() refuses redirects to other schemes, invalid URLs and more than 10 redirects", async () => {
  const refused: [string, string][] = [
    ["ftp://127.0.0.1/x", "redirected to ftp://127.0.0.1, which is not"],
    ["http://[", "redirected to an invalid URL"],
    ["/v2/o/vm/x", "redirected more than 10 times"],
  ];
  for (const [location, reason] of refused) {
    const { error, port } = await get(() => to(location));
    const { message } = await expectFailure("redirect_refused", () => {
      throw error;
    });
    const words = `Cannot download http://127.0.0.1:${port}/v2/o/vm/x`;
    assert(message.startsWith(`${words}: ${reason}`), message);
  }
  const away = await get(() => to("https://nowhere.invalid/x"));
  await expectFailure("dns_failed", () => {
    throw away.error;
  });
});

Deno.test("RepositoryClient.get() sends credentials to the registry after a 401, never to a redirect target", async () => {
  const basic = `Basic ${btoa("u:p")}`;
  const { asked, start, text, status } = await get((path, request) => {
    const { hostname, port } = new URL(request.url);
    if (hostname === "localhost") return unknown('Basic realm="cdn"');
    if (!request.headers.has("authorization")) {
      return unknown('Basic realm="registry"');
    }
    return path === "/again"
      ? to(`http://localhost:${port}/blob`)
      : to("/again");
  });
  assertEquals(asked, [
    `${start}x nobody`,
    `${start}x ${basic}`,
    `127.0.0.1/again ${basic}`,
    "localhost/blob nobody",
  ]);
  // The caller handles a 401 of the redirect target.
  assertEquals([status, text], [401, "a body"]);
});

Deno.test("RepositoryClient.get() repeats a request with a new token after the registry has rejected an expired one", async () => {
  let tokens = 0;
  const { asked, text, start } = await get((path, { url, headers }) => {
    if (path === "/token") return Response.json({ token: `t${++tokens}` });
    return headers.get("authorization") === "Bearer t2"
      ? new Response("fine")
      : unknown(`Bearer realm="${new URL("/token", url)}"`);
  });
  assertEquals(text, "fine");
  assertEquals(asked.filter((it) => !it.includes("/token")), [
    `${start}x nobody`,
    `${start}x Bearer t1`,
    `${start}x Bearer t2`,
  ]);
});

Deno.test("RepositoryClient.get() renews the token at most twice when the registry rejects every token", async () => {
  const { asked, status } = await get((path, { url }) => {
    if (path !== "/token") {
      return unknown(`Bearer realm="${new URL("/token", url)}"`);
    }
    return Response.json({ token: `t${Math.random()}` });
  });
  assertEquals(status, 401);
  assertEquals(asked.filter((it) => !it.includes("/token")).length, 3);
});

Deno.test("RepositoryClient.get() throws when the token service stalls, and when the client's or the request's signal is aborted", async () => {
  const silent = (path: string, { url }: Request) =>
    path === "/token"
      ? new Promise<Response>(() => {})
      : unknown(`Bearer realm="${new URL("/token", url)}"`);
  const late = await get(silent, { stallTimeoutMs: 300 });
  const { message } = await expectFailure("transfer_stalled", () => {
    throw late.error;
  });
  assertEquals(
    message,
    `Cannot download 127.0.0.1:${late.port}: no progress for 0.3 s`,
  );
  const cancel = new AbortController();
  const ended = await get((path, request) => {
    if (path === "/token") cancel.abort(new Error("enough"));
    return silent(path, request);
  }, { signal: cancel.signal });
  assertEquals((ended.error as Error).message, "enough");
  const own = new AbortController();
  const cut = await get(
    () => {
      own.abort(new Error("this one"));
      return new Promise<Response>(() => {});
    },
    {},
    own.signal,
  );
  assertEquals((cut.error as Error).message, "this one");
});

Deno.test("RepositoryClient.get() names the host when the connection fails", async () => {
  // Not a port that was free: another server may have got it meanwhile.
  const { error } = await get(() => new Response(), { port: 2 });
  const { message } = await expectFailure("connection_failed", () => {
    throw error;
  });
  assert(message.startsWith("Cannot download 127.0.0.1:2: connection failed"));
});

Deno.test({
  name:
    "RepositoryClient names the missing --allow-net flag and sends no request without it",
  permissions: { net: ["a.example:443", "b.example:80", "c.example:8080"] },
  async fn() {
    const permitted: [string, boolean][] = [
      ["https://a.example/x", true],
      ["http://a.example/x", false],
      ["http://b.example/x", true],
      ["https://b.example/x", false],
      ["https://c.example:8080/x", true],
      ["https://c.example/x", false],
      ["https://d.example/x", false],
    ];
    for (const [url, expected] of permitted) {
      assertEquals(await hasNetPermission(new URL(url)), expected, url);
    }
    using registry = await repositoryClient({
      ...{ baseUrl: "https://d.example:5000/v2", host: "d.example:5000" },
      ...{ repository: "o/vm", resolvesTags: true },
      options: { env: new Map([["DOCKER_CONFIG", "/nonexistent"]]) },
    });
    const options = { headers: {}, signal: NEVER };
    await assertRejects(
      () => registry.get("x", options),
      RangesUnavailableError,
      "--allow-net=d.example:5000 is not granted",
    );
    await assertRejects(
      () => registry.getAnonymously(new URL("https://e.example/"), options),
      RangesUnavailableError,
      "--allow-net=e.example is not granted",
    );
  },
});
