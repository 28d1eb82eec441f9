import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import fc from "fast-check";
import { writeSparse } from "../../lib/hydrate/_copy_local_image.ts";
import { temporaryDir } from "../support/directory.ts";

const BLOCK = 64 * 1024;

Deno.test("writeSparse() preserves the content, wherever the zeros are", async () => {
  await using dir = await temporaryDir();
  const path = join(dir.path, "file");
  const run = fc.tuple(
    fc.constantFrom(0, 0, 7),
    fc.constantFrom(1, 9, BLOCK - 1, BLOCK, 3 * BLOCK),
  );
  const chunk = fc.array(run, { maxLength: 4 });
  await fc.assert(
    fc.asyncProperty(fc.array(chunk, { maxLength: 4 }), async (chunks) => {
      const written: Uint8Array<ArrayBuffer>[] = chunks.map((runs) => {
        const parts = runs.map(([value, size]) =>
          new Uint8Array(size).fill(value)
        );
        return new Uint8Array(parts.flatMap((part) => [...part]));
      });
      {
        using file = await Deno.create(path);
        for (const bytes of written) await writeSparse(file, bytes);
        await file.truncate(
          written.reduce((sum, { length }) => sum + length, 0),
        );
      }
      const all = new Uint8Array(written.flatMap((bytes) => [...bytes]));
      assertEquals(await Deno.readFile(path), all);
    }),
    { numRuns: 30 },
  );
});

Deno.test("writeSparse() finds a non-zero byte at any offset and buffer alignment", async () => {
  await using dir = await temporaryDir();
  const path = join(dir.path, "file");
  for (let start = 0; start < 5; start++) {
    for (const at of [0, 3, 4, BLOCK - 2, BLOCK - 1, BLOCK, BLOCK + 5]) {
      const bytes = new Uint8Array(start + BLOCK + 6).subarray(start);
      bytes[at] = 9;
      {
        using file = await Deno.create(path);
        await writeSparse(file, bytes);
        await file.truncate(bytes.length);
      }
      const read = await Deno.readFile(path);
      assertEquals([read.length, read.indexOf(9)], [bytes.length, at]);
      assertEquals(read.lastIndexOf(9), at);
    }
  }
});

Deno.test({
  name: "writeSparse() allocates no disk blocks for zeros",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    const path = join(dir.path, "file");
    const bytes = new Uint8Array(64 * BLOCK);
    bytes[10 * BLOCK + 5] = 1;
    using file = await Deno.create(path);
    await writeSparse(file, bytes);
    await file.truncate(bytes.length);
    const { size, blocks } = await Deno.stat(path);
    assertEquals(size, bytes.length);
    assert(blocks! * 512 <= 4 * BLOCK, `${blocks} blocks`);
  },
});
