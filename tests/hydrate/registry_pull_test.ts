import { assert, assertEquals, assertMatch, assertRejects } from "@std/assert";
import { join } from "@std/path";
import type { FetchJob } from "../../lib/hydrate/_fetch_job.ts";
import { pullFromRegistry } from "../../lib/hydrate/_registry_pull.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { ARCHITECTURE_ANNOTATION } from "../../lib/oci/platform.ts";
import { readFileIdentity } from "../../lib/system/files.ts";
import { openPartFile } from "../../lib/system/part_file.ts";
import {
  PART_FILE_NAME,
  readPartRecord,
} from "../../lib/system/part_record.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { type FetchSetup, setUpFetch } from "../support/fetch_setup.ts";
import {
  IMAGE_MANIFEST,
  startHostileRegistry,
} from "../support/hostile_registry.ts";
import { foundTools, requires } from "../support/parts.ts";
import {
  type FaultyProxy,
  type ProxyFault,
  startProxy,
} from "../support/proxy.ts";
import { replaceMethod } from "../support/replace_method.ts";

const TITLE = "org.opencontainers.image.title";
const BLOB = /^GET \S+\/blobs\//;
const SIZE = 300_000;
/** From this size on, several connections are used. */
const LARGE = 64 * 1024 * 1024;

/** What each test gets. */
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
  pull: (more?: Partial<FetchJob>) => Promise<
    FetchSetup & { fetched: Awaited<ReturnType<typeof pullFromRegistry>> }
  >;
}

/** How the image is published. */
interface Published {
  /** Its size, in bytes. @default {300_000} */
  size?: number;
  /** The architecture in its manifest. */
  architecture?: string;
  /** Text of its configuration. */
  config?: string;
  /** Faults of the proxy. */
  faults?: ProxyFault[];
}

/** Runs a test with a registry that has an image and a text file. */
function test(
  name: string,
  { size = SIZE, architecture, config, faults = [] }: Published,
  body: (bench: Bench) => Promise<void>,
) {
  Deno.test({
    name,
    ...requires("oras"),
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
        ...architecture &&
          { annotations: { [ARCHITECTURE_ANNOTATION]: architecture } },
      });
      const sha256 = String(layer.digest).slice(7);
      const source = parseReference(`${proxy.host}/owner/image:1`);
      const env = new Map(Object.entries(Deno.env.toObject()));
      env.set("TOOLSMITH_ORAS", foundTools.oras!).set(
        "DOCKER_CONFIG",
        made.path,
      );
      const dir = join(made.path, "dir");
      await Deno.mkdir(dir);
      await body({
        ...{ dir, image, sha256, proxy, digest },
        name: `oci://${proxy.host}/owner/image:1`,
        async pull(more) {
          const all = setUpFetch({ source, sha256 }, dir, { env, ...more });
          const fetched = await pullFromRegistry(all.job, source);
          return { ...all, fetched };
        },
      });
    },
  });
}

/** Leaves a partial download, as an interrupted run does. */
async function leave({ dir, sha256, image }: Bench, bytes: Uint8Array) {
  const digest = `sha256:${sha256}`;
  await using part = await openPartFile(dir, { size: image.length, digest });
  using writer = await part.openWriter();
  writer.write(0, bytes);
}

const blobs = ({ seen }: FaultyProxy) =>
  seen.filter(({ request }) => BLOB.test(request));

/** Size of the image and the text file. */
const TOTAL = SIZE + 5;

test(
  "pullFromRegistry() pulls a small image with oras and reports its size first",
  {},
  async (bench) => {
    const { dir, image, sha256, name, digest, pull } = bench;
    const { fetched, eventsOfType, events } = await pull({
      connections: 4,
    });
    const path = join(dir, "pull-1", "deep", "image.qcow2");
    assertEquals(fetched, {
      ...{ path, fileName: "image.qcow2", bytes: SIZE, sha256: sha256 },
      hashedFile: (await readFileIdentity(path))!,
      ...{ arch: undefined, signature: undefined },
    });
    assertEquals(await Deno.readFile(path), image);
    const start = { image: "demo", source: name };
    assertEquals(eventsOfType("manifest_resolved"), [
      { ...start, digest, file: "deep/image.qcow2", bytes: SIZE },
    ]);
    assertEquals(eventsOfType("download_start"), [
      { ...start, bytes: TOTAL, resumed: 0, connections: 1 },
    ]);
    assertEquals(eventsOfType("download_end").map(({ bytes }) => bytes), [
      TOTAL,
    ]);
    const other = events.filter(({ type }) => !/^down|^manif/.test(type));
    assertEquals(other, []);
    assertEquals(await readPartRecord(dir), undefined);
  },
);

test(
  "pullFromRegistry() reads the architecture from the manifest's annotation",
  {
    architecture: "arm64",
    config: '{"architecture":"amd64"}',
  },
  async ({ pull }) => {
    assertEquals((await pull()).fetched.arch, "aarch64");
  },
);

test(
  "pullFromRegistry() reads the architecture from the image's configuration",
  {
    config: '{"architecture":"amd64"}',
  },
  async ({ pull }) => {
    assertEquals((await pull()).fetched.arch, "x86_64");
  },
);

test(
  "pullFromRegistry() resumes a small partial download with range requests over one connection",
  {},
  async (bench) => {
    const { dir, image, sha256, name, pull } = bench;
    await leave(bench, image.subarray(0, 100_000));
    const { fetched, eventsOfType } = await pull({ connections: 4 });
    const path = join(dir, PART_FILE_NAME);
    assertEquals(fetched, {
      ...{ path, fileName: "image.qcow2", bytes: SIZE, sha256: sha256 },
      hashedFile: (await readFileIdentity(path))!,
      ...{ arch: undefined, signature: undefined, update: undefined },
    });
    assertEquals(await Deno.readFile(path), image);
    const start = { image: "demo", source: name, bytes: SIZE };
    assertEquals(eventsOfType("download_start"), [
      { ...start, resumed: 100_000, connections: 1 },
    ]);
    assertEquals(eventsOfType("download_end").map(({ bytes }) => bytes), [
      200_000,
    ]);
    assertEquals(await readPartRecord(dir), undefined);
  },
);

test(
  "pullFromRegistry() discards a partial download with wrong bytes and falls back to oras",
  {},
  async (bench) => {
    const { dir, image, sha256, pull } = bench;
    await leave(bench, new Uint8Array(100_000).fill(9));
    const bad = image.slice();
    bad.fill(9, 0, 100_000);
    const wrong = await crypto.subtle.digest("SHA-256", bad);
    const { fetched, eventsOfType } = await pull();
    assertEquals(eventsOfType("ranges_unavailable"), [{
      image: "demo",
      reason: `the downloaded bytes have the digest sha256:${
        new Uint8Array(wrong).toHex()
      }`,
    }]);
    assertEquals(fetched.path, join(dir, "pull-1", "deep", "image.qcow2"));
    assertEquals(fetched.sha256, sha256);
    assertEquals(eventsOfType("download_start").map(({ bytes }) => bytes), [
      SIZE,
      TOTAL,
    ]);
  },
);

test(
  "pullFromRegistry() resumes what an interrupted `oras pull` wrote in the next attempt",
  {},
  async (bench) => {
    const { dir, image, sha256, proxy, pull } = bench;
    const match = new RegExp(`^GET .*/blobs/sha256:${sha256}`);
    proxy.faults.push({ match, cutAfter: 150_000, times: 1 });
    const { fetched, eventsOfType } = await pull({ retries: 1 });
    assertEquals(fetched.path, join(dir, PART_FILE_NAME));
    assertEquals(await Deno.readFile(fetched.path), image);
    const [first, second] = eventsOfType("download_start");
    assertEquals([first.resumed, first.bytes], [0, TOTAL]);
    assert(Number(second.resumed) > 0, `${second.resumed}`);
    assertEquals(second.bytes, SIZE);
    assertEquals([...Deno.readDirSync(dir)].map((it) => it.name), [
      PART_FILE_NAME,
    ]);
  },
);

test(
  "pullFromRegistry() keeps what an interrupted `oras pull` wrote when no retry is left",
  {
    faults: [{ match: BLOB, cutAfter: 150_000 }],
  },
  async ({ dir, pull }) => {
    await expectFailure("transfer_interrupted", () => pull());
    assert((await readPartRecord(dir))!.bytes > 0);
    const names = [...Deno.readDirSync(dir)].map(({ name }) => name);
    assert(!names.includes("pull-1"), `${names}`);
  },
);

test(
  "pullFromRegistry() does not retry after a 403, and keeps no partial download",
  {
    faults: [{ match: BLOB, status: 403 }],
  },
  async ({ dir, proxy, pull }) => {
    const retries = 3;
    const { code } = await expectFailure("forbidden", () => pull({ retries }));
    assertEquals(code, "forbidden");
    assertEquals(await readPartRecord(dir), undefined);
    const names = [...Deno.readDirSync(dir)].map(({ name }) => name);
    assert(!names.includes("pull-1"), `${names}`);
    const asked = new Set(blobs(proxy).map(({ request }) => request));
    assertEquals(asked.size, blobs(proxy).length);
  },
);

test(
  "pullFromRegistry() falls back to oras when range requests cannot connect, and keeps the partial download until oras succeeds",
  {},
  async (bench) => {
    const { dir, image, sha256, proxy, pull } = bench;
    await leave(bench, image.subarray(0, 100_000));
    const { fetch } = globalThis;
    using _network = replaceMethod(globalThis, {
      fetch: (...[url, init]: Parameters<typeof fetch>) =>
        // The proxy's own requests have no client option.
        init && "client" in init
          ? Promise.reject(new TypeError("client error (Connect): no"))
          : fetch(url, init),
    });
    const retries = 3;
    proxy.faults.push({ match: BLOB, status: 403 });
    await expectFailure("forbidden", () => pull({ retries }));
    assertEquals((await readPartRecord(dir))!.bytes, 100_000);
    proxy.faults.length = 0;
    const { fetched, eventsOfType } = await pull({ retries });
    assertEquals(fetched.sha256, sha256);
    assertEquals(eventsOfType("retry"), []);
    const [{ reason }] = eventsOfType("ranges_unavailable");
    assertMatch(String(reason), /connection failed \(Connect: no\)$/);
    assertEquals(await readPartRecord(dir), undefined);
  },
);

test(
  "pullFromRegistry() resumes the partial download once range requests connect again, if oras is interrupted, too",
  {},
  async (bench) => {
    const { image, sha256, proxy, pull } = bench;
    await leave(bench, image.subarray(0, 100_000));
    const match = new RegExp(`^GET .*/blobs/sha256:${sha256}`);
    proxy.faults.push({ match, cutAfter: 50_000, times: 1 });
    let isDown = true;
    const resumed: number[] = [];
    const { fetch } = globalThis;
    using _network = replaceMethod(globalThis, {
      fetch: (...[url, init]: Parameters<typeof fetch>) =>
        isDown && init && "client" in init
          ? Promise.reject(new TypeError("client error (Connect): no"))
          : fetch(url, init),
    });
    const { fetched } = await pull({
      retries: 1,
      emit(event) {
        if (event.type === "ranges_unavailable") isDown = false;
        if (event.type === "download_start") resumed.push(event.resumed);
      },
    });
    assertEquals(await Deno.readFile(fetched.path), image);
    assertEquals(resumed, [100_000, 0, 100_000]);
  },
);

test(
  "pullFromRegistry() rejects with the abort reason and keeps the partial download",
  {
    faults: [{ match: BLOB, stallAfter: 150_000 }],
  },
  async ({ dir, proxy, pull }) => {
    const stop = new AbortController();
    const { signal } = stop;
    const pulling = pull({ signal });
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
  "pullFromRegistry() syncs the file to disk while oras writes it, and throws the error of a failed sync",
  {
    size: 5 * 1024 * 1024,
  },
  async ({ pull }) => {
    using _system = replaceMethod(Deno.FsFile.prototype, {
      syncData: () => Promise.reject(new Error("broken disk")),
    });
    await assertRejects(() => pull(), Error, "broken disk");
  },
);

test("pullFromRegistry() retries a manifest request that answers 503", {
  faults: [{ match: /manifests/, status: 503, times: 1 }],
}, async ({ sha256, pull }) => {
  const retries = 1;
  assertEquals((await pull({ retries })).fetched.sha256, sha256);
});

test(
  "pullFromRegistry() emits mirror_failed and continues from the registry",
  {},
  async (bench) => {
    const { sha256, pull, proxy } = bench;
    // Nothing listens there, unlike at a port that was free a moment ago.
    const dead = "127.0.0.1:2";
    const env = new Map(Object.entries(Deno.env.toObject()));
    env.set("TOOLSMITH_ORAS", foundTools.oras!);
    env.set("TOOLSMITH_MIRRORS", `${proxy.host}=http://${dead}`);
    const { fetched, eventsOfType } = await pull({ env });
    // With a mirror, even a small image uses range requests.
    assertEquals(
      [fetched.sha256, fetched.path.endsWith(PART_FILE_NAME)],
      [sha256, true],
    );
    const failed = eventsOfType("mirror_failed");
    assertEquals(
      failed.map(({ image, mirror }) => [image, mirror]),
      failed.map(() => ["demo", dead]),
    );
    // For the manifest, and for the image.
    assertEquals(failed.length, 2);
  },
);

test(
  "pullFromRegistry() skips a mirror whose tag has another image",
  {},
  async ({ sha256, pull, proxy }) => {
    await using mirror = startHostileRegistry();
    const title = { annotations: { [TITLE]: "image.qcow2" } };
    await mirror.manifest("1", {
      schemaVersion: 2,
      mediaType: IMAGE_MANIFEST,
      config: await mirror.blob(new TextEncoder().encode("{}")),
      layers: [await mirror.blob(new Uint8Array(10), title)],
    });
    const env = new Map(Object.entries(Deno.env.toObject()));
    env.set("TOOLSMITH_ORAS", foundTools.oras!);
    env.set("TOOLSMITH_MIRRORS", `${proxy.host}=http://${mirror.host}`);
    const { fetched, eventsOfType } = await pull({ env });
    assertEquals(fetched.sha256, sha256);
    assertEquals(eventsOfType("mirror_failed")[0].mirror, mirror.host);
  },
);

for (const size of [LARGE - 1, LARGE]) {
  const many = size === LARGE;
  const connections = many ? "three connections" : "one connection";
  test(
    `pullFromRegistry() downloads ${size} bytes over ${connections}`,
    {
      size,
    },
    async ({ dir, sha256, pull }) => {
      const { fetched, eventsOfType } = await pull({ connections: 3 });
      assertEquals(fetched.sha256, sha256);
      const [{ connections, bytes }] = eventsOfType("download_start");
      assertEquals([connections, bytes], many ? [3, size] : [1, size + 5]);
      assertEquals(fetched.path === join(dir, PART_FILE_NAME), many);
    },
  );
}

Deno.test("pullFromRegistry() warns about an unused GHCR_TOKEN before any request", async () => {
  const source = parseReference("ghcr.io/owner/image:1");
  const env = new Map([
    ["GHCR_TOKEN", "s3cr3t"],
    ["TOOLSMITH_ORAS", "/nonexistent/oras"],
    ["TOOLSMITH_REGISTRY_CONFIG", "/nonexistent"],
  ]);
  const image = { source, sha256: "0".repeat(64) };
  const { job, eventsOfType } = setUpFetch(
    image,
    "/nonexistent",
    { env },
  );
  await expectFailure(
    "oras_not_found",
    () => pullFromRegistry(job, source),
  );
  assertEquals(eventsOfType("warning"), [{
    message: "GHCR_TOKEN is not used: also set GHCR_USERNAME or GITHUB_ACTOR",
  }]);
});
