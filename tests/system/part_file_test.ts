import { assertEquals, assertRejects } from "@std/assert";
import { dirname, join } from "@std/path";
import { sha256 } from "../../lib/system/digest.ts";
import { openPart } from "../../lib/system/part_file.ts";
import {
  PART,
  PART_JOURNAL,
  PART_RECORD,
  readPartRecord,
} from "../../lib/system/part_record.ts";
import { temporaryDir } from "../support/directory.ts";

const MIB = 1024 * 1024;
const identity = { size: 10 * MIB, digest: "sha256:aa" };
const never = new AbortController().signal;
const ENGINES = ["std", "runtime"] as const;

Deno.test("a part file keeps what was written for whoever opens it next", async () => {
  await using dir = await temporaryDir();
  {
    await using part = await openPart(dir.path, identity);
    assertEquals([part.kept, part.bytes], [0, 0]);
    using writer = await part.openWriter();
    writer.write(5 * MIB, new Uint8Array(MIB).fill(5));
    writer.write(0, new Uint8Array(3).fill(1));
  }
  await using part = await openPart(dir.path, identity);
  assertEquals([part.kept, part.bytes], [MIB + 3, MIB + 3]);
  assertEquals(part.gaps(), [[3, 5 * MIB], [6 * MIB, 10 * MIB]]);
  assertEquals(part.gaps([0, 4]), [[3, 4]]);
  const bytes = await Deno.readFile(part.path);
  assertEquals([bytes[0], bytes[3], bytes[5 * MIB]], [1, 0, 5]);
});

Deno.test("what is synced is noted by itself, for a power loss to leave it", async () => {
  await using dir = await temporaryDir();
  const part = await openPart(dir.path, identity);
  using writer = await part.openWriter();
  writer.write(0, new Uint8Array(6 * MIB));
  // Nobody closes it, and of another boot only what is durable counts.
  const durable = () =>
    Deno.readTextFile(join(dir.path, PART_RECORD)).catch(() => undefined);
  for (let tries = 0; !await durable(); tries++) {
    if (tries > 100) throw new Error("no record after 5 s");
    await new Promise((done) => setTimeout(done, 50));
  }
  assertEquals(JSON.parse((await durable())!).extents, [[0, 6 * MIB]]);
  await part[Symbol.asyncDispose]();
});

Deno.test("a part file of another image, of another size or of an older version is not gone on with", async (t) => {
  const cases: [string, (record: Record<string, unknown>) => unknown][] = [
    ["another digest", (record) => ({ ...record, digest: "sha256:bb" })],
    ["another size", (record) => ({ ...record, size: 9 * MIB })],
    ["no extents", ({ size, digest }) => ({ size, digest })],
    ["bytes beyond the end", (record) => ({
      ...record,
      extents: [[0, 11 * MIB]],
    })],
    ["no object", () => "x"],
    ["null", () => null],
  ];
  for (const [name, change] of cases) {
    await t.step(name, async () => {
      await using dir = await temporaryDir();
      {
        await using part = await openPart(dir.path, identity);
        using writer = await part.openWriter();
        writer.write(0, new Uint8Array(9).fill(7));
      }
      const path = join(dir.path, PART_RECORD);
      const record = JSON.parse(await Deno.readTextFile(path));
      await Deno.writeTextFile(path, JSON.stringify(change(record)));
      await using part = await openPart(dir.path, identity);
      assertEquals([part.kept, part.gaps()], [0, [[0, 10 * MIB]]]);
      assertEquals((await Deno.readFile(part.path))[0], 0);
    });
  }
});

Deno.test("the digest of a part file is computed in order while its bytes arrive out of order", async () => {
  await using dir = await temporaryDir();
  const step = 2 * MIB;
  const size = 3 * step;
  for (const engine of ENGINES) {
    await using part = await openPart(dir.path, { size, digest: engine }, {
      engine,
    });
    using writer = await part.openWriter();
    const computed = part.sha256(never);
    const pieces = [1, 2, 3].map((fill) => new Uint8Array(step).fill(fill));
    for (const at of [2, 1, 0]) writer.write(at * step, pieces[at]);
    const whole = new Blob(pieces).stream();
    assertEquals(await computed, await sha256(whole));
    await part.finish();
  }
});

Deno.test("who waits for the digest of a part file can be stopped", async () => {
  await using dir = await temporaryDir();
  for (const engine of ENGINES) {
    await using part = await openPart(dir.path, identity, { engine });
    const stop = new AbortController();
    const computed = part.sha256(stop.signal);
    stop.abort(new Error("enough"));
    await assertRejects(() => computed, Error, "enough");
  }
});

Deno.test("a part file that is cleared or finished is not gone on with", async () => {
  await using dir = await temporaryDir();
  for (const end of ["clear", "finish"] as const) {
    {
      await using part = await openPart(dir.path, identity);
      using writer = await part.openWriter();
      writer.write(0, new Uint8Array(9).fill(7));
      await part[end]();
      if (end === "clear") assertEquals([part.bytes, part.kept], [0, 0]);
    }
    assertEquals(await readPartRecord(dir.path), undefined);
  }
});

Deno.test("what a program had filled when the process died is taken over", async () => {
  await using dir = await temporaryDir();
  const filled = join(dir.path, "pull", "image.qcow2");
  await Deno.mkdir(join(dir.path, "pull"));
  {
    await using part = await openPart(dir.path, identity);
    await part.expect(filled);
    await Deno.writeFile(filled, new Uint8Array(5000).fill(3));
  }
  await using part = await openPart(dir.path, identity);
  assertEquals([part.kept, part.gaps()], [5000, [[5000, 10 * MIB]]]);
  assertEquals((await Deno.readFile(part.path)).length, 10 * MIB);
  // More than the whole is none of it.
  await part.clear();
  await Deno.writeFile(filled, new Uint8Array(11 * MIB));
  await part.adopt(filled);
  assertEquals(part.bytes, 0);
});

Deno.test("what a killed process had written is kept until the next boot, and what is durable for ever", async () => {
  await using dir = await temporaryDir();
  const part = await openPart(dir.path, identity);
  using writer = await part.openWriter();
  // Too little to be synced by itself.
  writer.write(7, new Uint8Array(1000));
  const journal = join(dir.path, PART_JOURNAL);
  for (let tries = 0; !await readPartRecord(dir.path); tries++) {
    if (tries > 100) throw new Error("it is not noted after 5 s");
    await new Promise((done) => setTimeout(done, 50));
  }
  const text = await Deno.readTextFile(journal);
  const extents = async () => (await readPartRecord(dir.path))?.extents;
  assertEquals(await extents(), [[7, 1007]]);
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

Deno.test("openPart() replaces links in the place of its files, and resumes what it can", async () => {
  for (const name of [PART, PART_RECORD, PART_JOURNAL, `${PART_RECORD}.new`]) {
    await using dir = await temporaryDir();
    await using elsewhere = await temporaryDir();
    const victim = join(elsewhere.path, "victim");
    await Deno.writeTextFile(victim, "mine");
    {
      await using part = await openPart(dir.path, identity);
      using writer = await part.openWriter();
      writer.write(0, new Uint8Array(9));
    }
    const path = join(dir.path, name);
    await Deno.remove(path).catch(() => {});
    await Deno.symlink(victim, path);
    {
      await using part = await openPart(dir.path, identity);
      const isLost = name === PART || name === PART_RECORD;
      assertEquals(part.kept, isLost ? 0 : 9, name);
      using writer = await part.openWriter();
      writer.write(0, new Uint8Array(5 * MIB));
    }
    assertEquals((await readPartRecord(dir.path))?.bytes, 5 * MIB, name);
    assertEquals(await Deno.readTextFile(victim), "mine", name);
  }
});

Deno.test("readPartRecord() takes no file outside of the directory for one that a program has filled", async () => {
  await using dir = await temporaryDir();
  await using elsewhere = await temporaryDir();
  const victim = join(elsewhere.path, "victim");
  await Deno.writeTextFile(victim, "mine");
  await Deno.symlink(dirname(victim), join(dir.path, "link"));
  await Deno.symlink(victim, join(dir.path, "file"));
  await (await openPart(dir.path, identity))[Symbol.asyncDispose]();
  const read = async (filled: string) => {
    const text = JSON.stringify({ ...identity, extents: [], filled });
    await Deno.writeTextFile(join(dir.path, PART_RECORD), text);
    return (await readPartRecord(dir.path))?.bytes;
  };
  await Deno.writeTextFile(join(dir.path, "own"), "own");
  assertEquals(await read("own"), 3);
  const up = join("..", elsewhere.path.slice(dirname(dir.path).length));
  for (const filled of ["link/victim", "file", join(up, "victim")]) {
    assertEquals(await read(filled), undefined, filled);
  }
});
