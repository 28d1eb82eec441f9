import { assertEquals, assertRejects } from "@std/assert";
import { fetchFollowing } from "../../lib/hydrate/_redirects.ts";
import { failure } from "../support/failure.ts";

/** Requests that were made, and whether the body of each answer was read on. */
interface Asked {
  url: string;
  headers: Headers;
  dropped: boolean;
}

/**
 * Asks for an address of an internet that answers as it is told: a test has none.
 *
 * @param from The address.
 * @param answer The status and location of an answer; `undefined` for the file.
 * @param signal Ends it.
 */
async function follow(
  from: string,
  answer: (url: string) => [number, string?] | undefined,
  signal: AbortSignal = new AbortController().signal,
) {
  const asked: Asked[] = [];
  const real = globalThis.fetch;
  globalThis.fetch = (input, init) => {
    assertEquals(init?.redirect, "manual");
    const request = {
      url: String(input),
      headers: new Headers(init?.headers),
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
    const init = { headers: { "x-mark": "7" }, signal };
    const response = await fetchFollowing(new URL(from), init);
    const { status } = response;
    await response.body?.cancel();
    return { status, asked };
  } finally {
    globalThis.fetch = real;
  }
}

const A = "https://images.example/a.qcow2";
const B = "https://images.example/b";

Deno.test("the statuses that lead elsewhere are followed, others are the answer", async () => {
  for (const status of [301, 302, 303, 307, 308]) {
    const found = await follow(
      A,
      (url) => url === A ? [status, "/b"] : undefined,
    );
    assertEquals(found.asked.map(({ url }) => url), [A, B]);
    assertEquals(found.status, 200);
    // What a redirect says besides is not waited for.
    assertEquals(found.asked[0].dropped, true);
    for (const { headers } of found.asked) {
      assertEquals(headers.get("x-mark"), "7");
    }
  }
  for (const status of [200, 300, 304, 305, 306, 309, 404]) {
    const found = await follow(A, () => [status, "/b"]);
    assertEquals([found.status, found.asked.length], [status, 1]);
  }
  assertEquals((await follow(A, () => [302])).status, 302);
});

Deno.test("ten redirects are followed, the eleventh is refused", async () => {
  const count =
    (most: number) => (url: string): [number, string] | undefined => {
      const hops = Number(new URL(url).searchParams.get("n"));
      return hops < most ? [302, `?n=${hops + 1}`] : undefined;
    };
  const { status, asked } = await follow(`${A}?n=0`, count(10));
  assertEquals([status, asked.length], [200, 11]);
  const { message, hint } = await failure(
    "redirect_refused",
    () => follow(`${A}?n=0&sig=secret`, count(11)),
  );
  assertEquals(
    message,
    `Cannot download ${A}: it was redirected more than 10 times`,
  );
  assertEquals(hint, "name the address itself in image.qcow2, if you trust it");
});

Deno.test("a redirect out of HTTPS is refused, and what it leads to is named", async () => {
  const cases: [string, string][] = [
    [
      "http://images.example/x?sig=secret",
      "http://images.example, which is not HTTPS",
    ],
    ["file:///etc/passwd", "file://, which is not HTTPS"],
  ];
  for (const [location, words] of cases) {
    const { message } = await failure(
      "redirect_refused",
      () => follow(A, () => [302, location]),
    );
    assertEquals(message, `Cannot download ${A}: it is redirected to ${words}`);
  }
  const { message } = await failure(
    "redirect_refused",
    () => follow(A, () => [302, "https://"]),
  );
  assertEquals(
    message,
    `Cannot download ${A}: it is redirected to what is not an address`,
  );
});

/** Where redirects begin, where they lead, and whether the last is refused. */
const JOURNEYS: [string[], boolean][] = [
  [["https://1.1.1.1/", "https://10.0.0.1/"], true],
  [["https://1.1.1.1/", "https://10.0.0.1:8443/"], true],
  [["https://1.1.1.1/", "https://[::1]/"], true],
  [["https://1.1.1.1/", "https://localhost/"], true],
  [["https://[2606:4700::1]/", "https://127.0.0.1/"], true],
  [["https://1.1.1.1/", "https://8.8.8.8/"], false],
  [["https://1.1.1.1/", "https://8.8.8.8/", "https://10.0.0.1/"], true],
  // What is asked for by its name is this user's own choice.
  [["https://10.0.0.1/", "https://192.168.0.1/"], false],
  [["https://10.0.0.1/", "https://10.0.0.1:8443/x"], false],
  [["https://localhost/", "https://127.0.0.1/"], false],
  [["https://10.0.0.1/", "https://1.1.1.1/", "https://10.0.0.2/"], false],
  // Where a proxy alone resolves names, nothing is seen of them here.
  [["https://1.1.1.1/", "https://nowhere.invalid/"], false],
];

Deno.test("the internet does not lead into a private network, a private network may", async () => {
  for (const [places, isRefused] of JOURNEYS) {
    const last = places[places.length - 1];
    const next = new Map(places.map((url, nth) => [url, places[nth + 1]]));
    const answer = (url: string): [number, string] | undefined => {
      const to = next.get(url);
      return to === undefined ? undefined : [307, to];
    };
    if (!isRefused) {
      const { asked } = await follow(places[0], answer);
      assertEquals(asked.map(({ url }) => url), places);
      continue;
    }
    const { message } = await failure(
      "redirect_refused",
      () => follow(places[0], answer),
    );
    assertEquals(
      message,
      `Cannot download ${places[0]}: it is redirected to ${
        new URL(last).origin
      }, which is an address of a private network`,
    );
  }
});

Deno.test("who has been told to stop follows no further", async () => {
  const stop = new AbortController();
  const answer = (): [number, string] => {
    queueMicrotask(() => stop.abort(new Error("enough")));
    return [302, "https://nowhere.invalid/"];
  };
  const read = () => follow("https://1.1.1.1/", answer, stop.signal);
  await assertRejects(read, Error, "enough");
});
