import { assertEquals, assertRejects } from "@std/assert";
import type { RegistryCredentials } from "../../lib/oci/_docker_config.ts";
import { RangesUnavailable } from "../../lib/oci/_ranges_unavailable.ts";
import { authorizer } from "../../lib/oci/_token.ts";
import { failure } from "../support/failure.ts";
import { replace } from "../support/replace.ts";

const CHALLENGE =
  'Bearer realm="https://auth.example/token",service="reg",scope="repository:o/i:pull"';

/** An authorizer whose token service answers like that. */
function made(
  credentials: RegistryCredentials | undefined,
  answer: (request: Request, count: number) => Response | object,
  home = "https://reg.example/v2",
) {
  const requests: Request[] = [];
  const made = authorizer({
    repository: "o/i",
    home: new URL(home),
    credentials() {
      if (!credentials) throw new Error("nobody needs them");
      return Promise.resolve(credentials);
    },
    stallMs: 60_000,
    send(url, init) {
      const request = new Request(url, init);
      requests.push(request);
      const given = answer(request, requests.length);
      return Promise.resolve(
        given instanceof Response ? given : fetched(JSON.stringify(given)),
      );
    },
  });
  return { ...made, requests };
}

/** An answer whose body is a stream of bytes, as that of `fetch` is. */
function fetched(text: string): Response {
  return new Response(
    new ReadableStream({
      type: "bytes",
      start(controller) {
        controller.enqueue(new TextEncoder().encode(text));
        controller.close();
      },
    }),
  );
}

Deno.test("a token is asked for with the login, once for all connections, and renewed when it expires", async () => {
  const { header, renew, requests } = made(
    { login: { user: "me", password: "secret" } },
    (_, count) => ({ token: `t${count}`, expires_in: 1 }),
  );
  assertEquals(await header(), undefined);
  await Promise.all([
    renew(CHALLENGE, undefined),
    renew(CHALLENGE, undefined),
  ]);
  assertEquals(await header(), "Bearer t1");
  assertEquals(requests.length, 1);
  const [{ url, headers }] = requests;
  assertEquals(
    url,
    "https://auth.example/token?service=reg&scope=repository%3Ao%2Fi%3Apull",
  );
  assertEquals(headers.get("authorization"), `Basic ${btoa("me:secret")}`);
  // Who was refused with the old one finds the new one there.
  await renew(CHALLENGE, "Bearer t0");
  assertEquals(requests.length, 1);
  await new Promise((done) => setTimeout(done, 950));
  assertEquals(await header(), "Bearer t2");
});

Deno.test("an identity token goes by POST, and a registry token as it is", async () => {
  const identity = made({ identityToken: "refresh" }, () => ({
    access_token: "t",
  }));
  await identity.renew(CHALLENGE, undefined);
  assertEquals(await identity.header(), "Bearer t");
  const [request] = identity.requests;
  assertEquals(request.method, "POST");
  assertEquals(Object.fromEntries(await request.formData()), {
    grant_type: "refresh_token",
    refresh_token: "refresh",
    client_id: "toolsmith",
    scope: "repository:o/i:pull",
    service: "reg",
  });
  const own = made({ registryToken: "mine" }, () => ({}));
  await own.renew(CHALLENGE, undefined);
  assertEquals(await own.header(), "Bearer mine");
  assertEquals(own.requests, []);
});

Deno.test("Basic needs a login, and nobody is asked for it elsewhere", async () => {
  const known = made({ login: { user: "ü", password: "p" } }, () => ({}));
  await known.renew('Basic realm="x"', undefined);
  assertEquals(await known.header(), "Basic w7w6cA==");
  assertEquals(known.requests, []);
  const none = made({}, () => ({}));
  await assertRejects(() => none.renew("Basic", undefined), RangesUnavailable);
});

Deno.test("authorizer() meets the challenge that it knows, wherever it stands", async () => {
  const basic = made({ login: { user: "u", password: "p" } }, () => ({}));
  await basic.renew('Negotiate, Basic realm="x"', undefined);
  assertEquals(await basic.header(), `Basic ${btoa("u:p")}`);
  const bearer = made({}, () => ({ token: "t" }));
  await bearer.renew(`Negotiate, Basic realm="x", ${CHALLENGE}`, undefined);
  assertEquals(await bearer.header(), "Bearer t");
  await assertRejects(
    () => made({}, () => ({})).renew("Negotiate", undefined),
    RangesUnavailable,
    "it offers Negotiate, not Basic or Bearer",
  );
});

Deno.test("a token service that is none is a reason; one that is busy may be asked again", async () => {
  const refused = (challenge: string, answer: () => Response | object) =>
    assertRejects(
      () =>
        made({ login: { user: "u", password: "s3cret" } }, answer)
          .renew(challenge, undefined),
      RangesUnavailable,
    );
  await refused("Bearer", () => ({ token: "t" }));
  await refused('Bearer realm="file:///etc/passwd"', () => ({ token: "t" }));
  await refused('Bearer realm="http://auth.example/"', () => ({ token: "t" }));
  await refused(CHALLENGE, () => new Response(null, { status: 403 }));
  await refused(
    CHALLENGE,
    () => new Response(null, { status: 302, headers: { location: "/" } }),
  );
  await refused(CHALLENGE, () => fetched("no JSON"));
  await refused(CHALLENGE, () => ({ token: "" }));
  await refused(CHALLENGE, () => ({ token: "two\r\nlines" }));
  await refused(CHALLENGE, () => ({ token: "x".repeat(200_000) }));
  await failure(
    "registry_unavailable",
    () =>
      made({}, () => new Response(null, { status: 503 }))
        .renew(CHALLENGE, undefined),
  );
});

Deno.test("a token service is told with what it answered, and asked again only if that may pass", async () => {
  const renewed = (status: number) =>
    made({}, () => new Response("no", { status })).renew(CHALLENGE, undefined);
  await failure("rate_limited", () => renewed(429));
  await failure("registry_unavailable", () => renewed(500));
  const busy = new Response("no", {
    status: 429,
    headers: { "retry-after": "3600" },
  });
  const { message } = await failure(
    "rate_limited",
    () => made({}, () => busy).renew(CHALLENGE, undefined),
  );
  assertEquals(
    message,
    "Cannot download auth.example: the server answered 429 and asks to wait 60 min",
  );
  for (const status of [201, 400, 428, 430, 499]) {
    await assertRejects(
      () => renewed(status),
      RangesUnavailable,
      `the token service auth.example answers ${status}`,
    );
  }
  await assertRejects(
    () => made({}, () => ({})).renew(CHALLENGE, undefined),
    RangesUnavailable,
    "the token service auth.example sent no token",
  );
});

Deno.test("a registry may name no token service that it could not redirect to", async () => {
  const asked = async (home: string, realm: string) => {
    const { renew, requests } = made({}, () => ({ token: "t" }), home);
    try {
      await renew(`Bearer realm="${realm}"`, undefined);
      return requests.length;
    } catch (error) {
      if (!(error instanceof RangesUnavailable)) throw error;
      assertEquals(requests, []);
      return error.message.replace("its token service is ", "");
    }
  };
  const metadata = "http://169.254.169.254";
  const near = "which is an address of this host or its link";
  const cases: [string, string, string | number][] = [
    ["https://1.1.1.1", "https://8.8.8.8/token", 1],
    ["https://1.1.1.1", `${metadata}/token`, `${metadata}, which is not HTTPS`],
    ["http://1.1.1.1", `${metadata}/token`, `${metadata}, ${near}`],
    ["https://1.1.1.1", "https://[::1]/t", `https://[::1], ${near}`],
    ["http://127.0.0.1", "http://127.0.0.2/token", 1],
    ["http://10.0.0.1", "http://10.0.0.2/token", 1],
  ];
  for (const [home, realm, expected] of cases) {
    assertEquals(await asked(home, realm), expected, `${home} to ${realm}`);
  }
});

const BASIC = 'Basic realm="x"';
const realmAt = (origin: string) => `Bearer realm="${origin}/token"`;

Deno.test("credentials are not looked up for a registry over plain HTTP, unless it is this host", async () => {
  const withheld = "credentials are not sent over plain HTTP, to http://";
  const plain = (challenge: string, status = 200) =>
    made(
      undefined,
      () => status === 200 ? { token: "t" } : new Response(null, { status }),
      "http://cache.lan/v2",
    ).renew(challenge, undefined);
  await assertRejects(
    () => plain(BASIC),
    RangesUnavailable,
    `${withheld}cache.lan`,
  );
  // Whoever may read anonymously needs none.
  await plain(realmAt("https://auth.example"));
  await assertRejects(
    () => plain(realmAt("https://auth.example"), 401),
    RangesUnavailable,
    `${withheld}cache.lan`,
  );
  const login = { user: "u", password: "p" };
  const here = made({ login }, () => ({}), "http://localhost:5000/v2");
  await here.renew(BASIC, undefined);
  assertEquals(await here.header(), `Basic ${btoa("u:p")}`);
});

Deno.test("a token service over plain HTTP gets no credentials, unless it is this host", async () => {
  const secrets: RegistryCredentials[] = [
    { login: { user: "u", password: "p" } },
    { identityToken: "refresh" },
  ];
  for (const secret of secrets) {
    const home = "http://127.0.0.1:5000/v2";
    const away = made(secret, () => ({ token: "t" }), home);
    await assertRejects(
      () => away.renew(realmAt("http://1.1.1.1"), undefined),
      RangesUnavailable,
      "credentials are not sent over plain HTTP, to http://1.1.1.1",
    );
    assertEquals(away.requests, []);
    const here = made(secret, () => ({ token: "t" }), home);
    await here.renew(realmAt("http://127.0.0.2"), undefined);
    assertEquals(here.requests.length, 1);
  }
});

Deno.test("a token without a lifetime lives for a minute, and is renewed before", async () => {
  const { header, renew } = made({}, (_, count) => ({ token: `t${count}` }));
  let time = 0;
  using _clock = replace(performance, { now: () => time });
  await renew(CHALLENGE, undefined);
  time = 54_000;
  assertEquals(await header(), "Bearer t1");
  time = 54_001;
  assertEquals(await header(), "Bearer t2");
});

Deno.test("an answer of a token service may have 128 KiB", async () => {
  const answered = (bytes: number) => {
    const token = "x".repeat(bytes - JSON.stringify({ token: "" }).length);
    return made({}, () => ({ token })).renew(CHALLENGE, undefined);
  };
  await answered(128 * 1024);
  await assertRejects(() => answered(128 * 1024 + 1), RangesUnavailable);
});
