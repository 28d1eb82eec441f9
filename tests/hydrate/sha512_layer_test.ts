/**
 * A layer with a sha512 digest, while the manifest pins a SHA-256.
 */
import { assertEquals, assertStringIncludes } from "@std/assert";
import { hydrate } from "../../lib/hydrate/hydrate.ts";
import { init } from "../../lib/hydrate/init.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { foundTools } from "../support/parts.ts";
import { createSigningKey } from "../support/sigstore.ts";
import { type ImageBench, testWithImage, TYPE } from "../support/workspace.ts";

/** Uploads an image under its sha512 digest, and a manifest for it. */
async function pushSha512({ image, registry: { url, host } }: ImageBench) {
  const put = async (address: string, type: string, body: BodyInit) => {
    const headers = { "content-type": type };
    const answer = await fetch(address, { method: "PUT", headers, body });
    assertEquals(answer.status, 201, await answer.text());
  };
  const upload = async (algorithm: string, bytes: Uint8Array<ArrayBuffer>) => {
    const name = algorithm.replace("sha", "SHA-");
    const hash = await crypto.subtle.digest(name, bytes);
    const digest = `${algorithm}:${new Uint8Array(hash).toHex()}`;
    const begun = await fetch(`${url}/v2/o/vm/blobs/uploads/`, {
      method: "POST",
    });
    await begun.body?.cancel();
    const address = new URL(begun.headers.get("location")!);
    address.searchParams.set("digest", digest);
    await put(address.href, "application/octet-stream", bytes);
    return { digest, size: bytes.length };
  };
  const mediaType = "application/vnd.oci.image.manifest.v1+json";
  const config = await upload("sha256", new TextEncoder().encode("{}"));
  const layer = await upload("sha512", await Deno.readFile(image));
  const manifest = {
    schemaVersion: 2,
    mediaType,
    config: { ...config, mediaType: "application/vnd.oci.empty.v1+json" },
    layers: [{
      ...layer,
      mediaType: TYPE,
      annotations: { "org.opencontainers.image.title": "image.qcow2" },
    }],
  };
  const address = `${url}/v2/o/vm/manifests/1`;
  await put(address, mediaType, JSON.stringify(manifest));
  return `oci://${host}/o/vm:1`;
}

testWithImage(
  "hydrate pulls a layer with a sha512 digest and compares its SHA-256 with the pinned one",
  async (bench) => {
    const { dir: cwd, sha256 } = bench;
    const env = new Map([["TOOLSMITH_ORAS", foundTools.oras!]]);
    const ref = await pushSha512(bench);
    const { manifest } = await init({ ref, cwd, sha256, env });
    const { outcome, digest } = await hydrate(manifest, { env });
    assertEquals([outcome, digest], ["pulled", `sha256:${sha256}`]);
  },
);

testWithImage(
  "hydrate reports the actual SHA-256 of a sha512 layer on a mismatch",
  async (bench) => {
    const { dir: cwd, sha256 } = bench;
    const env = new Map([["TOOLSMITH_ORAS", foundTools.oras!]]);
    const ref = await pushSha512(bench);
    const other = "0".repeat(64);
    const { manifest } = await init({ ref, cwd, sha256: other, env });
    const { message } = await expectFailure(
      "checksum_mismatch",
      () => hydrate(manifest, { env }),
    );
    assertStringIncludes(message, `actual ${sha256}`);
  },
);

testWithImage(
  "init requires sha256 for a layer with a sha512 digest",
  async (bench) => {
    const env = new Map([["TOOLSMITH_ORAS", foundTools.oras!]]);
    const ref = await pushSha512(bench);
    await expectFailure("usage", () => init({ ref, cwd: bench.dir, env }));
  },
);

testWithImage(
  "init and hydrate refuse a sha512 layer under a rule, as a signature would not cover its SHA-256",
  async (bench) => {
    const { dir: cwd, sha256 } = bench;
    const env = new Map([["TOOLSMITH_ORAS", foundTools.oras!]]);
    const ref = await pushSha512(bench);
    const { publicKey: key } = createSigningKey();
    await Deno.writeTextFile(`${cwd}/key.pub`, key);
    const signed = { ref, cwd, sha256, env, signingKey: "key.pub" };
    const { manifest } = await init({ ref, cwd, sha256, env });
    const image = { ...manifest.image, signature: { key } };
    const calls = [
      () => init({ ...signed, update: true }),
      () => hydrate({ ...manifest, image }, { env }),
    ];
    for (const call of calls) {
      const { message } = await expectFailure("signature_invalid", call);
      assertStringIncludes(message, "would cover sha512:");
    }
  },
);
