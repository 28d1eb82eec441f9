import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  bootTime,
  PART,
  PART_JOURNAL,
  PART_RECORD,
  type PartRecord,
  readPartRecord,
} from "../../lib/system/part_record.ts";
import { temporaryDir } from "../support/directory.ts";

const SIZE = 1000;
const DIGEST = "sha256:aa";
const NOTE = { size: SIZE, digest: DIGEST, extents: [[10, 20]] };

/** Looks at a directory with such files; no part file is one of another size. */
async function look(
  files: Record<string, unknown>,
  size: number | undefined = SIZE,
): Promise<PartRecord | undefined> {
  await using dir = await temporaryDir();
  await Deno.writeFile(join(dir.path, PART), new Uint8Array(size));
  for (const [name, content] of Object.entries(files)) {
    const text = typeof content === "string"
      ? content
      : JSON.stringify(content);
    await Deno.writeTextFile(join(dir.path, name), text);
  }
  return await readPartRecord(dir.path);
}

/** The same, of which only what is there counts. */
const extents = async (...args: Parameters<typeof look>) =>
  (await look(...args))?.extents;

Deno.test("a record says what is durable, how much that is, and when it came", async () => {
  const before = Date.now();
  const { used, ...record } = (await look({
    [PART_RECORD]: { ...NOTE, extents: [[0, 1], [10, 20]] },
  }))!;
  assertEquals(record, {
    size: SIZE,
    digest: DIGEST,
    extents: [[0, 1], [10, 20]],
    bytes: 11,
  });
  // Times of files are coarser than those of clocks.
  assertEquals(used.getTime() > before - 10_000, true);
  assertEquals(await extents({}), undefined);
  const one = { ...NOTE, extents: [[7, 8]] };
  assertEquals(await extents({ [PART_RECORD]: one }), [[7, 8]]);
  const none = { ...NOTE, extents: [] };
  assertEquals(await extents({ [PART_RECORD]: none }), undefined);
});

Deno.test("a record is not read that is of another size than its file, or no record at all", async () => {
  assertEquals(await extents({ [PART_RECORD]: NOTE }, SIZE - 1), undefined);
  const wrong = [
    { ...NOTE, size: SIZE + 1 },
    { ...NOTE, digest: 7 },
    { ...NOTE, extents: [[10, SIZE + 1]] },
    ...["", "null", "[]", "7", "{"],
  ];
  for (const content of wrong) {
    assertEquals(await extents({ [PART_RECORD]: content }), undefined);
  }
  await using dir = await temporaryDir();
  await Deno.mkdir(join(dir.path, PART));
  await Deno.writeTextFile(join(dir.path, PART_RECORD), JSON.stringify(NOTE));
  assertEquals(await readPartRecord(dir.path), undefined);
});

Deno.test("a record of more than 1 MiB is not read, whatever is in it", async () => {
  // What stands behind the first line is the rest of an older one.
  const line = `${JSON.stringify(NOTE)}\n`;
  const whole = line.padEnd(1024 * 1024, "x");
  assertEquals(await extents({ [PART_RECORD]: whole }), [[10, 20]]);
  assertEquals(await extents({ [PART_RECORD]: `${whole}x` }), undefined);
});

Deno.test("what is written counts on top of what is durable, if it is of this boot and of the same image", async () => {
  const { osUptime } = Deno;
  const { now } = Date;
  Date.now = () => 1_000_000_000;
  Deno.osUptime = () => 5000;
  try {
    const booted = 995_000_000;
    assertEquals(bootTime(), booted);
    const durable = { ...NOTE, extents: [[0, 5]] };
    const both = (change: object) =>
      extents({
        [PART_RECORD]: durable,
        [PART_JOURNAL]: { ...NOTE, booted, ...change },
      });
    assertEquals(await both({}), [[10, 20]]);
    // A clock that is set meanwhile moves the boot by a little.
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
    const alone = { [PART_JOURNAL]: { ...NOTE, booted } };
    assertEquals(await extents(alone), [[10, 20]]);
  } finally {
    Date.now = now;
    Deno.osUptime = osUptime;
  }
});

Deno.test("a file that a program fills counts from its start, up to the size of the whole", async () => {
  const record = { ...NOTE, filled: "other" };
  const filled = (bytes: number, journal: object = {}) =>
    look({
      other: "x".repeat(bytes),
      [PART_RECORD]: record,
      [PART_JOURNAL]: journal,
    });
  for (const bytes of [1, SIZE]) {
    const found = await filled(bytes);
    assertEquals([found?.extents, found?.bytes], [[[0, bytes]], bytes]);
    assertEquals([found?.filled, found?.digest], ["other", DIGEST]);
  }
  assertEquals(await filled(SIZE + 1), undefined);
  // What was written before it is in another file.
  const journal = { ...NOTE, booted: bootTime() };
  assertEquals((await filled(3, journal))?.bytes, 3);
  assertEquals(await look({ [PART_RECORD]: record }), undefined);
  await using dir = await temporaryDir();
  await Deno.writeFile(join(dir.path, PART), new Uint8Array(SIZE));
  await Deno.mkdir(join(dir.path, "other"));
  await Deno.writeTextFile(join(dir.path, PART_RECORD), JSON.stringify(record));
  assertEquals(await readPartRecord(dir.path), undefined);
});
