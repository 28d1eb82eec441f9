import { assertEquals, assertRejects } from "@std/assert";
import type { RegistryCredentials } from "../../lib/oci/_docker_config.ts";
import { registryAuthorizer } from "../../lib/oci/_registry_authorizer.ts";
import { RangesUnavailableError } from "../../lib/transfer/byte_source.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { replaceMethod } from "../support/replace_method.ts";

const CHALLENGE =
  'Bearer realm="https://auth.example/token",service="reg",scope="repository:o/i:pull"';

/** Creates an authorizer with a fake token service. */
function made(
  credentials: RegistryCredentials | undefined,
  answer: (request: Request, count: number) => Response | object,
  home = "https://reg.example/v2",
) {
  const requests: Request[] = [];
  const endpoint = {
    baseUrl: home,
    host: "reg.example",
    repository: "o/i",
    options: {},
  };
  const sendRequest = (url: URL, init: RequestInit) => {
    const request = new Request(url, init);
    requests.push(request);
    const given = answer(request, requests.length);
    return Promise.resolve(
      given instanceof Response ? given : fetched(JSON.stringify(given)),
    );
  };
  const made = registryAuthorizer(endpoint, sendRequest, () => {
    if (!credentials) throw new Error("nobody needs them");
    return Promise.resolve(credentials);
  });
  return { ...made, requests };
}

/** Creates a response with a byte stream as its body, like that of fetch(). */
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

Deno.test("registryAuthorizer() requests one token for all connections and renews an expired token", async () => {
  const clock = { time: 0 };
  using _clock = replaceMethod(performance, { now: () => clock.time });
  const { header, renewAfter401, requests } = made(
    { login: { user: "me", password: "secret" } },
    (_, count) => ({ token: `t${count}`, expires_in: 1 }),
  );
  assertEquals(await header(), undefined);
  await Promise.all([
    renewAfter401(CHALLENGE, undefined),
    renewAfter401(CHALLENGE, undefined),
  ]);
  assertEquals(await header(), "Bearer t1");
  assertEquals(requests.length, 1);
  const [{ url, headers }] = requests;
  assertEquals(
    url,
    "https://auth.example/token?service=reg&scope=repository%3Ao%2Fi%3Apull",
  );
  assertEquals(headers.get("authorization"), `Basic ${btoa("me:secret")}`);
  // A request with the old token gets the new one without another renewal.
  await renewAfter401(CHALLENGE, "Bearer t0");
  assertEquals(requests.length, 1);
  clock.time = 900;
  assertEquals(await header(), "Bearer t1");
  clock.time = 901;
  assertEquals(await header(), "Bearer t2");
});

Deno.test("registryAuthorizer() posts an identity token, and sends a registry token unchanged", async () => {
  const identity = made({ identityToken: "refresh" }, () => ({
    access_token: "t",
  }));
  await identity.renewAfter401(CHALLENGE, undefined);
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
  await own.renewAfter401(CHALLENGE, undefined);
  assertEquals(await own.header(), "Bearer mine");
  assertEquals(own.requests, []);
});

Deno.test("registryAuthorizer() sends user name and password for Basic without a token request, and throws if there are none", async () => {
  const known = made({ login: { user: "ü", password: "p" } }, () => ({}));
  await known.renewAfter401('Basic realm="x"', undefined);
  assertEquals(await known.header(), "Basic w7w6cA==");
  assertEquals(known.requests, []);
  const none = made({}, () => ({}));
  await assertRejects(
    () => none.renewAfter401("Basic", undefined),
    RangesUnavailableError,
  );
});

Deno.test("registryAuthorizer() answers a supported challenge at any position of the header", async () => {
  const basic = made({ login: { user: "u", password: "p" } }, () => ({}));
  await basic.renewAfter401('Negotiate, Basic realm="x"', undefined);
  assertEquals(await basic.header(), `Basic ${btoa("u:p")}`);
  const bearer = made({}, () => ({ token: "t" }));
  await bearer.renewAfter401(
    `Negotiate, Basic realm="x", ${CHALLENGE}`,
    undefined,
  );
  assertEquals(await bearer.header(), "Bearer t");
  await assertRejects(
    () => made({}, () => ({})).renewAfter401("Negotiate", undefined),
    RangesUnavailableError,
    "the server offers Negotiate, not Basic or Bearer",
  );
});

Deno.test("registryAuthorizer() rejects a malformed token service or token, and throws a transient error for 503", async () => {
  const refused = (challenge: string, answer: () => Response | object) =>
    assertRejects(
      () =>
        made({ login: { user: "u", password: "s3cret" } }, answer)
          .renewAfter401(challenge, undefined),
      RangesUnavailableError,
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
  await refused(CHALLENGE, () => fetched("null"));
  await refused(CHALLENGE, () => ({ token: "" }));
  await refused(CHALLENGE, () => ({ token: "two\r\nlines" }));
  await refused(CHALLENGE, () => ({ token: "x".repeat(200_000) }));
  await expectFailure(
    "registry_unavailable",
    () =>
      made({}, () => new Response(null, { status: 503 }))
        .renewAfter401(CHALLENGE, undefined),
  );
});

Deno.test("registryAuthorizer() reports the token service's status, and throws transient errors for 429 and 500", async () => {
  const renewed = (status: number) =>
    made({}, () => new Response("no", { status })).renewAfter401(
      CHALLENGE,
      undefined,
    );
  await expectFailure("rate_limited", () => renewed(429));
  await expectFailure("registry_unavailable", () => renewed(500));
  const busy = new Response("no", {
    status: 429,
    headers: { "retry-after": "3600" },
  });
  const { message } = await expectFailure(
    "rate_limited",
    () => made({}, () => busy).renewAfter401(CHALLENGE, undefined),
  );
  assertEquals(
    message,
    "Cannot download auth.example: the server answered 429 and asks to wait 60 min",
  );
  for (const status of [201, 400, 428, 430, 499]) {
    await assertRejects(
      () => renewed(status),
      RangesUnavailableError,
      `the token service auth.example answered ${status}`,
    );
  }
  await assertRejects(
    () => made({}, () => ({})).renewAfter401(CHALLENGE, undefined),
    RangesUnavailableError,
    "token service auth.example sent no valid token",
  );
});

Deno.test("registryAuthorizer() applies the redirect policy to the token service's URL", async () => {
  const asked = async (home: string, realm: string) => {
    const { renewAfter401, requests } = made(
      {},
      () => ({ token: "t" }),
      home,
    );
    try {
      await renewAfter401(`Bearer realm="${realm}"`, undefined);
      return requests.length;
    } catch (error) {
      if (!(error instanceof RangesUnavailableError)) throw error;
      assertEquals(requests, []);
      return error.message.replace("refused token service ", "");
    }
  };
  const metadata = "http://169.254.169.254";
  const near = "which is an address of this host or its link-local network";
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

Deno.test("registryAuthorizer() reads no credentials for a plain HTTP registry, except on loopback", async () => {
  const withheld = "credentials are not sent over plain HTTP to http://";
  const plain = (challenge: string, status = 200) =>
    made(
      undefined,
      () => status === 200 ? { token: "t" } : new Response(null, { status }),
      "http://cache.lan/v2",
    ).renewAfter401(challenge, undefined);
  await assertRejects(
    () => plain(BASIC),
    RangesUnavailableError,
    `${withheld}cache.lan`,
  );
  // Anonymous tokens need no credentials.
  await plain(realmAt("https://auth.example"));
  await assertRejects(
    () => plain(realmAt("https://auth.example"), 401),
    RangesUnavailableError,
    `${withheld}cache.lan`,
  );
  const login = { user: "u", password: "p" };
  const here = made({ login }, () => ({}), "http://localhost:5000/v2");
  await here.renewAfter401(BASIC, undefined);
  assertEquals(await here.header(), `Basic ${btoa("u:p")}`);
});

Deno.test("registryAuthorizer() sends no credentials to a plain HTTP token service, except on loopback", async () => {
  const secrets: RegistryCredentials[] = [
    { login: { user: "u", password: "p" } },
    { identityToken: "refresh" },
  ];
  for (const secret of secrets) {
    const home = "http://127.0.0.1:5000/v2";
    const away = made(secret, () => ({ token: "t" }), home);
    await assertRejects(
      () => away.renewAfter401(realmAt("http://1.1.1.1"), undefined),
      RangesUnavailableError,
      "credentials are not sent over plain HTTP to http://1.1.1.1",
    );
    assertEquals(away.requests, []);
    const here = made(secret, () => ({ token: "t" }), home);
    await here.renewAfter401(realmAt("http://127.0.0.2"), undefined);
    assertEquals(here.requests.length, 1);
  }
});

Deno.test("registryAuthorizer() renews a token without expires_in after 54 seconds", async () => {
  const { header, renewAfter401 } = made(
    {},
    (_, count) => ({ token: `t${count}` }),
  );
  let time = 0;
  using _clock = replaceMethod(performance, { now: () => time });
  await renewAfter401(CHALLENGE, undefined);
  time = 54_000;
  assertEquals(await header(), "Bearer t1");
  time = 54_001;
  assertEquals(await header(), "Bearer t2");
});

Deno.test("registryAuthorizer() renews an expired token after a 401 without a challenge", async () => {
  const { header, renewAfter401 } = made(
    {},
    (_, count) => ({ token: `t${count}` }),
  );
  let time = 0;
  using _clock = replaceMethod(performance, { now: () => time });
  await renewAfter401(CHALLENGE, undefined);
  await assertRejects(
    () => renewAfter401(null, "Bearer t1"),
    RangesUnavailableError,
  );
  time = 60_000;
  assertEquals(await header(), "Bearer t2");
});

Deno.test("registryAuthorizer() waits for a renewal that runs when an older token is rejected", async () => {
  const { header, renewAfter401, requests } = made(
    {},
    (_, count) => ({ token: `t${count}` }),
  );
  await renewAfter401(CHALLENGE, undefined);
  await renewAfter401(CHALLENGE, "Bearer t1");
  const renewal = renewAfter401(CHALLENGE, "Bearer t2");
  await renewAfter401(CHALLENGE, "Bearer t1");
  assertEquals(await header(), "Bearer t3");
  await renewal;
  assertEquals(requests.length, 3);
});

Deno.test("registryAuthorizer() accepts a token response of 128 KiB and rejects a larger one", async () => {
  const answered = (bytes: number) => {
    const token = "x".repeat(bytes - JSON.stringify({ token: "" }).length);
    return made({}, () => ({ token })).renewAfter401(CHALLENGE, undefined);
  };
  await answered(128 * 1024);
  await assertRejects(() => answered(128 * 1024 + 1), RangesUnavailableError);
});
