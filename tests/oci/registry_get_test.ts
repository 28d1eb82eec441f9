import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  isPermitted,
  type RegistryAccess,
  registryGet,
} from "../../lib/oci/_registry_get.ts";
import { RangesUnavailable } from "../../lib/oci/_ranges_unavailable.ts";
import { httpClient } from "../../lib/system/http_client.ts";
import { failure } from "../support/failure.ts";

const NEVER = new AbortController().signal;

/** Asks for `x` of a server that answers so; says what it was asked. */
async function get(
  answer: (path: string, request: Request) => Response | Promise<Response>,
  access: Partial<RegistryAccess> = {},
  signal = NEVER,
) {
  const asked: string[] = [];
  const closing = new AbortController();
  // The same server by another name is another host.
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
  using client = await httpClient(undefined, { http2: false });
  const registry = registryGet({
    base: `http://127.0.0.1:${port}/v2`,
    repository: "o/vm",
    client,
    credentials: () => Promise.resolve({ login: { user: "u", password: "p" } }),
    stallMs: 60_000,
    ...access,
  });
  const start = "127.0.0.1/v2/o/vm/";
  try {
    const [response, url] = await registry
      .get("x", { headers: { range: "bytes=0-1" }, signal });
    const text = await response.text();
    return { asked, start, port, status: response.status, text, url, registry };
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

Deno.test("a path is asked for below the repository, with the query and the caller's headers", async () => {
  let range: string | null = "";
  const { asked, status, text, url, port, registry } = await get(
    (_, { headers }) => {
      range = headers.get("range");
      return new Response("fine", { status: 206 });
    },
    { query: "ns=ghcr.io" },
  );
  assertEquals(asked, ["127.0.0.1/v2/o/vm/x?ns=ghcr.io nobody"]);
  assertEquals([status, text, range], [206, "fine", "bytes=0-1"]);
  assertEquals(url!.href, `http://127.0.0.1:${port}/v2/o/vm/x?ns=ghcr.io`);
  assertEquals(registry!.host, `127.0.0.1:${port}`);
  assert(registry!.isOwn(new URL("/else", url)));
  assert(!registry!.isOwn(new URL(`http://localhost:${port}/v2/o/vm/x`)));
  assert(!registry!.isOwn(new URL(`https://127.0.0.1:${port}/v2/o/vm/x`)));
});

Deno.test("each kind of redirect is followed, and no other status", async () => {
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

Deno.test("a registry may redirect no further than any server", async () => {
  const refused: [string, string][] = [
    ["ftp://127.0.0.1/x", "it is redirected to ftp://127.0.0.1, which is not"],
    ["http://[", "it is redirected to what is not an address"],
    ["/v2/o/vm/x", "it was redirected more than 10 times"],
  ];
  for (const [location, reason] of refused) {
    const { error, port } = await get(() => to(location));
    const { message } = await failure("redirect_refused", () => {
      throw error;
    });
    const words = `Cannot download http://127.0.0.1:${port}/v2/o/vm/x`;
    assert(message.startsWith(`${words}: ${reason}`), message);
  }
  const away = await get(() => to("https://nowhere.invalid/x"));
  await failure("dns_failed", () => {
    throw away.error;
  });
});

Deno.test("who asks is told to the registry when it wants to know, and to nobody else", async () => {
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
  // Another host's wish to know is for the caller.
  assertEquals([status, text], [401, "a body"]);
});

Deno.test("a registry that refuses who asks is asked twice more", async () => {
  const { asked, status } = await get((path, { url }) => {
    if (path !== "/token") {
      return unknown(`Bearer realm="${new URL("/token", url)}"`);
    }
    return Response.json({ token: `t${Math.random()}` });
  });
  assertEquals(status, 401);
  assertEquals(asked.filter((it) => !it.includes("/token")).length, 3);
});

Deno.test("a token service that is silent is not waited for longer than a registry", async () => {
  const silent = (path: string, { url }: Request) =>
    path === "/token"
      ? new Promise<Response>(() => {})
      : unknown(`Bearer realm="${new URL("/token", url)}"`);
  const late = await get(silent, { stallMs: 300 });
  const { message } = await failure("transfer_stalled", () => {
    throw late.error;
  });
  assertEquals(
    message,
    `Cannot download 127.0.0.1:${late.port}: nothing arrived for 0.3 s`,
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

Deno.test("a registry that is not there is told with its host", async () => {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr;
  listener.close();
  const base = `http://127.0.0.1:${port}/v2`;
  const { error } = await get(() => new Response(), { base });
  const { message } = await failure("connection_failed", () => {
    throw error;
  });
  assert(
    message.startsWith(`Cannot download 127.0.0.1:${port}: no connection`),
  );
});

Deno.test({
  name:
    "a host that Deno may not ask is not asked, and the missing flag is named",
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
      assertEquals(await isPermitted(new URL(url)), expected, url);
    }
    using client = await httpClient(undefined);
    const registry = registryGet({
      base: "https://d.example:5000/v2",
      repository: "o/vm",
      client,
      credentials: () => Promise.resolve({}),
      stallMs: 1000,
    });
    const options = { headers: {}, signal: NEVER };
    await assertRejects(
      () => registry.get("x", options),
      RangesUnavailable,
      "--allow-net=d.example:5000 is not granted",
    );
    await assertRejects(
      () => registry.getDirect(new URL("https://e.example/"), options),
      RangesUnavailable,
      "--allow-net=e.example is not granted",
    );
  },
});
