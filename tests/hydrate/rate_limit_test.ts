/** Rate-limited registries: number of requests and waiting times. */
import { assertEquals, assertMatch } from "@std/assert";
import type { ToolsmithError } from "../../lib/errors.ts";
import type { HydrateOptions } from "../../lib/hydrate/hydrate.ts";
import {
  hydrateWorkspace,
  publishedImageOfFile,
} from "../support/registry_hydrate.ts";
import { requires } from "../support/parts.ts";
import { type ProxyFault, startProxy } from "../support/proxy.ts";
import { attemptPublish } from "../support/publication.ts";

const REAL = requires("oras", "registry", "qemuImg");
/** From this size on, hydrate uses range requests. */
const LARGE = 64 * 1024 * 1024;
const MANIFEST = /\/manifests\//;
const IMAGE = /\/blobs\//;
/** Requests that oras sends to a busy registry; they take seconds. */
const BY_ORAS = 6;

/** Two and a half hours: rounded up, still three at the end of the test. */
const HOURS_S = 9000;
/** A date, which oras does not parse and does not wait for. */
const later = () => ({
  "retry-after": new Date(Date.now() + HOURS_S * 1000).toUTCString(),
});

const image = publishedImageOfFile(LARGE, REAL.ignore);

/** Runs `work` through a new proxy, and counts the requests with the fault. */
async function counted<T>(
  fault: ProxyFault,
  work: (host: string) => Promise<T>,
) {
  await using proxy = startProxy(image().registry.host, [fault]);
  const ended = await work(proxy.host);
  const befallen = proxy.seen
    .filter(({ request }) => fault.match.test(request));
  return { ...ended, asked: befallen.length };
}

const hydrates = (fault: ProxyFault, options?: HydrateOptions) =>
  counted(fault, async (host) => {
    await using work = await image().workspace(host);
    const { result, error, of } = await hydrateWorkspace(work.dir, options);
    return { result, error, retries: of("retry").length };
  });

const publishes = (fault: ProxyFault) =>
  counted(fault, async (host) => {
    const reference = `${host}/owner/image:2.0`;
    const options = { retryDelayMs: 1 };
    const { error, of } = await attemptPublish(
      image().path,
      reference,
      options,
    );
    return { error, retries: of("retry").length };
  });

/** The outcome with a busy registry. */
type Ended = { error?: unknown; asked: number; retries: number };

Deno.test({
  name:
    "hydrate and publish retry after oras's own retries, and stop when Retry-After asks for hours",
  ...REAL,
  async fn() {
    const stops = async (
      what: string,
      ending: Promise<Ended>,
      asks: number,
    ) => {
      const { error, asked, retries } = await ending;
      const { code, message, hint } = error as ToolsmithError;
      assertEquals(code, "rate_limited", `${what}: ${message}`);
      assertMatch(message, /429 and asks to wait 3 h$/);
      assertEquals(hint, "try again in 3 h");
      assertEquals([asked, retries], [asks, 0], what);
    };
    const busy = (match: RegExp, headers: Record<string, string>) => ({
      ...{ match, status: 429, headers },
    });
    const time = `${Math.floor(Date.now() / 1000) + HOURS_S}`;
    const fails = async (match: RegExp, options: HydrateOptions) => {
      const given = { retries: 1, ...options };
      const { error, asked, retries } = await hydrates(
        { match, status: 503 },
        given,
      );
      assertEquals(error?.code, "registry_unavailable", error?.message);
      assertEquals([asked, retries], [BY_ORAS + 2, 1]);
    };
    const recovers = async () => {
      const fault = { match: MANIFEST, status: 503, times: BY_ORAS };
      const { result, error, retries } = await hydrates(fault);
      assertEquals(result?.outcome, "pulled", error?.message);
      assertEquals(retries, 0);
    };
    // Each of them waits for seconds.
    await Promise.all([
      stops(
        "for the manifest",
        hydrates(busy(MANIFEST, later())),
        BY_ORAS + 1,
      ),
      stops(
        "for a range of the image",
        hydrates(busy(IMAGE, { "retry-after": `${HOURS_S}` })),
        1,
      ),
      stops(
        "for an image that oras would pull",
        hydrates(busy(IMAGE, { "retry-after": time }), { connections: 1 }),
        1,
      ),
      stops("for a push", publishes(busy(/./, later())), BY_ORAS + 1),
      fails(MANIFEST, {}),
      fails(IMAGE, { connections: 1 }),
      recovers(),
    ]);
  },
});
