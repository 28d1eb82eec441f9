/**
 * Artifacts that state their architecture, and indexes with one image per
 * architecture.
 */
import { assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { hydrate } from "../../lib/hydrate/hydrate.ts";
import { init } from "../../lib/hydrate/init.ts";
import { publish } from "../../lib/publish/publish.ts";
import { runProcess } from "../../lib/system/process.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { foundTools } from "../support/parts.ts";
import {
  type ImageBench,
  makeQcow2,
  testWithImage,
} from "../support/workspace.ts";

if (foundTools.oras) Deno.env.set("TOOLSMITH_ORAS", foundTools.oras);

const INDEX = "application/vnd.oci.image.index.v1+json";
const MANIFEST = "application/vnd.oci.image.manifest.v1+json";
const HERE = Deno.build.arch;
const OTHER = HERE === "x86_64" ? "aarch64" : "x86_64";
const NAMES = { x86_64: "amd64", aarch64: "arm64" };

/** Pushes an index that names manifests by architecture. */
async function pushIndex(
  { dir, host }: ImageBench,
  manifests: {
    digest: string;
    architecture?: string;
    os?: string;
    mediaType?: string;
  }[],
) {
  const file = join(dir, "index.json");
  const index = {
    schemaVersion: 2,
    mediaType: INDEX,
    manifests: await Promise.all(
      manifests.map(async (
        { digest, architecture, os = "linux", mediaType },
      ) => ({
        mediaType: mediaType ?? MANIFEST,
        digest,
        size: await sizeOf(`${host}/owner/vm@${digest}`),
        ...architecture && { platform: { architecture, os } },
      })),
    ),
  };
  await Deno.writeTextFile(file, JSON.stringify(index));
  const reference = `${host}/owner/vm:index`;
  const args = ["manifest", "push", "--plain-http", "--media-type", INDEX];
  await must([...args, reference, file]);
  return `oci://${reference}`;
}

async function sizeOf(reference: string): Promise<number> {
  const args = ["manifest", "fetch", "--plain-http", reference];
  return new TextEncoder().encode(await must(args)).length;
}

async function must(args: string[], cwd?: string): Promise<string> {
  const { code, stdout, stderr } = await runProcess(foundTools.oras!, {
    args,
    cwd,
  });
  assertEquals(code, 0, stderr);
  return stdout;
}

/** Publishes an image for each architecture. */
async function images({ dir, host, image, sha256 }: ImageBench) {
  const other = join(dir, "other.qcow2");
  await makeQcow2(other);
  const here = await publish(image, `${host}/owner/vm:here`, { arch: HERE });
  const there = await publish(other, `${host}/owner/vm:there`, { arch: OTHER });
  return {
    here: { digest: here.digest, architecture: NAMES[HERE], sha256 },
    there: {
      digest: there.digest,
      architecture: NAMES[OTHER],
      sha256: there.sha256,
    },
  };
}

testWithImage(
  "init and hydrate select the image for this architecture from an index",
  async (bench) => {
    const { here, there } = await images(bench);
    const ref = await pushIndex(bench, [there, here, { digest: here.digest }]);
    const cwd = bench.dir;
    const pinned = await init({ ref, cwd, manifest: "a.json" });
    assertEquals(pinned.manifest.image.sha256, here.sha256);
    const got = await hydrate(pinned.manifest);
    assertEquals([got.outcome, got.boot?.arch], ["pulled", HERE]);
    // The arch option selects another architecture.
    const other = await init({ ref, cwd, manifest: "b.json", arch: OTHER });
    assertEquals(other.manifest.image.sha256, there.sha256);
    const { boot } = await hydrate(other.manifest, { arch: OTHER });
    assertEquals(boot?.arch, OTHER);
    // The verification record keeps the architecture.
    const again = await hydrate(other.manifest, { offline: true });
    assertEquals([again.outcome, again.boot?.arch], ["cached", OTHER]);
  },
);

testWithImage(
  "hydrate rejects an index whose image for this architecture has another digest",
  async (bench) => {
    const { here, there } = await images(bench);
    const ref = await pushIndex(bench, [there, here]);
    const { manifest } = await init({ ref, cwd: bench.dir, arch: OTHER });
    const error = await expectFailure(
      "checksum_mismatch",
      () => hydrate(manifest),
    );
    assertStringIncludes(error.message, there.sha256);
  },
);

testWithImage(
  "init and hydrate select the Linux image from an index with Windows images",
  async (bench) => {
    const { here, there } = await images(bench);
    const windows = { ...there, architecture: NAMES[HERE], os: "windows" };
    const ref = await pushIndex(bench, [windows, here]);
    const { manifest } = await init({ ref, cwd: bench.dir });
    assertEquals(manifest.image.sha256, here.sha256);
    assertEquals((await hydrate(manifest)).outcome, "pulled");
  },
);

testWithImage(
  "init rejects an index without exactly one image for this architecture, listing what it has",
  async (bench) => {
    const { here, there } = await images(bench);
    const cwd = bench.dir;
    const alone = await pushIndex(bench, [there]);
    const error = await expectFailure(
      "payload_missing",
      () => init({ ref: alone, cwd }),
    );
    assertStringIncludes(error.message, NAMES[OTHER]);
    assertStringIncludes(error.message, NAMES[HERE]);
    const twice = await pushIndex(bench, [
      here,
      { ...there, architecture: NAMES[HERE] },
    ]);
    const several = await expectFailure(
      "payload_ambiguous",
      () => init({ ref: twice, cwd }),
    );
    for (const { digest } of [here, there]) {
      assertStringIncludes(
        several.hint!,
        `${digest} (linux/${NAMES[HERE]})`,
      );
    }
    const empty = await pushIndex(bench, [{ digest: here.digest }]);
    await expectFailure("payload_missing", () => init({ ref: empty, cwd }));
  },
);

testWithImage(
  "hydrate stores the architecture from the image's configuration in the verification record",
  async ({ dir, host }) => {
    const configs = {
      named: ['{"architecture":"arm64","os":"linux"}', "aarch64"],
      unknown: ['{"architecture":"s390x","os":"linux"}', undefined],
      broken: ["{", undefined],
      empty: ["null", undefined],
    } as const;
    const type = "application/vnd.oci.image.config.v1+json";
    for (const [tag, [text, arch]] of Object.entries(configs)) {
      await Deno.writeTextFile(join(dir, "config.json"), text);
      await makeQcow2(join(dir, `${tag}.qcow2`));
      const reference = `${host}/owner/vm:${tag}`;
      const args = ["push", "--plain-http", "--config", `config.json:${type}`];
      await must([...args, reference, `${tag}.qcow2`], dir);
      const ref = `oci://${reference}`;
      const { manifest } = await init({
        ref,
        cwd: dir,
        manifest: `${tag}.json`,
      });
      const { boot } = await hydrate(manifest);
      assertEquals(boot?.arch, arch, tag);
    }
  },
);

testWithImage("init rejects an index nested in an index", async (bench) => {
  const { here } = await images(bench);
  await pushIndex(bench, [here]);
  const reference = `${bench.host}/owner/vm:index`;
  const args = ["resolve", "--plain-http", reference];
  const digest = (await must(args)).trim();
  const ref = await pushIndex(bench, [
    { digest, architecture: NAMES[HERE], mediaType: INDEX },
  ]);
  await expectFailure("payload_missing", () => init({ ref, cwd: bench.dir }));
});
