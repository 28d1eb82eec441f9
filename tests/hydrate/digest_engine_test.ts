/**
 * Which engine computes an image's digest: node:crypto for a large image, else
 * `@std/crypto`, which TOOLSMITH_DIGEST=std and --verify also select.
 */
import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import type { Environment } from "../../lib/environment.ts";
import { hydrate, type HydrateOptions } from "../../lib/hydrate/hydrate.ts";
import { downloadHttpsImage } from "../../lib/hydrate/_https_download.ts";
import { parseManifest } from "../../lib/manifest/manifest.ts";
import { certificateOfFile } from "../support/certificates.ts";
import { countStdDigestBytes } from "../support/digests.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { setUpFetch } from "../support/fetch_setup.ts";
import { requires } from "../support/parts.ts";
import { attemptPublish } from "../support/publication.ts";
import { startRegistry } from "../support/registry.ts";
import { startTlsServer } from "../support/tls_server.ts";
import { makeQcow2, workspace } from "../support/workspace.ts";

const MIB = 1024 * 1024;
const LARGE = 64 * MIB;
const STD = named("std");
const REAL = requires("oras", "registry", "qemuImg");
const { ignore } = requires("openssl");
const certificate = certificateOfFile(ignore);

/** The environment with a value of TOOLSMITH_DIGEST. */
function named(engine: string): Environment {
  return {
    get: (name) => name === "TOOLSMITH_DIGEST" ? engine : Deno.env.get(name),
  };
}

/** Runs `work`, and returns which engine hashed an image of that size. */
async function engineOf(size: number, work: () => Promise<unknown>) {
  using std = countStdDigestBytes();
  await work();
  // `@std/crypto` also hashes manifests.
  return std.bytes < size ? "runtime" : "std";
}

Deno.test({
  name:
    "node:crypto hashes images of 64 MiB or more when publishing, pulling, copying or rehashing, unless TOOLSMITH_DIGEST=std",
  ...REAL,
  async fn(t) {
    await using work = await workspace();
    await using registry = await startRegistry();
    const image = join(work.dir, "image.qcow2");
    const { sha256 } = await makeQcow2(image, LARGE);
    const { size } = await Deno.stat(image);
    const reference = `${registry.host}/o/i:1`;
    const text = (qcow2: string) =>
      JSON.stringify({
        image: {
          name: "i",
          tarball: "",
          sha256: "",
          qcow2,
          qcow2_sha256: sha256,
        },
        tools: {},
        operations: [],
      });
    const hydrated = (qcow2: string, options: HydrateOptions) => {
      const path = join(work.dir, ".toolsmith", "tools.json");
      return hydrate(parseManifest(text(qcow2), path), options);
    };
    const publish = async (options = {}) => {
      const { result } = await attemptPublish(image, reference, options);
      assertEquals(result.sha256, sha256);
    };
    const pull = (connections: number) => (options: HydrateOptions) =>
      hydrated(`oci://${reference}`, { force: true, connections, ...options });
    let seconds = 0;
    const ways: [string, (options: HydrateOptions) => Promise<unknown>][] = [
      ["publish hashes an image with node:crypto", publish],
      [
        "hydrate hashes a download over four connections with node:crypto",
        pull(4),
      ],
      ["hydrate hashes an image from `oras pull` with node:crypto", pull(1)],
      [
        "hydrate hashes a local image with node:crypto",
        (options) => hydrated(image, { force: true, ...options }),
      ],
      [
        "hydrate rehashes a cached image with changed times with node:crypto",
        async (options) => {
          const { path } = await hydrated(image, {});
          await Deno.utime(path, new Date(), new Date(seconds += 1000));
          const { outcome } = await hydrated(image, options);
          assertEquals(outcome, "cached");
        },
      ],
    ];
    for (const [name, way] of ways) {
      await t.step(name, async () => {
        assertEquals(await engineOf(size, () => way({})), "runtime");
        assertEquals(await engineOf(size, () => way({ env: STD })), "std");
      });
    }
    await t.step("hydrate --verify hashes with @std/crypto", async () => {
      await hydrated(image, {});
      const check = () => hydrated(image, { verify: true });
      assertEquals(await engineOf(size, check), "std");
    });
    await t.step("publish --verify pull hashes with @std/crypto", async () => {
      const check = () => publish({ verify: "pull" });
      assertEquals(await engineOf(size, check), "std");
    });
  },
});

Deno.test({
  name: "hydrate hashes an image below 64 MiB with @std/crypto",
  ...REAL,
  async fn() {
    await using work = await workspace();
    const path = join(work.dir, "image.qcow2");
    const { sha256 } = await makeQcow2(path, MIB);
    const { size } = await Deno.stat(path);
    await work.manifest({ qcow2: path, qcow2_sha256: sha256 });
    const manifest = join(work.dir, ".toolsmith", "tools.json");
    const text = await Deno.readTextFile(manifest);
    const copy = () => hydrate(parseManifest(text, manifest));
    assertEquals(await engineOf(size, copy), "std");
  },
});

Deno.test({
  name:
    "downloadHttpsImage() hashes an image of 64 MiB or more, or without Content-Length, with node:crypto",
  ignore,
  async fn() {
    await using dir = await temporaryDir();
    const body = new Uint8Array(LARGE);
    const sha256 =
      "3b6a07d0d404fab4e23b6d34bc6696a6a312dd92821332385e5af7c01c421351";
    let length = {};
    await using server = await startTlsServer(certificate(), async (it) => {
      await it.head(200, length);
      await it.body(body);
    });
    const url = new URL("/a.qcow2", server.url);
    const { caFile } = certificate();
    const download = async (env?: Environment) => {
      const into = await Deno.makeTempDir({ dir: dir.path });
      const source = { source: { kind: "https" as const, url }, sha256 };
      const { job } = setUpFetch(source, into, { caFile, env });
      const { sha256: actual } = await downloadHttpsImage(
        job,
        url,
      );
      assertEquals(actual, sha256);
    };
    for (length of [{ "content-length": LARGE }, {}]) {
      assertEquals(await engineOf(LARGE, download), "runtime");
      assertEquals(await engineOf(LARGE, () => download(STD)), "std");
    }
  },
});

Deno.test({
  name:
    "hydrate rejects an unknown TOOLSMITH_DIGEST before it downloads the image",
  ...REAL,
  async fn() {
    await using work = await workspace();
    await using registry = await startRegistry();
    const image = join(work.dir, "image.qcow2");
    const { sha256 } = await makeQcow2(image);
    await attemptPublish(image, `${registry.host}/o/i:1`);
    await work.manifest({
      qcow2: `oci://${registry.host}/o/i:1`,
      qcow2_sha256: sha256,
    });
    const path = join(work.dir, ".toolsmith", "tools.json");
    const manifest = parseManifest(await Deno.readTextFile(path), path);
    const types: string[] = [];
    const { message } = await expectFailure("usage", () =>
      hydrate(manifest, {
        env: named("sdt"),
        onEvent: ({ type }) => types.push(type),
      }));
    assertEquals(message, "Cannot use TOOLSMITH_DIGEST=sdt");
    assert(!types.includes("download_start"), `${types}`);
  },
});

Deno.test({
  name:
    "downloadHttpsImage() rejects an unknown TOOLSMITH_DIGEST before a download without Content-Length",
  ignore,
  async fn() {
    await using dir = await temporaryDir();
    await using server = await startTlsServer(certificate(), async (it) => {
      await it.head(200, {});
      await it.body(new Uint8Array(MIB));
    });
    const url = new URL("/a.qcow2", server.url);
    const image = { source: { kind: "https", url }, sha256: "" } as const;
    const { caFile } = certificate();
    const { job, eventsOfType } = setUpFetch(image, dir.path, {
      ...{ caFile, env: named("sdt") },
    });
    await expectFailure("usage", () => downloadHttpsImage(job, url));
    assertEquals(eventsOfType("download_start"), []);
  },
});
