import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  DURABLE_EXTENTS_FILE,
  hostBootTimeMs,
  PART_FILE_NAME,
  readPartRecord,
  WRITTEN_EXTENTS_FILE,
} from "../../lib/system/part_record.ts";
import { temporaryDir } from "../support/directory.ts";

const SIZE = 1000;
const DIGEST = "sha256:aa";
const NOTE = { size: SIZE, digest: DIGEST, extents: [[10, 20]] };

/** Reads the record of a directory with these files and a part file of `size`. */
async function look(
  files: Record<string, unknown>,
  size: number | undefined = SIZE,
) {
  await using dir = await temporaryDir();
  const part = join(dir.path, PART_FILE_NAME);
  await Deno.writeFile(part, new Uint8Array(size));
  // Old, so that its time is not the record's.
  await Deno.utime(part, 0, 0);
  for (const [name, content] of Object.entries(files)) {
    const text = typeof content === "string"
      ? content
      : JSON.stringify(content);
    await Deno.writeTextFile(join(dir.path, name), text);
  }
  return await readPartRecord(dir.path);
}

/** Returns only the extents of that record. */
const extents = async (...args: Parameters<typeof look>) =>
  (await look(...args))?.extents;

Deno.test("readPartRecord() returns the durable extents, their byte count and the record's modification time", async () => {
  const before = Date.now();
  const { modifiedAt, ...record } = (await look({
    [DURABLE_EXTENTS_FILE]: { ...NOTE, extents: [[0, 1], [10, 20]] },
  }))!;
  assertEquals(record, {
    size: SIZE,
    digest: DIGEST,
    extents: [[0, 1], [10, 20]],
    filled: undefined,
    bytes: 11,
  });
  // File times are coarser than the clock.
  assertEquals(modifiedAt.getTime() > before - 10_000, true);
  assertEquals(await extents({}), undefined);
  const one = { ...NOTE, extents: [[7, 8]] };
  assertEquals(await extents({ [DURABLE_EXTENTS_FILE]: one }), [[7, 8]]);
  const none = { ...NOTE, extents: [] };
  assertEquals(await extents({ [DURABLE_EXTENTS_FILE]: none }), undefined);
});

Deno.test("readPartRecord() rejects a malformed record, and one whose size differs from the part file's", async () => {
  assertEquals(
    await extents({ [DURABLE_EXTENTS_FILE]: NOTE }, SIZE - 1),
    undefined,
  );
  const wrong = [
    { ...NOTE, size: SIZE + 1 },
    { ...NOTE, digest: 7 },
    { ...NOTE, extents: [[10, SIZE + 1]] },
    ...["", "null", "[]", "7", "{"],
  ];
  for (const content of wrong) {
    assertEquals(await extents({ [DURABLE_EXTENTS_FILE]: content }), undefined);
  }
  await using dir = await temporaryDir();
  await Deno.mkdir(join(dir.path, PART_FILE_NAME));
  await Deno.writeTextFile(
    join(dir.path, DURABLE_EXTENTS_FILE),
    JSON.stringify(NOTE),
  );
  assertEquals(await readPartRecord(dir.path), undefined);
});

Deno.test("readPartRecord() rejects a record larger than 1 MiB", async () => {
  const whole = JSON.stringify(NOTE).padEnd(1024 * 1024);
  assertEquals(await extents({ [DURABLE_EXTENTS_FILE]: whole }), [[10, 20]]);
  assertEquals(
    await extents({ [DURABLE_EXTENTS_FILE]: `${whole} ` }),
    undefined,
  );
});

Deno.test("readPartRecord() prefers the written extents over the durable ones, if written since this boot and for the same digest", async () => {
  const { osUptime } = Deno;
  const { now } = Date;
  Date.now = () => 1_000_000_000;
  Deno.osUptime = () => 5000;
  try {
    const booted = 995_000_000;
    assertEquals(hostBootTimeMs(), booted);
    const durable = { ...NOTE, extents: [[0, 5]] };
    const both = (change: object) =>
      extents({
        [DURABLE_EXTENTS_FILE]: durable,
        [WRITTEN_EXTENTS_FILE]: { ...NOTE, booted, ...change },
      });
    assertEquals(await both({}), [[10, 20]]);
    // A clock adjustment moves the boot time slightly.
    for (const ms of [-4999, 4999]) {
      assertEquals(await both({ booted: booted + ms }), [[10, 20]], `${ms}`);
    }
    for (const ms of [-5000, 5000, 1e9, -1e9]) {
      assertEquals(await both({ booted: booted + ms }), [[0, 5]], `${ms}`);
    }
    for (const change of [{ booted: undefined }, { booted: `${booted}` }]) {
      assertEquals(await both(change), [[0, 5]]);
    }
    assertEquals(await both({ digest: "sha256:bb" }), [[0, 5]]);
    const alone = { [WRITTEN_EXTENTS_FILE]: { ...NOTE, booted } };
    assertEquals(await extents(alone), [[10, 20]]);
  } finally {
    Date.now = now;
    Deno.osUptime = osUptime;
  }
});

Deno.test("readPartRecord() counts an external file from its start, up to the expected size", async () => {
  const record = { ...NOTE, filled: "other" };
  const filled = (bytes: number, journal: object = {}) =>
    look({
      other: "x".repeat(bytes),
      [DURABLE_EXTENTS_FILE]: record,
      [WRITTEN_EXTENTS_FILE]: journal,
    });
  for (const bytes of [1, SIZE]) {
    const found = await filled(bytes);
    assertEquals([found?.extents, found?.bytes], [[[0, bytes]], bytes]);
    assertEquals([found?.filled, found?.digest], ["other", DIGEST]);
  }
  for (const bytes of [0, SIZE + 1]) {
    assertEquals(await filled(bytes), undefined);
  }
  // The journal belongs to the part file, not to the external file.
  const journal = { ...NOTE, booted: hostBootTimeMs() };
  assertEquals((await filled(3, journal))?.bytes, 3);
  assertEquals(await look({ [DURABLE_EXTENTS_FILE]: record }), undefined);
  await using dir = await temporaryDir();
  await Deno.writeFile(join(dir.path, PART_FILE_NAME), new Uint8Array(SIZE));
  await Deno.mkdir(join(dir.path, "other"));
  await Deno.writeTextFile(
    join(dir.path, DURABLE_EXTENTS_FILE),
    JSON.stringify(record),
  );
  assertEquals(await readPartRecord(dir.path), undefined);
});
