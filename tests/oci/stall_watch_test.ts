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
      {
        what: "pull",
        stallMs: NEVER_MS,
        onBytes(bytes) {
          counts.push(bytes);
          reached(bytes);
        },
      },
    );
    const some = until(7);
    await Deno.mkdir(`${target}/dist`, { recursive: true });
    await Deno.writeTextFile(`${target}/dist/a`, "1234567");
    await some;
    const more = until(10);
    await Deno.writeTextFile(`${target}/b`, "123");
    await more;
    assert(!growth.signal.aborted);
  }
  assertEquals(counts, [...new Set(counts)]);
});

Deno.test("a directory that does not grow is reported as stalled", async () => {
  await using dir = await temporaryDir();
  await Deno.writeTextFile(`${dir.path}/a`, "partial");
  for (const path of [dir.path, `${dir.path}/none`]) {
    const begun = performance.now();
    await using growth = watchGrowth(() => directoryBytes(path), {
      what: "pull x",
      stallMs: 250,
    });
    await new Promise((done) =>
      growth.signal.addEventListener("abort", done, { once: true })
    );
    assert(performance.now() - begun >= 250);
    const { code, message } = growth.signal.reason;
    assertEquals(code, "transfer_stalled");
    assertEquals(message, "Cannot pull x: nothing moved for 0.25 s");
  }
});

Deno.test("slow growth is no stall", async () => {
  await using dir = await temporaryDir();
  let seen = 0;
  const begun = Date.now();
  await using growth = watchGrowth(
    () => directoryBytes(dir.path),
    { what: "pull", stallMs: 2000, onBytes: () => seen++ },
  );
  // Longer than the limit as a whole, far shorter between two bytes.
  while (Date.now() - begun < 2600) {
    await Deno.writeTextFile(`${dir.path}/a`, "x", { append: true });
    await new Promise((done) => setTimeout(done, 100));
  }
  assert(!growth.signal.aborted);
  assert(seen > 1);
});

Deno.test("a directory that grows beyond its limit is reported while it grows", async () => {
  await using dir = await temporaryDir();
  const counts: number[] = [];
  await using growth = watchGrowth(() => directoryBytes(dir.path), {
    what: "pull x",
    stallMs: NEVER_MS,
    maxBytes: 10,
    onBytes: (bytes) => counts.push(bytes),
  });
  await Deno.writeTextFile(`${dir.path}/a`, "0123456789");
  await growth.look();
  assert(!growth.signal.aborted);
  await Deno.writeTextFile(`${dir.path}/b`, "x");
  await new Promise((done) =>
    growth.signal.addEventListener("abort", done, { once: true })
  );
  assertEquals(growth.signal.reason.code, "artifact_unsafe");
  assertEquals(counts, [10]);
});
