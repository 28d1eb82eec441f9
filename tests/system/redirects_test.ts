import { assertEquals, assertRejects } from "@std/assert";
import {
  fetchFollowingRedirects,
  redirectRefusalReason,
} from "../../lib/system/redirects.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { replaceMethod } from "../support/replace_method.ts";

/** A recorded request, and whether its response body was cancelled. */
interface RecordedRequest {
  url: string;
  dropped: boolean;
}

/**
 * Follows redirects from a URL, with a fake `fetch`.
 *
 * @param answer Returns status and location of a response; `undefined` for the file.
 */
async function follow(
  from: string,
  answer: (url: string) => [number, string?] | undefined,
  signal: AbortSignal = new AbortController().signal,
) {
  const asked: RecordedRequest[] = [];
  const real = globalThis.fetch;
  globalThis.fetch = (input, init) => {
    assertEquals(init?.redirect, "manual");
    const request = {
      url: String(input),
      dropped: false,
    };
    asked.push(request);
    const [status, location] = answer(request.url) ?? [200];
    const body = status === 304 ? null : new ReadableStream({
      cancel: () => void (request.dropped = true),
    });
    const headers = new Headers(location === undefined ? {} : { location });
    return Promise.resolve(new Response(body, { status, headers }));
  };
  try {
    const init = { redirect: "manual", signal } as const;
    const ask = (at: URL) => fetch(at, init);
    const [response, at] = await fetchFollowingRedirects(
      new URL(from),
      ask,
      signal,
    );
    assertEquals(at.href, asked.at(-1)!.url);
    const { status } = response;
    await response.body?.cancel();
    return { status, asked };
  } finally {
    globalThis.fetch = real;
  }
}

const A = "https://images.example/a.qcow2";
const B = "https://images.example/b";

Deno.test("fetchFollowingRedirects() follows redirect statuses only", async () => {
  for (const status of [301, 302, 303, 307, 308]) {
    const found = await follow(
      A,
      (url) => url === A ? [status, "/b"] : undefined,
    );
    assertEquals(found.asked.map(({ url }) => url), [A, B]);
    assertEquals(found.status, 200);
    // A redirect's body is not read.
    assertEquals(found.asked[0].dropped, true);
  }
  for (const status of [200, 300, 304, 305, 306, 309, 404]) {
    const found = await follow(A, () => [status, "/b"]);
    assertEquals([found.status, found.asked.length], [status, 1]);
  }
  assertEquals((await follow(A, () => [302])).status, 302);
});

Deno.test("fetchFollowingRedirects() follows ten redirects and rejects the eleventh", async () => {
  const count =
    (most: number) => (url: string): [number, string] | undefined => {
      const hops = Number(new URL(url).searchParams.get("n"));
      return hops < most ? [302, `?n=${hops + 1}`] : undefined;
    };
  const { status, asked } = await follow(`${A}?n=0`, count(10));
  assertEquals([status, asked.length], [200, 11]);
  const { message, hint } = await expectFailure(
    "redirect_refused",
    () => follow(`${A}?n=0&sig=secret`, count(11)),
  );
  assertEquals(
    message,
    `Cannot download ${A}: redirected more than 10 times`,
  );
  assertEquals(
    hint,
    "if you trust the redirect target, download the image manually and set image.qcow2 to the file",
  );
});

Deno.test("fetchFollowingRedirects() rejects a redirect from HTTPS to another scheme, and names the target", async () => {
  const cases: [string, string][] = [
    [
      "http://images.example/x?sig=secret",
      "http://images.example, which is not HTTPS",
    ],
    ["file:///etc/passwd", "file://, which is not HTTPS"],
  ];
  for (const [location, words] of cases) {
    const { message } = await expectFailure(
      "redirect_refused",
      () => follow(A, () => [302, location]),
    );
    assertEquals(message, `Cannot download ${A}: redirected to ${words}`);
  }
  const { message } = await expectFailure(
    "redirect_refused",
    () => follow(A, () => [302, "https://"]),
  );
  assertEquals(
    message,
    `Cannot download ${A}: redirected to an invalid URL`,
  );
});

const PRIVATE = "a private network";
const HOST = "this host or its link-local network";

/** URLs of a redirect chain, and the scope for which the last one is refused. */
const REDIRECT_CHAINS: [string[], string?][] = [
  [["https://1.1.1.1/", "https://10.0.0.1/"], PRIVATE],
  [["https://1.1.1.1/", "https://10.0.0.1:8443/"], PRIVATE],
  [["https://1.1.1.1/", "https://[fd00::1]/"], PRIVATE],
  [["https://1.1.1.1/", "https://[::1]/"], HOST],
  [["https://1.1.1.1/", "https://localhost/"], HOST],
  [["https://1.1.1.1/", "https://LOCALHOST./"], HOST],
  [["https://1.1.1.1/", "https://a.localhost/"], HOST],
  [["https://[2606:4700::1]/", "https://127.0.0.1/"], HOST],
  [["https://1.1.1.1/", "https://8.8.8.8/"]],
  [["https://1.1.1.1/", "https://8.8.8.8/", "https://10.0.0.1/"], PRIVATE],
  // The user chose to request a private host.
  [["https://10.0.0.1/", "https://192.168.0.1/"]],
  [["https://10.0.0.1/", "https://10.0.0.1:8443/x"]],
  [["https://localhost/", "https://127.0.0.1/"]],
  [["https://127.0.0.1/", "https://10.0.0.1/"]],
  [["https://10.0.0.1/", "https://1.1.1.1/", "https://10.0.0.2/"]],
  // A private host must not redirect closer, such as to cloud metadata.
  [["https://10.0.0.1/", "https://169.254.169.254/"], HOST],
  [["https://10.0.0.1/", "https://127.0.0.1/"], HOST],
  [["https://10.0.0.1/", "https://1.1.1.1/", "https://127.0.0.1/"], HOST],
  // Names may only be resolvable by the proxy.
  [["https://1.1.1.1/", "https://nowhere.invalid/"]],
  // Plain HTTP may redirect to plain HTTP, but not closer either.
  [["http://1.1.1.1/", "http://8.8.8.8/", "https://9.9.9.9/"]],
  [["http://1.1.1.1/", "http://169.254.169.254/"], HOST],
  [["http://127.0.0.1:5000/", "http://127.0.0.1:9000/"]],
];

Deno.test("fetchFollowingRedirects() rejects a redirect to a network closer to this host than the requested URL", async () => {
  for (const [urls, refused] of REDIRECT_CHAINS) {
    const last = urls[urls.length - 1];
    const next = new Map(urls.map((url, nth) => [url, urls[nth + 1]]));
    const answer = (url: string): [number, string] | undefined => {
      const to = next.get(url);
      return to === undefined ? undefined : [307, to];
    };
    if (!refused) {
      const { asked } = await follow(urls[0], answer);
      assertEquals(asked.map(({ url }) => url), urls);
      continue;
    }
    const { message } = await expectFailure(
      "redirect_refused",
      () => follow(urls[0], answer),
    );
    assertEquals(
      message,
      `Cannot download ${urls[0]}: redirected to ${
        new URL(last).origin
      }, which is an address of ${refused}`,
    );
  }
});

Deno.test("redirectRefusalReason() compares the target's nearest address with the requested URL's farthest one", async () => {
  const { default: dns } = await import("node:dns/promises");
  const names: Record<string, string[]> = {
    "both.example": ["1.1.1.1", "10.0.0.1"],
    "private.example": ["10.0.0.1"],
    "public.example": ["1.1.1.1"],
  };
  using _names = replaceMethod(dns, {
    lookup: (name: string) =>
      Promise.resolve(names[name].map((address) => ({ address }))),
  });
  const refused: [string, string, boolean][] = [
    ["public.example", "both.example", true],
    ["public.example", "private.example", true],
    ["both.example", "private.example", true],
    ["private.example", "both.example", false],
    ["private.example", "public.example", false],
  ];
  for (const [from, to, isRefused] of refused) {
    const requestedUrl = new URL(`https://${from}/`);
    const { signal } = new AbortController();
    const why = await redirectRefusalReason(new URL(`https://${to}/`), {
      requestedUrl,
      signal,
    });
    assertEquals(why !== undefined, isRefused, `${from} to ${to}: ${why}`);
  }
});

Deno.test("fetchFollowingRedirects() follows no redirect after an abort", async () => {
  const stop = new AbortController();
  const answer = (): [number, string] => {
    queueMicrotask(() => stop.abort(new Error("enough")));
    return [302, "https://nowhere.invalid/"];
  };
  const read = () => follow("https://1.1.1.1/", answer, stop.signal);
  await assertRejects(read, Error, "enough");
});
