import { assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { hydrate } from "../../lib/hydrate/hydrate.ts";
import { parseManifest } from "../../lib/manifest/manifest.ts";
import { failure } from "../support/failure.ts";
import { testWithImage } from "../support/workspace.ts";

/** The last moments before the image is placed, as events say them. */
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
      const error = await failure("checksum_mismatch", () =>
        hydrate(manifest, {
          cache,
          onEvent({ type }) {
            if (type !== moment) return;
            const staged = findStaged(join(cache, "demo"));
            // The same bytes, so that only the file itself is another one.
            Deno.copyFileSync(staged, `${staged}.new`);
            Deno.renameSync(`${staged}.new`, staged);
          },
        }));
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
