/** Registries that are busy: how often they are asked, and how long for. */
import { assertEquals, assertMatch } from "@std/assert";
import { needs } from "../support/parts.ts";
import { type Fault, startProxy } from "../support/proxy.ts";
import { startRegistry } from "../support/registry.ts";
import { jsonLines, publishImage, workspace } from "../support/workspace.ts";

const REAL = needs("oras", "registry", "qemuImg");
/** From this size on an image is read by ranges. */
const LARGE = 64 * 1024 * 1024;
const MANIFEST = /\/manifests\//;
const IMAGE = /\/blobs\//;
/** What oras asks by itself where a registry is busy. */
const BY_ORAS = 6;

/** An hour from now: oras reads no dates, and does not wait for them. */
const inAnHour = () => ({
  "retry-after": new Date(Date.now() + 3_600_000).toUTCString(),
});

/** A registry behind a proxy, and a workspace whose manifest names the proxy. */
async function site() {
  await using undo = new AsyncDisposableStack();
  const registry = undo.use(await startRegistry());
  const proxy = undo.use(startProxy(registry.host));
  const work = undo.use(await workspace());
  const { host } = proxy;
  await publishImage(registry, work, { bytes: LARGE, host });
  const all = undo.move();
  return {
    host,
    /** Runs a command; counts the requests that the fault befell. */
    async run(fault: Fault, args: string[], permissions?: string[]) {
      proxy.faults.splice(0, Infinity, fault);
      proxy.seen.length = 0;
      const { stdout } = await work.toolsmith([...args, "--json"], {
        permissions,
      });
      const { last, events } = jsonLines(stdout);
      const asked = proxy.seen.filter(({ request }) =>
        fault.match.test(request)
      );
      const retries = events.filter(({ type }) => type === "retry");
      return { last, asked: asked.length, retries: retries.length };
    },
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

Deno.test({
  name:
    "hydrate and publish stop where a registry asks to wait for an hour, and name the pause",
  ...REAL,
  async fn(t) {
    await using all = await site();
    const stops = async (fault: Fault, asked: number, ...args: string[]) => {
      const permissions = args[0] === "publish" ? ["-A"] : undefined;
      const found = await all.run(fault, args, permissions);
      assertEquals(found.last.code, "rate_limited", found.last.message);
      assertMatch(found.last.message, /429 and asks to wait 60 min$/);
      assertEquals(found.last.hint, "try again in 60 min");
      assertEquals([found.asked, found.retries], [asked, 0]);
    };
    const busy = (match: RegExp, headers: Record<string, string>) => ({
      ...{ match, status: 429, headers },
    });
    await t.step(
      "for the manifest",
      () => stops(busy(MANIFEST, inAnHour()), BY_ORAS + 1, "hydrate"),
    );
    await t.step(
      "for a range of the image",
      () => stops(busy(IMAGE, { "retry-after": "3600" }), 1, "hydrate"),
    );
    await t.step("for an image that oras would pull", () => {
      const time = `${Math.floor(Date.now() / 1000) + 3600}`;
      const fault = busy(IMAGE, { "retry-after": time });
      return stops(fault, 1, "hydrate", "--connections", "1");
    });
    await t.step("for a push", () => {
      const fault = busy(/./, inAnHour());
      const name = `${all.host}/owner/image:2.0`;
      return stops(fault, BY_ORAS + 1, "publish", "image.qcow2", name);
    });
  },
});

Deno.test({
  name: "hydrate adds its retries to those of oras, and does not multiply them",
  ...REAL,
  async fn(t) {
    await using all = await site();
    const fails = async (fault: Fault, asked: number, ...args: string[]) => {
      const found = await all.run(fault, ["hydrate", ...args]);
      assertEquals(found.last.code, "registry_unavailable", found.last.message);
      assertEquals([found.asked, found.retries], [asked, 1]);
    };
    const once = ["--retries", "1"];
    await t.step(
      "for the manifest",
      () => fails({ match: MANIFEST, status: 503 }, BY_ORAS + 2, ...once),
    );
    await t.step("for an image that oras pulls", () => {
      const args = [...once, "--connections", "1"];
      return fails({ match: IMAGE, status: 503 }, BY_ORAS + 2, ...args);
    });
    await t.step(
      "and goes on by itself when the registry is back",
      async () => {
        const fault = { match: MANIFEST, status: 503, times: BY_ORAS };
        const found = await all.run(fault, ["hydrate", "--force"]);
        assertEquals([found.last.outcome, found.retries], ["pulled", 0]);
      },
    );
  },
});
