import { assertEquals, assertRejects } from "@std/assert";
import { cloneFile } from "../../lib/system/clone.ts";
import { temporaryDir } from "../support/directory.ts";

// Filesystems that share blocks are mounted by the tests of hydrate().

Deno.test({
  name: "where no blocks can be shared nothing is made, and that is told",
  ignore: Deno.build.os !== "linux",
  async fn() {
    await using dir = await temporaryDir();
    const memory = await Deno.makeTempDir({ dir: "/dev/shm" });
    try {
      const [original, copy] = [`${memory}/original`, `${memory}/copy`];
      await Deno.writeTextFile(original, "x");
      // A tmpfs shares none, and two filesystems never do.
      for (const to of [copy, `${dir.path}/copy`]) {
        assertEquals(await cloneFile(original, to), false);
        await assertRejects(() => Deno.lstat(to), Deno.errors.NotFound);
      }
      const gone = () => cloneFile(`${memory}/none`, copy);
      await assertRejects(gone, Deno.errors.NotFound);
    } finally {
      await Deno.remove(memory, { recursive: true });
    }
  },
});
