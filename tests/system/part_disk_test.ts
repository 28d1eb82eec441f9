/**
 * What PartFile writes to the disk, and when.
 */
import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { openPartFile } from "../../lib/system/part_file.ts";
import {
  DURABLE_EXTENTS_FILE,
  PART_FILE_NAME,
  readPartRecord,
  WRITTEN_EXTENTS_FILE,
} from "../../lib/system/part_record.ts";
import { sleep } from "../../lib/system/time.ts";
import { temporaryDir } from "../support/directory.ts";
import { replaceMethod } from "../support/replace_method.ts";

const MIB = 1024 * 1024;
const identity = { size: 10 * MIB, digest: "sha256:aa" };

/** Sorted names in a directory. */
const names = (dir: string) =>
  [...Deno.readDirSync(dir)].map(({ name }) => name).sort();

/** Waits until a record file has these extents. */
async function waitForExtents(path: string, extents: number[][]) {
  const sought = `"extents":${JSON.stringify(extents)}`;
  let text = "";
  while (!text.includes(sought)) {
    await sleep(5);
    text = await Deno.readTextFile(path).catch(() => "");
  }
}

Deno.test("PartWriter.write() writes each piece at its offset, in any order", async () => {
  await using dir = await temporaryDir();
  await using part = await openPartFile(dir.path, { ...identity, size: 20 });
  {
    using writer = await part.openWriter();
    const pieces: [number, number][] = [[1, 1], [11, 3], [8, 3], [14, 2]];
    for (const [at, [position, length]] of pieces.entries()) {
      writer.write(position, new Uint8Array(length).fill(at + 1));
    }
  }
  const bytes = await Deno.readFile(part.path);
  assertEquals([...bytes].join(""), "0100000033322244".padEnd(20, "0"));
  assertEquals(part.missingExtents(), [[0, 1], [2, 8], [16, 20]]);
});

Deno.test("PartFile keeps a durable-extents file for partial content, and none when complete or empty", async () => {
  const left = {
    keep: [PART_FILE_NAME, DURABLE_EXTENTS_FILE],
    nothing: [PART_FILE_NAME],
    clear: [PART_FILE_NAME],
    finish: [PART_FILE_NAME],
  };
  for (const [end, expected] of Object.entries(left)) {
    await using dir = await temporaryDir();
    {
      await using part = await openPartFile(dir.path, identity);
      using writer = await part.openWriter();
      if (end !== "nothing") writer.write(3, new Uint8Array(9));
      if (end === "clear") {
        await part.clear();
        assertEquals(names(dir.path), [PART_FILE_NAME]);
      }
      if (end === "finish") {
        const { size, inode } = await part.markComplete();
        const { ino } = await Deno.stat(part.path);
        assertEquals([size, inode], [identity.size, ino]);
        assertEquals(names(dir.path), [PART_FILE_NAME]);
      }
    }
    assertEquals(names(dir.path), expected, end);
  }
});

Deno.test("PartFile stays readable after a shorter journal entry overwrites a longer one", async () => {
  await using dir = await temporaryDir();
  await using part = await openPartFile(dir.path, identity);
  using writer = await part.openWriter();
  const journal = join(dir.path, WRITTEN_EXTENTS_FILE);
  writer.write(1000, new Uint8Array(10));
  writer.write(2000, new Uint8Array(10));
  await waitForExtents(journal, [[1000, 1010], [2000, 2010]]);
  writer.write(0, new Uint8Array(3000));
  await waitForExtents(journal, [[0, 3000]]);
  assertEquals((await readPartRecord(dir.path))?.extents, [[0, 3000]]);
});

Deno.test("PartFile starts a sync after every 4 MiB written, and not earlier", async () => {
  await using dir = await temporaryDir();
  const record = join(dir.path, DURABLE_EXTENTS_FILE);
  const { syncData } = Deno.FsFile.prototype;
  let syncs = 0;
  using _system = replaceMethod(Deno.FsFile.prototype, {
    syncData(this: Deno.FsFile) {
      syncs++;
      return syncData.call(this);
    },
  });
  await using part = await openPartFile(dir.path, identity);
  using writer = await part.openWriter();
  writer.write(0, new Uint8Array(4 * MIB - 1));
  assertEquals(syncs, 0);
  writer.write(4 * MIB - 1, new Uint8Array(1));
  assertEquals(syncs, 1);
  await waitForExtents(record, [[0, 4 * MIB]]);
  writer.write(4 * MIB, new Uint8Array(MIB));
  assertEquals(syncs, 1);
  writer.write(5 * MIB, new Uint8Array(3 * MIB));
  await waitForExtents(record, [[0, 8 * MIB]]);
  assertEquals(syncs, 2);
});

Deno.test("PartFile runs one sync at a time, and then syncs the bytes written during a slow sync", async () => {
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
    await using part = await openPartFile(dir.path, identity);
    using writer = await part.openWriter();
    for (let at = 0; at < 10; at++) {
      writer.write(at * MIB, new Uint8Array(MIB));
    }
    assertEquals(names(dir.path).includes(DURABLE_EXTENTS_FILE), false);
    slow.resolve();
    await waitForExtents(join(dir.path, DURABLE_EXTENTS_FILE), [[0, 10 * MIB]]);
    assertEquals(most, 1);
  } finally {
    Deno.FsFile.prototype.syncData = syncData;
  }
});

Deno.test("PartFile records no bytes that were written during a sync, because a power loss may lose them", async () => {
  await using dir = await temporaryDir();
  await using part = await openPartFile(dir.path, identity);
  using writer = await part.openWriter();
  const { syncData } = Deno.FsFile.prototype;
  using _system = replaceMethod(Deno.FsFile.prototype, {
    async syncData(this: Deno.FsFile) {
      await syncData.call(this);
      writer.write(4 * MIB, new Uint8Array(1));
    },
  });
  writer.write(0, new Uint8Array(4 * MIB));
  while (!names(dir.path).includes(DURABLE_EXTENTS_FILE)) await sleep(5);
  const record = join(dir.path, DURABLE_EXTENTS_FILE);
  const { extents } = JSON.parse(await Deno.readTextFile(record));
  assertEquals(extents, [[0, 4 * MIB]]);
});

Deno.test("copyFromExternalFile() makes the copied bytes durable, up to the expected size", async () => {
  await using dir = await temporaryDir();
  const [other, record] = [
    join(dir.path, "other"),
    join(dir.path, DURABLE_EXTENTS_FILE),
  ];
  await using part = await openPartFile(dir.path, identity);
  await Deno.mkdir(other);
  await part.copyFromExternalFile(other);
  await part.copyFromExternalFile(join(dir.path, "none"));
  assertEquals([part.presentBytes, names(dir.path)], [0, [
    PART_FILE_NAME,
    "other",
  ]]);
  await Deno.remove(other);
  await Deno.writeFile(other, new Uint8Array(identity.size).fill(9));
  await part.copyFromExternalFile(other);
  const { extents } = JSON.parse(await Deno.readTextFile(record));
  assertEquals([extents, part.missingExtents()], [[[0, identity.size]], []]);
  assertEquals((await Deno.readFile(part.path)).at(-1), 9);
});

Deno.test("PartFile throws in the next write and in markComplete() when the durable-extents file cannot be written", async () => {
  const dir = await temporaryDir();
  await using part = await openPartFile(dir.path, identity);
  using writer = await part.openWriter();
  writer.write(0, new Uint8Array(1));
  await dir[Symbol.asyncDispose]();
  writer.write(0, new Uint8Array(5 * MIB));
  await assertRejects(() => part.markComplete(), Deno.errors.NotFound);
  const write = () => writer.write(0, new Uint8Array(1));
  assertThrows(write, Deno.errors.NotFound);
});

Deno.test("PartFile writes no journal when the boot time is unknown", async () => {
  await using dir = await temporaryDir();
  const { permissions } = Deno;
  const { querySync } = permissions;
  permissions.querySync = (descriptor) =>
    ({
      ...querySync.call(permissions, descriptor),
      state: "denied",
    }) as Deno.PermissionStatus;
  try {
    await using part = await openPartFile(dir.path, identity);
    using writer = await part.openWriter();
    writer.write(0, new Uint8Array(9));
    assertEquals(names(dir.path), [PART_FILE_NAME]);
  } finally {
    permissions.querySync = querySync;
  }
  assertEquals(names(dir.path), [PART_FILE_NAME, DURABLE_EXTENTS_FILE]);
});

Deno.test("PartFile.clear() forgets a failed sync, because it discards the bytes", async () => {
  await using dir = await temporaryDir();
  await using part = await openPartFile(dir.path, identity);
  using writer = await part.openWriter();
  {
    const syncData = () => Promise.reject(new Error("disk full"));
    using _full = replaceMethod(Deno.FsFile.prototype, { syncData });
    writer.write(0, new Uint8Array(5 * MIB));
    await assertRejects(() => part.markComplete(), Error, "disk full");
  }
  await part.clear();
  writer.write(0, new Uint8Array(5 * MIB));
  await part.markComplete();
});
