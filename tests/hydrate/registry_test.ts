import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { join } from "@std/path";
import type { FetchContext } from "../../lib/hydrate/_context.ts";
import { pullFromRegistry } from "../../lib/hydrate/_registry.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { ARCHITECTURE } from "../../lib/oci/platform.ts";
import { fingerprint } from "../../lib/system/files.ts";
import { openPart } from "../../lib/system/part_file.ts";
import { PART, readPartRecord } from "../../lib/system/part_record.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { type Fetching, fetching } from "../support/fetching.ts";
import { startHostileRegistry } from "../support/hostile_registry.ts";
import { needs, parts } from "../support/parts.ts";
import { type Fault, type FaultyProxy, startProxy } from "../support/proxy.ts";
import { replace } from "../support/replace.ts";

const TITLE = "org.opencontainers.image.title";
const BLOB = /^GET \S+\/blobs\//;
const SIZE = 300_000;
/** From this size on several connections are worth it. */
const LARGE = 64 * 1024 * 1024;

/** What a test has at hand. */
interface Bench {
  /** The directory to fill. */
  dir: string;
  image: Uint8Array<ArrayBuffer>;
  sha256: string;
  proxy: FaultyProxy;
  /** The artifact's name. */
  name: string;
  /** Its manifest's digest. */
  digest: string;
  /** Pulls the image. */
  pull: (more?: Partial<FetchContext>) => Promise<
    Fetching & { fetched: Awaited<ReturnType<typeof pullFromRegistry>> }
  >;
}

/** How the image is published. */
interface Published {
  /** Its size, in bytes. @default {300_000} */
  size?: number;
  /** The processor that its manifest names. */
  architecture?: string;
  /** What its configuration says. */
  config?: string;
  /** What goes wrong. */
  faults?: Fault[];
}

/** Runs a test with an image, and notes beside it, in a registry. */
function test(
  name: string,
  { size = SIZE, architecture, config, faults = [] }: Published,
  body: (bench: Bench) => Promise<void>,
) {
  Deno.test({
    name,
    ...needs("oras"),
    async fn() {
      await using made = await temporaryDir();
      await using registry = startHostileRegistry();
      await using proxy = startProxy(registry.host, faults);
      const image = new Uint8Array(size);
      crypto.getRandomValues(image.subarray(0, 60_000));
      const titled = (title: string) => ({ annotations: { [TITLE]: title } });
      const layer = await registry.blob(image, titled("deep/image.qcow2"));
      const notes = new TextEncoder().encode("notes");
      const digest = await registry.manifest("1", {
        schemaVersion: 2,
        mediaType: "application/vnd.oci.image.manifest.v1+json",
        config: await registry.blob(new TextEncoder().encode(config ?? "{}"), {
          mediaType: "application/vnd.oci.image.config.v1+json",
        }),
        layers: [layer, await registry.blob(notes, titled("notes.txt"))],
        ...architecture && { annotations: { [ARCHITECTURE]: architecture } },
      });
      const sha256 = String(layer.digest).slice(7);
      const source = parseReference(`${proxy.host}/owner/image:1`);
      const env = new Map(Object.entries(Deno.env.toObject()));
      env.set("TOOLSMITH_ORAS", parts.oras!).set("DOCKER_CONFIG", made.path);
      const dir = join(made.path, "dir");
      await Deno.mkdir(dir);
      await body({
        ...{ dir, image, sha256, proxy, digest },
        name: `oci://${proxy.host}/owner/image:1`,
        async pull({ registry, ...more } = {}) {
          const all = fetching({ source, sha256 }, dir, {
            registry: { env, ...registry },
            ...more,
          });
          const fetched = await pullFromRegistry(all.context, source);
          return { ...all, fetched };
        },
      });
    },
  });
}

/** Leaves the first bytes of an image as a run that was cut does. */
async function leave({ dir, sha256, image }: Bench, bytes: Uint8Array) {
  const digest = `sha256:${sha256}`;
  await using part = await openPart(dir, { size: image.length, digest });
  using writer = await part.openWriter();
  writer.write(0, bytes);
}

const blobs = ({ seen }: FaultyProxy) =>
  seen.filter(({ request }) => BLOB.test(request));

/** The whole of what is pulled: the image, and the notes beside it. */
const TOTAL = SIZE + 5;

test(
  "a small image comes by oras, and what comes is told before",
  {},
  async (bench) => {
    const { dir, image, sha256, name, digest, pull } = bench;
    const { fetched, told, events } = await pull({ connections: 4 });
    const path = join(dir, "pull-1", "deep", "image.qcow2");
    assertEquals(fetched, {
      ...{ path, name: "image.qcow2", bytes: SIZE, actual: sha256 },
      hashed: (await fingerprint(path))!,
      arch: undefined,
    });
    assertEquals(await Deno.readFile(path), image);
    const start = { image: "demo", source: name };
    assertEquals(told("manifest_resolved"), [
      { ...start, digest, file: "deep/image.qcow2", bytes: SIZE },
    ]);
    assertEquals(told("download_start"), [
      { ...start, bytes: TOTAL, resumed: 0, connections: 1 },
    ]);
    assertEquals(told("download_end").map(({ bytes }) => bytes), [TOTAL]);
    const other = events.filter(({ type }) => !/^down|^manif/.test(type));
    assertEquals(other, []);
    assertEquals(await readPartRecord(dir), undefined);
  },
);

test("an image says what it is for in its manifest", {
  architecture: "arm64",
  config: '{"architecture":"amd64"}',
}, async ({ pull }) => {
  assertEquals((await pull()).fetched.arch, "aarch64");
});

test("an image says what it is for in its configuration", {
  config: '{"architecture":"amd64"}',
}, async ({ pull }) => {
  assertEquals((await pull()).fetched.arch, "x86_64");
});

test(
  "what an earlier run has left is gone on with by ranges, over one connection",
  {},
  async (bench) => {
    const { dir, image, sha256, name, pull } = bench;
    await leave(bench, image.subarray(0, 100_000));
    const { fetched, told } = await pull({ connections: 4 });
    const path = join(dir, PART);
    assertEquals(fetched, {
      ...{ path, name: "image.qcow2", bytes: SIZE, actual: sha256 },
      hashed: (await fingerprint(path))!,
      arch: undefined,
    });
    assertEquals(await Deno.readFile(path), image);
    const start = { image: "demo", source: name, bytes: SIZE };
    assertEquals(told("download_start"), [
      { ...start, resumed: 100_000, connections: 1 },
    ]);
    assertEquals(told("download_end").map(({ bytes }) => bytes), [200_000]);
    assertEquals(await readPartRecord(dir), undefined);
  },
);

test(
  "kept bytes that are wrong are told, dropped, and come by oras",
  {},
  async (bench) => {
    const { dir, image, sha256, pull } = bench;
    await leave(bench, new Uint8Array(100_000).fill(9));
    const bad = image.slice();
    bad.fill(9, 0, 100_000);
    const wrong = await crypto.subtle.digest("SHA-256", bad);
    const { fetched, told } = await pull();
    assertEquals(told("ranges_unavailable"), [{
      image: "demo",
      reason: `the bytes have the digest sha256:${
        new Uint8Array(wrong).toHex()
      }`,
    }]);
    assertEquals(fetched.path, join(dir, "pull-1", "deep", "image.qcow2"));
    assertEquals(fetched.actual, sha256);
    assertEquals(told("download_start").map(({ bytes }) => bytes), [
      SIZE,
      TOTAL,
    ]);
  },
);

test(
  "what a cut pull has brought is gone on with by the next attempt",
  {},
  async (bench) => {
    const { dir, image, sha256, proxy, pull } = bench;
    const match = new RegExp(`^GET .*/blobs/sha256:${sha256}`);
    proxy.faults.push({ match, cutAfter: 150_000, times: 1 });
    const { fetched, told } = await pull({
      retries: { retries: 1, retryDelayMs: 1 },
    });
    assertEquals(fetched.path, join(dir, PART));
    assertEquals(await Deno.readFile(fetched.path), image);
    const [first, second] = told("download_start");
    assertEquals([first.resumed, first.bytes], [0, TOTAL]);
    assert(Number(second.resumed) > 0, `${second.resumed}`);
    assertEquals(second.bytes, SIZE);
    assertEquals([...Deno.readDirSync(dir)].map((it) => it.name), [PART]);
  },
);

test("what a cut pull has brought is kept where no attempt is left", {
  faults: [{ match: BLOB, cutAfter: 150_000 }],
}, async ({ dir, pull }) => {
  await failure("transfer_interrupted", () => pull());
  assert((await readPartRecord(dir))!.bytes > 0);
  const names = [...Deno.readDirSync(dir)].map(({ name }) => name);
  assert(!names.includes("pull-1"), `${names}`);
});

test("of a pull that was refused nothing is kept, and it is not tried again", {
  faults: [{ match: BLOB, status: 403 }],
}, async ({ dir, proxy, pull }) => {
  const retries = { retries: 3, retryDelayMs: 1 };
  const { code } = await failure("forbidden", () => pull({ retries }));
  assertEquals(code, "forbidden");
  assertEquals(await readPartRecord(dir), undefined);
  const names = [...Deno.readDirSync(dir)].map(({ name }) => name);
  assert(!names.includes("pull-1"), `${names}`);
  const asked = new Set(blobs(proxy).map(({ request }) => request));
  assertEquals(asked.size, blobs(proxy).length);
});

test(
  "pullFromRegistry() leaves a registry that ranges cannot reach to oras, and keeps a partial download until oras succeeds",
  {},
  async (bench) => {
    const { dir, image, sha256, proxy, pull } = bench;
    await leave(bench, image.subarray(0, 100_000));
    const { fetch } = globalThis;
    using _network = replace(globalThis, {
      fetch: (...[url, init]: Parameters<typeof fetch>) =>
        // The proxy asks the registry without a client of its own.
        init && "client" in init
          ? Promise.reject(new TypeError("client error (Connect): no"))
          : fetch(url, init),
    });
    const retries = { retries: 3, retryDelayMs: 1 };
    proxy.faults.push({ match: BLOB, status: 403 });
    await failure("forbidden", () => pull({ retries }));
    assertEquals((await readPartRecord(dir))!.bytes, 100_000);
    proxy.faults.length = 0;
    const { fetched, told } = await pull({ retries });
    assertEquals(fetched.actual, sha256);
    assertEquals(told("retry"), []);
    const [{ reason }] = told("ranges_unavailable");
    assertMatch(String(reason), /no connection \(Connect: no\)$/);
    assertEquals(await readPartRecord(dir), undefined);
  },
);

test(
  "who stops a pull gets the reason, and what is there is left for the next",
  {
    faults: [{ match: BLOB, stallAfter: 150_000 }],
  },
  async ({ dir, proxy, pull }) => {
    const stop = new AbortController();
    const { signal } = stop;
    const pulling = pull({ registry: { signal }, retries: { signal } });
    while (!blobs(proxy).some(({ bytes }) => bytes >= 150_000)) {
      await new Promise((go) => setTimeout(go, 10));
    }
    stop.abort(new Error("enough"));
    await assertRejects(() => pulling, Error, "enough");
    const names = [...Deno.readDirSync(dir)].map(({ name }) => name);
    assert(names.includes("pull-1"), `${names}`);
  },
);

test(
  "what oras pulls into the cache is synced while it comes, and a disk that fails then says so",
  {
    size: 5 * 1024 * 1024,
  },
  async ({ pull }) => {
    using _system = replace(Deno.FsFile.prototype, {
      syncData: () => Promise.reject(new Error("broken disk")),
    });
    await assertRejects(() => pull(), Error, "broken disk");
  },
);

test("a manifest that does not come at once is asked for again", {
  faults: [{ match: /manifests/, status: 503, times: 1 }],
}, async ({ sha256, pull }) => {
  const retries = { retries: 1, retryDelayMs: 1 };
  assertEquals((await pull({ retries })).fetched.actual, sha256);
});

test(
  "a mirror that fails is told, and the registry goes on",
  {},
  async (bench) => {
    const { sha256, pull, proxy } = bench;
    const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const dead = `127.0.0.1:${listener.addr.port}`;
    listener.close();
    const env = new Map(Object.entries(Deno.env.toObject()));
    env.set("TOOLSMITH_ORAS", parts.oras!);
    env.set("TOOLSMITH_MIRRORS", `${proxy.host}=http://${dead}`);
    const { fetched, told } = await pull({
      registry: { env },
      retries: { retries: 0 },
    });
    // With a mirror even a small image comes by ranges.
    assertEquals([fetched.actual, fetched.path.endsWith(PART)], [sha256, true]);
    const failed = told("mirror_failed");
    assertEquals(
      failed.map(({ image, mirror }) => [image, mirror]),
      failed.map(() => ["demo", dead]),
    );
    // For the manifest, and for the image.
    assertEquals(failed.length, 2);
  },
);

for (const size of [LARGE - 1, LARGE]) {
  const many = size === LARGE;
  test(
    `an image of ${size} bytes comes over ${
      many ? "three connections" : "one"
    }`,
    {
      size,
    },
    async ({ dir, sha256, pull }) => {
      const { fetched, told } = await pull({ connections: 3 });
      assertEquals(fetched.actual, sha256);
      const [{ connections, bytes }] = told("download_start");
      assertEquals([connections, bytes], many ? [3, size] : [1, size + 5]);
      assertEquals(fetched.path === join(dir, PART), many);
    },
  );
}

Deno.test("a token that is not used is told before anybody is asked", async () => {
  const source = parseReference("ghcr.io/owner/image:1");
  const env = new Map([
    ["GHCR_TOKEN", "s3cr3t"],
    ["TOOLSMITH_ORAS", "/nonexistent/oras"],
    ["TOOLSMITH_REGISTRY_CONFIG", "/nonexistent"],
  ]);
  const image = { source, sha256: "0".repeat(64) };
  const { context, told } = fetching(image, "/nonexistent", {
    registry: { env },
  });
  await failure("oras_not_found", () => pullFromRegistry(context, source));
  assertEquals(told("warning"), [{
    message:
      "GHCR_TOKEN is not used: set GHCR_USERNAME or GITHUB_ACTOR along with it",
  }]);
});
