import { assert, assertEquals } from "@std/assert";
import { directoryBytes, watchGrowth } from "../../lib/oci/_stall_watch.ts";
import { temporaryDir } from "../support/directory.ts";

const NEVER_MS = 600_000;

Deno.test("bytes are counted as they come, in sub-directories too", async () => {
  await using dir = await temporaryDir();
  const target = `${dir.path}/target`;
  const counts: number[] = [];
  let reached = (_bytes: number) => {};
  const until = (bytes: number) =>
    new Promise<void>((done) => reached = (now) => now === bytes && done());
  {
    await using growth = watchGrowth(
      () => directoryBytes(target),
      NEVER_MS,
      (bytes) => {
        counts.push(bytes);
        reached(bytes);
      },
    );
    const some = until(7);
    await Deno.mkdir(`${target}/dist`, { recursive: true });
    await Deno.writeTextFile(`${target}/dist/a`, "1234567");
    await some;
    const more = until(10);
    await Deno.writeTextFile(`${target}/b`, "123");
    await more;
    assert(!growth.stalled.aborted);
  }
  assertEquals(counts, [...new Set(counts)]);
});

Deno.test("a directory that does not grow is told as stalled", async () => {
  await using dir = await temporaryDir();
  await Deno.writeTextFile(`${dir.path}/a`, "partial");
  for (const path of [dir.path, `${dir.path}/none`]) {
    await using growth = watchGrowth(() => directoryBytes(path), 250);
    await new Promise((done) =>
      growth.stalled.addEventListener("abort", done, { once: true })
    );
  }
});

Deno.test("slow growth is no stall", async () => {
  await using dir = await temporaryDir();
  let seen = 0;
  const begun = Date.now();
  await using growth = watchGrowth(
    () => directoryBytes(dir.path),
    2000,
    () => seen++,
  );
  // Longer than the limit as a whole, far shorter between two bytes.
  while (Date.now() - begun < 2600) {
    await Deno.writeTextFile(`${dir.path}/a`, "x", { append: true });
    await new Promise((done) => setTimeout(done, 100));
  }
  assert(!growth.stalled.aborted);
  assert(seen > 1);
});
