import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { readAt } from "../../lib/image/_header.ts";
import { temporaryDir } from "../support/directory.ts";

Deno.test("beyond a file's end there is nothing, however far", async () => {
  await using dir = await temporaryDir();
  const path = join(dir.path, "file");
  await Deno.writeTextFile(path, "abc");
  using file = await Deno.open(path);
  const lengths = [];
  for (const offset of [0, 2, 3, 2 ** 45, 2 ** 52]) {
    lengths.push((await readAt(file, offset, 10)).byteLength);
  }
  assertEquals(lengths, [3, 1, 0, 0, 0]);
});
