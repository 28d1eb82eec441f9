/**
 * What a part file leaves on the disk, and when.
 */
import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { openPart } from "../../lib/system/part_file.ts";
import {
  PART,
  PART_JOURNAL,
  PART_RECORD,
  readPartRecord,
} from "../../lib/system/part_record.ts";
import { sleep } from "../../lib/system/time.ts";
import { temporaryDir } from "../support/directory.ts";

const MIB = 1024 * 1024;
const identity = { size: 10 * MIB, digest: "sha256:aa" };

/** What lies in a directory. */
const names = (dir: string) =>
  [...Deno.readDirSync(dir)].map(({ name }) => name).sort();

/** Waits until a record has these extents. */
async function noted(path: string, extents: number[][]) {
  for (let tries = 0; tries < 250; tries++) {
    const text = await Deno.readTextFile(path).catch(() => "");
    const [line] = text.split("\n");
    if (line.includes(`"extents":${JSON.stringify(extents)}`)) return;
    await sleep(20);
  }
  throw new Error(`${await Deno.readTextFile(path)} after 5 s`);
}

Deno.test("pieces of one writer lie where they belong, in whatever order they come", async () => {
  await using dir = await temporaryDir();
  await using part = await openPart(dir.path, { ...identity, size: 20 });
  {
    using writer = await part.openWriter();
    const pieces: [number, number][] = [[1, 1], [11, 3], [8, 3], [14, 2]];
    for (const [at, [position, length]] of pieces.entries()) {
      writer.write(position, new Uint8Array(length).fill(at + 1));
    }
  }
  const bytes = await Deno.readFile(part.path);
  assertEquals([...bytes].join(""), "0100000033322244".padEnd(20, "0"));
  assertEquals(part.gaps(), [[0, 1], [2, 8], [16, 20]]);
});

Deno.test("a part file leaves its record where something is there, and nothing beside it where it is whole or empty", async () => {
  const left = {
    keep: [PART, PART_RECORD],
    nothing: [PART],
    clear: [PART],
    finish: [PART],
  };
  for (const [end, expected] of Object.entries(left)) {
    await using dir = await temporaryDir();
    {
      await using part = await openPart(dir.path, identity);
      using writer = await part.openWriter();
      if (end !== "nothing") writer.write(3, new Uint8Array(9));
      if (end === "clear") {
        await part.clear();
        assertEquals(names(dir.path), [PART]);
      }
      if (end === "finish") {
        const { size, inode } = await part.finish();
        const { ino } = await Deno.stat(part.path);
        assertEquals([size, inode], [identity.size, ino]);
        assertEquals(names(dir.path), [PART]);
      }
    }
    assertEquals(names(dir.path), expected, end);
  }
});

Deno.test("what is written is noted as it is, also where the note becomes shorter", async () => {
  await using dir = await temporaryDir();
  await using part = await openPart(dir.path, identity);
  using writer = await part.openWriter();
  const journal = join(dir.path, PART_JOURNAL);
  writer.write(1000, new Uint8Array(10));
  writer.write(2000, new Uint8Array(10));
  await noted(journal, [[1000, 1010], [2000, 2010]]);
  writer.write(0, new Uint8Array(3000));
  await noted(journal, [[0, 3000]]);
  assertEquals((await readPartRecord(dir.path))?.extents, [[0, 3000]]);
});

Deno.test("what comes is synced at every 4 MiB, and not before", async () => {
  await using dir = await temporaryDir();
  const record = join(dir.path, PART_RECORD);
  await using part = await openPart(dir.path, identity);
  using writer = await part.openWriter();
  writer.write(0, new Uint8Array(4 * MIB - 1));
  await sleep(100);
  assertEquals(names(dir.path).includes(PART_RECORD), false);
  writer.write(4 * MIB - 1, new Uint8Array(1));
  await noted(record, [[0, 4 * MIB]]);
  writer.write(4 * MIB, new Uint8Array(MIB));
  await sleep(100);
  await noted(record, [[0, 4 * MIB]]);
  writer.write(5 * MIB, new Uint8Array(3 * MIB));
  await noted(record, [[0, 8 * MIB]]);
});

Deno.test("what comes while a slow disk syncs is synced next, and nothing twice at once", async () => {
  await using dir = await temporaryDir();
  const { syncData } = Deno.FsFile.prototype;
  const slow = Promise.withResolvers<void>();
  let [busy, most] = [0, 0];
  Deno.FsFile.prototype.syncData = async function () {
    most = Math.max(most, ++busy);
    await slow.promise;
    await syncData.call(this);
    busy--;
  };
  try {
    await using part = await openPart(dir.path, identity);
    using writer = await part.openWriter();
    for (let at = 0; at < 10; at++) {
      writer.write(at * MIB, new Uint8Array(MIB));
    }
    assertEquals(names(dir.path).includes(PART_RECORD), false);
    slow.resolve();
    await noted(join(dir.path, PART_RECORD), [[0, 10 * MIB]]);
    assertEquals(most, 1);
  } finally {
    Deno.FsFile.prototype.syncData = syncData;
  }
});

Deno.test("what is adopted is durable at once, up to the size of the whole", async () => {
  await using dir = await temporaryDir();
  const [other, record] = [
    join(dir.path, "other"),
    join(dir.path, PART_RECORD),
  ];
  await using part = await openPart(dir.path, identity);
  await Deno.mkdir(other);
  await part.adopt(other);
  await part.adopt(join(dir.path, "none"));
  assertEquals([part.bytes, names(dir.path)], [0, [PART, "other"]]);
  await Deno.remove(other);
  await Deno.writeFile(other, new Uint8Array(identity.size).fill(9));
  await part.adopt(other);
  const { extents } = JSON.parse(await Deno.readTextFile(record));
  assertEquals([extents, part.gaps()], [[[0, identity.size]], []]);
  assertEquals((await Deno.readFile(part.path)).at(-1), 9);
});

Deno.test("a disk that takes no record fails the next write, and the end", async () => {
  const dir = await temporaryDir();
  await using part = await openPart(dir.path, identity);
  using writer = await part.openWriter();
  writer.write(0, new Uint8Array(1));
  await dir[Symbol.asyncDispose]();
  writer.write(0, new Uint8Array(5 * MIB));
  await assertRejects(() => part.finish(), Deno.errors.NotFound);
  const write = () => writer.write(0, new Uint8Array(1));
  assertThrows(write, Deno.errors.NotFound);
});

Deno.test("where the time of the boot is not to be known, nothing is noted of it", async () => {
  await using dir = await temporaryDir();
  const { permissions } = Deno;
  const { querySync } = permissions;
  permissions.querySync = (descriptor) =>
    ({
      ...querySync.call(permissions, descriptor),
      state: "denied",
    }) as Deno.PermissionStatus;
  try {
    await using part = await openPart(dir.path, identity);
    using writer = await part.openWriter();
    writer.write(0, new Uint8Array(9));
    await sleep(50);
    assertEquals(names(dir.path), [PART]);
  } finally {
    permissions.querySync = querySync;
  }
  assertEquals(names(dir.path), [PART, PART_RECORD]);
});
