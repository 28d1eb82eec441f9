import { assertEquals, assertRejects } from "@std/assert";
import { tryReflinkFile } from "../../lib/hydrate/_copy_local_image.ts";
import { temporaryDir } from "../support/directory.ts";

// The tests of hydrate() mount filesystems with reflinks.

Deno.test({
  name:
    "tryReflinkFile() returns false and creates no file without reflinks or across filesystems",
  ignore: Deno.build.os !== "linux",
  async fn() {
    await using dir = await temporaryDir();
    const memory = await Deno.makeTempDir({ dir: "/dev/shm" });
    try {
      const [original, copy] = [`${memory}/original`, `${memory}/copy`];
      await Deno.writeTextFile(original, "x");
      // A tmpfs has no reflinks, and two filesystems share no blocks.
      for (const to of [copy, `${dir.path}/copy`]) {
        assertEquals(await tryReflinkFile(original, to), false);
        await assertRejects(() => Deno.lstat(to), Deno.errors.NotFound);
      }
      const gone = () => tryReflinkFile(`${memory}/none`, copy);
      await assertRejects(gone, Deno.errors.NotFound);
    } finally {
      await Deno.remove(memory, { recursive: true });
    }
  },
});
