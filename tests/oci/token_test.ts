import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import type { RegistryCredentials } from "../../lib/oci/_docker_config.ts";
import { RangesUnavailable } from "../../lib/oci/_ranges_unavailable.ts";
import { authorizer, parseChallenge } from "../../lib/oci/_token.ts";
import { failure } from "../support/failure.ts";
import { replace } from "../support/replace.ts";

const CHALLENGE =
  'Bearer realm="https://auth.example/token",service="reg",scope="repository:o/i:pull"';

/** An authorizer whose token service answers like that. */
function made(
  credentials: RegistryCredentials,
  answer: (request: Request, count: number) => Response | object,
) {
  const requests: Request[] = [];
  const made = authorizer({
    repository: "o/i",
    plainHttp: false,
    credentials: () => Promise.resolve(credentials),
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

Deno.test("challenges are read as registries write them", () => {
  const { scheme, params } = parseChallenge(
    'bearer Realm="https://a/?x=1,2" , service=reg,scope="a \\"b\\""',
  );
  assertEquals(scheme, "bearer");
  assertEquals(Object.fromEntries(params), {
    realm: "https://a/?x=1,2",
    service: "reg",
    scope: 'a "b"',
  });
  assertEquals(parseChallenge("Basic").scheme, "basic");
  for (const text of ["", "Negotiate x", "Digest realm=x"]) {
    assertThrows(() => parseChallenge(text), RangesUnavailable);
  }
});

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
  const scheme = "x".repeat(50);
  assertThrows(
    () => parseChallenge(scheme),
    RangesUnavailable,
    `its authentication is "${"x".repeat(40)}"`,
  );
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
