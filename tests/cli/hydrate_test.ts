import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { perform, recordedIo } from "../support/io.ts";
import { localImage } from "../support/local_image.ts";
import { needs } from "../support/parts.ts";

const needsQemuImg = needs("qemuImg");

Deno.test({
  name: "hydrate prints the image's path, and says what happens until then",
  ...needsQemuImg,
  async fn() {
    await using work = await localImage();
    const { image, sha256, named } = work;
    await perform(["init", "--file", image, ...named], recordedIo());
    await Deno.remove(work.cache, { recursive: true }).catch(() => {});
    const path = join(work.cache, "image", sha256, "image.qcow2");
    for (const outcome of ["copied", "cached"]) {
      const recorded = recordedIo();
      assertEquals(await perform(["hydrate", ...named], recorded), 0);
      const [{ json, fields, text }, ...more] = recorded.results;
      assertEquals([json, fields.outcome, text], [false, outcome, path]);
      assertEquals([more, recorded.late()], [[], 0]);
      assert(recorded.events.length > 0);
    }
    await Deno.remove(path);
    await Deno.remove(image);
    const missing = recordedIo();
    const lost = () => perform(["hydrate", ...named], missing);
    await failure("source_not_found", lost);
    assertEquals(missing.results, []);
  },
});

Deno.test("hydrate ends at Ctrl-C, before anything is fetched", async () => {
  await using dir = await temporaryDir();
  const manifest = join(dir.path, "tools.json");
  const image = { name: "demo", qcow2: "x", qcow2_sha256: "a".repeat(64) };
  await Deno.writeTextFile(manifest, JSON.stringify({ image }));
  const signal = AbortSignal.abort(new Error("enough"));
  const recorded = recordedIo({ signal });
  const args = ["hydrate", "--manifest", manifest, "--cache", dir.path];
  const error = await perform(args, recorded).catch((error) => error);
  assertEquals([error.message, recorded.events], ["enough", []]);
});
