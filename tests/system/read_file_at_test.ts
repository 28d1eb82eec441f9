import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { readFileAt } from "../../lib/system/files.ts";
import { temporaryDir } from "../support/directory.ts";

Deno.test("readFileAt() returns no bytes beyond the end of the file", async () => {
  await using dir = await temporaryDir();
  const path = join(dir.path, "file");
  await Deno.writeTextFile(path, "abc");
  using file = await Deno.open(path);
  const lengths = [];
  for (const offset of [0, 2, 3, 2 ** 45, 2 ** 52]) {
    lengths.push((await readFileAt(file, offset, 10)).byteLength);
  }
  assertEquals(lengths, [3, 1, 0, 0, 0]);
});

Deno.test("readFileAt() continues after short reads", async () => {
  const bytes = new TextEncoder().encode("0123456789");
  let at = 0;
  const file = {
    stat: () => Promise.resolve({ size: bytes.length }),
    seek: (offset: number) => Promise.resolve(at = offset),
    read(into: Uint8Array) {
      const part = bytes.subarray(at, at + Math.min(3, into.length));
      into.set(part);
      at += part.length;
      return Promise.resolve(part.length || null);
    },
  } as unknown as Deno.FsFile;
  const read = async (offset: number, length: number) =>
    new TextDecoder().decode(await readFileAt(file, offset, length));
  assertEquals(await read(2, 7), "2345678");
  assertEquals(await read(2, 80), "23456789");
  assertEquals(await read(20, 5), "");
});
