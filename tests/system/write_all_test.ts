import { assertEquals } from "@std/assert";
import { writeAll, writeAllSync } from "../../lib/system/write_all.ts";

Deno.test("writeAll() and writeAllSync() repeat partial writes until all bytes are written", async () => {
  const taken: number[][] = [];
  const write = (bytes: Uint8Array) => {
    taken.push([...bytes]);
    return Math.min(bytes.length, 2) || 1;
  };
  const bytes = new Uint8Array([1, 2, 3]);
  await writeAll({ write: (bytes) => Promise.resolve(write(bytes)) }, bytes);
  writeAllSync({ writeSync: write }, bytes);
  assertEquals(taken, [[1, 2, 3], [3], [1, 2, 3], [3]]);
});
