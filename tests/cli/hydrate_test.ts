import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { performCommand, recordedIo } from "../support/recorded_io.ts";
import { makeLocalImage } from "../support/local_image.ts";
import { requires } from "../support/parts.ts";

const needsQemuImg = requires("qemuImg");

Deno.test({
  name: "hydrate prints the image's path on stdout and its events on stderr",
  ...needsQemuImg,
  async fn() {
    await using work = await makeLocalImage();
    const { image, sha256, named } = work;
    await performCommand(["init", "--file", image, ...named], recordedIo());
    await Deno.remove(work.cache, { recursive: true }).catch(() => {});
    const path = join(work.cache, "image", sha256, "image.qcow2");
    for (const outcome of ["copied", "cached"]) {
      const recorded = recordedIo();
      assertEquals(await performCommand(["hydrate", ...named], recorded), 0);
      const [{ json, fields, text }, ...more] = recorded.results;
      assertEquals([json, fields.outcome, text], [false, outcome, path]);
      assertEquals([more, recorded.eventsAfterResult()], [[], 0]);
      assert(recorded.events.length > 0);
    }
    await Deno.remove(path);
    await Deno.remove(image);
    const missing = recordedIo();
    const lost = () => performCommand(["hydrate", ...named], missing);
    await expectFailure("source_not_found", lost);
    assertEquals(missing.results, []);
  },
});

Deno.test("hydrate fetches nothing when its signal is already aborted", async () => {
  await using dir = await temporaryDir();
  const manifest = join(dir.path, "tools.json");
  const image = { name: "demo", qcow2: "x", qcow2_sha256: "a".repeat(64) };
  await Deno.writeTextFile(manifest, JSON.stringify({ image }));
  const signal = AbortSignal.abort(new Error("enough"));
  const recorded = recordedIo({ signal });
  const args = ["hydrate", "--manifest", manifest, "--cache", dir.path];
  const error = await performCommand(args, recorded).catch((error) => error);
  assertEquals([error.message, recorded.events], ["enough", []]);
});
