import { assertEquals, assertRejects } from "@std/assert";
import { fetchFollowing, whyRefused } from "../../lib/system/redirects.ts";
import { failure } from "../support/failure.ts";
import { replace } from "../support/replace.ts";

/** Requests that were made, and whether the body of each answer was read on. */
interface Asked {
  url: string;
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
    const [response, at] = await fetchFollowing(new URL(from), ask, signal);
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
  assertEquals(
    hint,
    "if you trust that address, download the image yourself and name its file in image.qcow2",
  );
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

const PRIVATE = "a private network";
const HOST = "this host or its link";

/** Where redirects begin, where they lead, and what the last is refused as. */
const JOURNEYS: [string[], string?][] = [
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
  // What is asked for by its name is this user's own choice.
  [["https://10.0.0.1/", "https://192.168.0.1/"]],
  [["https://10.0.0.1/", "https://10.0.0.1:8443/x"]],
  [["https://localhost/", "https://127.0.0.1/"]],
  [["https://127.0.0.1/", "https://10.0.0.1/"]],
  [["https://10.0.0.1/", "https://1.1.1.1/", "https://10.0.0.2/"]],
  // A private network may not lead nearer, such as to a cloud's metadata.
  [["https://10.0.0.1/", "https://169.254.169.254/"], HOST],
  [["https://10.0.0.1/", "https://127.0.0.1/"], HOST],
  [["https://10.0.0.1/", "https://1.1.1.1/", "https://127.0.0.1/"], HOST],
  // Where a proxy alone resolves names, nothing is seen of them here.
  [["https://1.1.1.1/", "https://nowhere.invalid/"]],
  // What is reached by plain HTTP may lead on by it, and no nearer either.
  [["http://1.1.1.1/", "http://8.8.8.8/", "https://9.9.9.9/"]],
  [["http://1.1.1.1/", "http://169.254.169.254/"], HOST],
  [["http://127.0.0.1:5000/", "http://127.0.0.1:9000/"]],
];

Deno.test("fetchFollowing follows no redirect that leads nearer to this host than the first address", async () => {
  for (const [places, refused] of JOURNEYS) {
    const last = places[places.length - 1];
    const next = new Map(places.map((url, nth) => [url, places[nth + 1]]));
    const answer = (url: string): [number, string] | undefined => {
      const to = next.get(url);
      return to === undefined ? undefined : [307, to];
    };
    if (!refused) {
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
      }, which is an address of ${refused}`,
    );
  }
});

Deno.test("fetchFollowing judges a name by its nearest address, and the first address by its farthest", async () => {
  const { default: dns } = await import("node:dns/promises");
  const names: Record<string, string[]> = {
    "both.example": ["1.1.1.1", "10.0.0.1"],
    "private.example": ["10.0.0.1"],
    "public.example": ["1.1.1.1"],
  };
  using _names = replace(dns, {
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
    const origin = new URL(`https://${from}/`);
    const { signal } = new AbortController();
    const why = await whyRefused(new URL(`https://${to}/`), { origin, signal });
    assertEquals(why !== undefined, isRefused, `${from} to ${to}: ${why}`);
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
