import { assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { hydrate } from "../../lib/hydrate/hydrate.ts";
import { parseManifest } from "../../lib/manifest/manifest.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { testWithImage } from "../support/workspace.ts";

/** The last events before the image is moved into the cache. */
for (const moment of ["download_end", "checksum_verified"]) {
  testWithImage(
    `hydrate() keeps no file that replaced the one it hashed, at ${moment}`,
    async (bench) => {
      const { dir, image, sha256 } = bench;
      const cache = join(dir, "cache");
      const manifest = parseManifest(
        JSON.stringify({
          image: { name: "demo", qcow2: image, qcow2_sha256: sha256 },
        }),
        join(dir, "tools.json"),
      );
      const error = await expectFailure(
        "checksum_mismatch",
        () =>
          hydrate(manifest, {
            cache,
            onEvent({ type }) {
              if (type !== moment) return;
              const staged = findStaged(join(cache, "demo"));
              // A copy, so that only the file identity differs.
              Deno.copyFileSync(staged, `${staged}.new`);
              Deno.renameSync(`${staged}.new`, staged);
            },
          }),
      );
      assertStringIncludes(error.message, "was replaced");
      const left = [...Deno.readDirSync(join(cache, "demo"))]
        .filter(({ isDirectory }) => isDirectory);
      assertEquals(left, []);
    },
  );
}

function findStaged(dir: string): string {
  const staging = [...Deno.readDirSync(dir)]
    .find(({ name }) => name.startsWith(".staging-"))!;
  return join(dir, staging.name, "image.qcow2");
}
