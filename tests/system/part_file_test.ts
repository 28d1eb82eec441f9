import { assert, assertEquals, assertRejects } from "@std/assert";
import { dirname, join } from "@std/path";
import { sha256OfChunks } from "../../lib/system/digest.ts";
import { openPartFile } from "../../lib/system/part_file.ts";
import {
  DURABLE_EXTENTS_FILE,
  PART_FILE_NAME,
  readPartRecord,
  WRITTEN_EXTENTS_FILE,
} from "../../lib/system/part_record.ts";
import { sleep } from "../../lib/system/time.ts";
import { hashPartFileWhileFilling } from "../../lib/transfer/file_digest.ts";
import { temporaryDir } from "../support/directory.ts";
import { replaceMethod } from "../support/replace_method.ts";

const MIB = 1024 * 1024;
const identity = { size: 10 * MIB, digest: "sha256:aa" };
const ENGINES = ["std", "runtime"] as const;

Deno.test("openPartFile() resumes the bytes that an earlier process wrote", async () => {
  await using dir = await temporaryDir();
  {
    await using part = await openPartFile(dir.path, identity);
    assertEquals(part.presentBytes, 0);
    using writer = await part.openWriter();
    writer.write(5 * MIB, new Uint8Array(MIB).fill(5));
    writer.write(0, new Uint8Array(3).fill(1));
  }
  await using part = await openPartFile(dir.path, identity);
  assertEquals(part.presentBytes, MIB + 3);
  assertEquals(part.missingExtents(), [[3, 5 * MIB], [6 * MIB, 10 * MIB]]);
  assertEquals(part.missingExtents([0, 4]), [[3, 4]]);
  const bytes = await Deno.readFile(part.path);
  assertEquals([bytes[0], bytes[3], bytes[5 * MIB]], [1, 0, 5]);
});

Deno.test("PartFile records synced bytes while open, so that they survive a power loss", async () => {
  await using dir = await temporaryDir();
  const part = await openPartFile(dir.path, identity);
  using writer = await part.openWriter();
  writer.write(0, new Uint8Array(6 * MIB));
  // The file stays open; after a reboot only the record counts.
  const durable = () =>
    Deno.readTextFile(join(dir.path, DURABLE_EXTENTS_FILE)).catch(() =>
      undefined
    );
  while (!await durable()) await new Promise((done) => setTimeout(done, 5));
  assertEquals(JSON.parse((await durable())!).extents, [[0, 6 * MIB]]);
  await part[Symbol.asyncDispose]();
});

Deno.test("openPartFile() discards a part file of another image, another size or an older version", async (t) => {
  const cases: [string, (record: Record<string, unknown>) => unknown][] = [
    ["another digest", (record) => ({ ...record, digest: "sha256:bb" })],
    ["another size", (record) => ({ ...record, size: 9 * MIB })],
    ["no extents", ({ size, digest }) => ({ size, digest })],
    ["bytes beyond the end", (record) => ({
      ...record,
      extents: [[0, 11 * MIB]],
    })],
    ["a string instead of an object", () => "x"],
    ["null instead of an object", () => null],
  ];
  for (const [name, change] of cases) {
    await t.step(`openPartFile() discards a record with ${name}`, async () => {
      await using dir = await temporaryDir();
      {
        await using part = await openPartFile(dir.path, identity);
        using writer = await part.openWriter();
        writer.write(0, new Uint8Array(9).fill(7));
      }
      const path = join(dir.path, DURABLE_EXTENTS_FILE);
      const record = JSON.parse(await Deno.readTextFile(path));
      await Deno.writeTextFile(path, JSON.stringify(change(record)));
      await using part = await openPartFile(dir.path, identity);
      assertEquals([part.presentBytes, part.missingExtents()], [0, [[
        0,
        10 * MIB,
      ]]]);
      assertEquals((await Deno.readFile(part.path))[0], 0);
    });
  }
});

Deno.test("hashPartFileWhileFilling() hashes in order while bytes arrive out of order", async () => {
  await using dir = await temporaryDir();
  const step = 2 * MIB;
  const size = 3 * step;
  for (const engine of ENGINES) {
    await using part = await openPartFile(dir.path, { size, digest: engine }, {
      engine,
    });
    using writer = await part.openWriter();
    const pieces = [1, 2, 3].map((fill) => new Uint8Array(step).fill(fill));
    const computed = hashPartFileWhileFilling(part, undefined, async () => {
      for (const at of [2, 1, 0]) {
        writer.write(at * step, pieces[at]);
        await sleep(1);
      }
    });
    const whole = new Blob(pieces).stream();
    assertEquals(await computed, await sha256OfChunks(whole));
    await part.markComplete();
  }
});

Deno.test("hashPartFileWhileFilling() stops waiting when its signal is aborted", async () => {
  await using dir = await temporaryDir();
  for (const engine of ENGINES) {
    await using part = await openPartFile(dir.path, identity, { engine });
    const stop = new AbortController();
    const { signal } = stop;
    const computed = hashPartFileWhileFilling(part, signal, async () => {});
    stop.abort(new Error("enough"));
    await assertRejects(() => computed, Error, "enough");
  }
});

Deno.test("openPartFile() does not resume a part file after clear() or markComplete()", async () => {
  await using dir = await temporaryDir();
  for (const end of ["clear", "markComplete"] as const) {
    {
      await using part = await openPartFile(dir.path, identity);
      using writer = await part.openWriter();
      writer.write(0, new Uint8Array(9).fill(7));
      await part[end]();
      if (end === "clear") {
        assertEquals(part.presentBytes, 0);
      }
    }
    assertEquals(await readPartRecord(dir.path), undefined);
  }
});

Deno.test("openPartFile() copies the bytes that an external program wrote before the process died", async () => {
  await using dir = await temporaryDir();
  const filled = join(dir.path, "pull", "image.qcow2");
  await Deno.mkdir(join(dir.path, "pull"));
  {
    await using part = await openPartFile(dir.path, identity);
    await part.recordExternalFile(filled);
    await Deno.writeFile(filled, new Uint8Array(5000).fill(3));
  }
  await using part = await openPartFile(dir.path, identity);
  assertEquals([part.presentBytes, part.missingExtents()], [5000, [[
    5000,
    10 * MIB,
  ]]]);
  assertEquals((await Deno.readFile(part.path)).length, 10 * MIB);
  // A file larger than expected is ignored.
  await part.clear();
  await Deno.writeFile(filled, new Uint8Array(11 * MIB));
  await part.copyFromExternalFile(filled);
  assertEquals(part.presentBytes, 0);
});

Deno.test("readPartRecord() keeps unsynced bytes of a killed process until the next boot, and durable bytes after it", async () => {
  await using dir = await temporaryDir();
  const part = await openPartFile(dir.path, identity);
  using writer = await part.openWriter();
  // Too few bytes for a background sync.
  writer.write(7, new Uint8Array(1000));
  const journal = join(dir.path, WRITTEN_EXTENTS_FILE);
  const text = await Deno.readTextFile(journal);
  const extents = async () => (await readPartRecord(dir.path))?.extents;
  assertEquals(await extents(), [[7, 1007]]);
  // An older attempt was not killed.
  const durable = join(dir.path, DURABLE_EXTENTS_FILE);
  await Deno.writeTextFile(durable, text);
  await Deno.utime(durable, 0, 0);
  const { modifiedAt } = (await readPartRecord(dir.path))!;
  assertEquals(modifiedAt, (await Deno.stat(journal)).mtime);
  await Deno.remove(durable);
  const note = JSON.parse(text);
  note.booted -= 3_600_000;
  await Deno.writeTextFile(journal, JSON.stringify(note));
  assertEquals(await extents(), undefined);
  await part[Symbol.asyncDispose]();
  assertEquals(await extents(), [[7, 1007]]);
  await Deno.writeTextFile(journal, text.replace("1007", "9999"));
  assertEquals(await extents(), [[7, 9999]]);
  await Deno.writeTextFile(journal, JSON.stringify(note));
  assertEquals(await extents(), [[7, 1007]]);
});

Deno.test("openPartFile() removes symbolic links in place of its files, and resumes from the remaining files", async () => {
  for (
    const name of [
      PART_FILE_NAME,
      DURABLE_EXTENTS_FILE,
      WRITTEN_EXTENTS_FILE,
      `${DURABLE_EXTENTS_FILE}.new`,
    ]
  ) {
    await using dir = await temporaryDir();
    await using elsewhere = await temporaryDir();
    const victim = join(elsewhere.path, "victim");
    await Deno.writeTextFile(victim, "mine");
    {
      await using part = await openPartFile(dir.path, identity);
      using writer = await part.openWriter();
      writer.write(0, new Uint8Array(9));
    }
    const path = join(dir.path, name);
    await Deno.remove(path).catch(() => {});
    await Deno.symlink(victim, path);
    {
      await using part = await openPartFile(dir.path, identity);
      const isLost = name === PART_FILE_NAME || name === DURABLE_EXTENTS_FILE;
      assertEquals(part.presentBytes, isLost ? 0 : 9, name);
      using writer = await part.openWriter();
      writer.write(0, new Uint8Array(5 * MIB));
    }
    assertEquals((await readPartRecord(dir.path))?.bytes, 5 * MIB, name);
    assertEquals(await Deno.readTextFile(victim), "mine", name);
  }
});

Deno.test("readPartRecord() ignores an external file outside of the directory", async () => {
  await using dir = await temporaryDir();
  await using elsewhere = await temporaryDir();
  const victim = join(elsewhere.path, "victim");
  await Deno.writeTextFile(victim, "mine");
  await Deno.symlink(dirname(victim), join(dir.path, "link"));
  await Deno.symlink(victim, join(dir.path, "file"));
  await (await openPartFile(dir.path, identity))[Symbol.asyncDispose]();
  const read = async (filled: string) => {
    const text = JSON.stringify({ ...identity, extents: [], filled });
    await Deno.writeTextFile(join(dir.path, DURABLE_EXTENTS_FILE), text);
    return (await readPartRecord(dir.path))?.bytes;
  };
  await Deno.writeTextFile(join(dir.path, "own"), "own");
  assertEquals(await read("own"), 3);
  const up = join("..", elsewhere.path.slice(dirname(dir.path).length));
  for (const filled of ["link/victim", "file", join(up, "victim")]) {
    assertEquals(await read(filled), undefined, filled);
  }
});

Deno.test("PartFile with many extents writes a journal in proportion to the data, which never promises more", async () => {
  await using dir = await temporaryDir();
  const size = 64 * MIB;
  await using part = await openPartFile(dir.path, { ...identity, size });
  using writer = await part.openWriter();
  const { writeSync } = Deno.FsFile.prototype;
  let written = 0;
  const counting = {
    writeSync(this: Deno.FsFile, bytes: Uint8Array) {
      written += bytes.length;
      return writeSync.call(this, bytes);
    },
  };
  using _counting = replaceMethod(Deno.FsFile.prototype, counting);
  const bytes = new Uint8Array(8192).fill(1);
  for (let at = 0; at < size; at += 16_384) writer.write(at, bytes);
  const recorded = (await readPartRecord(dir.path))!;
  assert(recorded.bytes > 0.8 * part.presentBytes, `${recorded.bytes}`);
  for (const [from, to] of recorded.extents) {
    assertEquals(part.missingExtents([from, to]), []);
  }
  const journaled = written - part.presentBytes;
  assert(journaled < part.presentBytes, `${journaled}`);
});
