/**
 * Copies from a base image that is unchanged, damaged, or changes meanwhile, into
 * part files that are empty or not.
 */
import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  formatChunkIndex,
  MIN_INDEXED_IMAGE_BYTES,
  readFileRecords,
} from "../../lib/delta/chunk_index.ts";
import type { ToolsmithEvent } from "../../lib/events.ts";
import type { FetchJob, PartDownload } from "../../lib/hydrate/_fetch_job.ts";
import { copyFromBase } from "../../lib/hydrate/_update.ts";
import { sha256OfChunks, sha256ToDigest } from "../../lib/system/digest.ts";
import { openPartFile, type PartFile } from "../../lib/system/part_file.ts";
import { hashPartFileWhileFilling } from "../../lib/transfer/file_digest.ts";
import { temporaryDir } from "../support/directory.ts";
import { replaceMethod } from "../support/replace_method.ts";

const MIB = 1024 * 1024;
const SIZE = MIN_INDEXED_IMAGE_BYTES;

/** The new image; a twentieth of it differs from the older one. */
const target = new Uint8Array(SIZE);
for (let at = 0; at < SIZE; at += 65536) {
  crypto.getRandomValues(target.subarray(at, at + 65536));
}
const older = target.slice();
older.fill(5, 20 * MIB, 23 * MIB);
const CHANGED = 3 * MIB;

let expected: { size: number; digest: string };
let index: Uint8Array<ArrayBuffer>;
Deno.test.beforeAll(async () => {
  await using dir = await temporaryDir();
  const path = join(dir.path, "target");
  await Deno.writeFile(path, target);
  using file = await Deno.open(path);
  const records = await Array.fromAsync(readFileRecords(file, {}));
  const sha256 = await sha256OfChunks(ReadableStream.from([target]));
  expected = { size: SIZE, digest: sha256ToDigest(sha256) };
  index = await formatChunkIndex({
    ...expected,
    records: await new Blob(records as BlobPart[]).bytes(),
  });
});

interface CopyOptions {
  /** The bytes of the base. @default {older} */
  base?: Uint8Array<ArrayBuffer>;
  isGiven?: boolean;
  /** Changes the base when so many of its bytes were read. */
  meanwhile?: (path: string) => void | Promise<void>;
  /** Prepares the part file. */
  prepare?: (part: PartFile) => Promise<void>;
  download?: PartDownload;
  signal?: AbortSignal;
  emit?: (event: { type: string }) => void;
}

/** Copies, then fills the gaps from the target, and hashes the result. */
async function copyAndFill(given: CopyOptions) {
  await using dir = await temporaryDir();
  const path = join(dir.path, "base.qcow2");
  await Deno.writeFile(path, given.base ?? older);
  const staging = join(dir.path, "staging");
  await Deno.mkdir(staging);
  await using part = await openPartFile(staging, expected);
  await given.prepare?.(part);
  const events: ToolsmithEvent[] = [];
  const job = {
    image: { name: "demo" },
    base: { path, name: "1.0", isGiven: given.isGiven ?? true },
    signal: given.signal,
    emit(event) {
      events.push(event as ToolsmithEvent);
      given.emit?.(event);
    },
  } as FetchJob;
  const update = await copyFromBase(
    job,
    part,
    ReadableStream.from([index]),
    given.download ?? (() => Promise.reject(new Error("not expected"))),
  );
  const missing = part.missingExtents();
  const downloaded = missing.reduce((sum, [from, to]) => sum + to - from, 0);
  const sha256 = await hashPartFileWhileFilling(part, undefined, async () => {
    using writer = await part.openWriter();
    for (const [from, to] of missing) {
      writer.write(from, target.subarray(from, to));
    }
  });
  const isRight = sha256ToDigest(sha256) === expected.digest;
  const reason = events.map((it) => it.type === "update_declined" && it.reason);
  return { update, downloaded, events, isRight, reason: reason[0], missing };
}

Deno.test("copyFromBase() copies all that did not change", async () => {
  const { update, downloaded, events, isRight } = await copyAndFill({});
  assert(isRight);
  assert(downloaded >= CHANGED && downloaded < CHANGED + MIB);
  assertEquals(update, { from: "1.0", bytes: downloaded, total: SIZE });
  assertEquals(events, [
    { type: "update_start", image: "demo", ...update },
  ] as unknown as ToolsmithEvent[]);
});

const damages: [string, (bytes: Uint8Array<ArrayBuffer>) => typeof bytes][] = [
  ["with flipped bytes", (bytes) => {
    for (let at = 5; at < SIZE; at += 5 * MIB) bytes[at] ^= 1;
    return bytes;
  }],
  ["with a zeroed part", (bytes) => bytes.fill(0, 30 * MIB, 35 * MIB)],
  ["that is truncated", (bytes) => bytes.slice(0, 50 * MIB)],
];
for (const [what, damage] of damages) {
  Deno.test(`copyFromBase() copies only right bytes from a base ${what}`, async () => {
    const base = damage(older.slice());
    const { isRight, downloaded } = await copyAndFill({ base });
    assert(isRight);
    assert(downloaded > CHANGED && downloaded < SIZE / 2, `${downloaded}`);
  });
}

/** Runs once the plan is made, before the first byte is copied. */
const afterPlan = (change: (path: string) => void): CopyOptions => {
  let path = "";
  return {
    prepare(part) {
      path = join(part.path, "..", "..", "base.qcow2");
      const openWriter = part.openWriter.bind(part);
      part.openWriter = () => {
        part.openWriter = openWriter;
        change(path);
        return openWriter();
      };
      return Promise.resolve();
    },
  };
};

Deno.test("copyFromBase() copies from a base that is removed meanwhile", {
  ignore: Deno.build.os === "windows",
}, async () => {
  const removed = afterPlan((path) => Deno.removeSync(path));
  const { isRight, downloaded } = await copyAndFill(removed);
  assert(isRight);
  assert(downloaded < CHANGED + MIB);
});

Deno.test("copyFromBase() leaves out what a base that is truncated meanwhile lacks", async () => {
  const truncated = afterPlan((path) => Deno.truncateSync(path, 40 * MIB));
  const { isRight, downloaded } = await copyAndFill(truncated);
  assert(isRight);
  assert(downloaded >= CHANGED + SIZE - 40 * MIB);
});

Deno.test("the digest shows that a base was overwritten while it was copied", async () => {
  const overwritten = afterPlan((path) => {
    using file = Deno.openSync(path, { write: true });
    file.seekSync(MIB, Deno.SeekMode.Start);
    file.writeSync(new Uint8Array(10));
  });
  assertEquals((await copyAndFill(overwritten)).isRight, false);
});

Deno.test("copyFromBase() keeps what was downloaded before, and counts it", async () => {
  let written = 0;
  const { isRight, update, downloaded } = await copyAndFill({
    async prepare(part) {
      const all = new Uint8Array(SIZE);
      using writer = await part.openWriter();
      // Half of the changed part, and a piece of the rest.
      for (const [from, to] of [[20 * MIB, 21.5 * MIB], [MIB, 2 * MIB]]) {
        writer.write(from, target.subarray(from, to));
      }
      const openWriter = part.openWriter.bind(part);
      part.openWriter = async () => {
        const writer = await openWriter();
        return {
          write(position, bytes) {
            for (let at = 0; at < bytes.length; at++) {
              if (all[position + at]++ > 0) throw new Error("written twice");
            }
            written += bytes.length;
            writer.write(position, bytes);
          },
          [Symbol.dispose]: () => writer[Symbol.dispose](),
        };
      };
    },
  });
  assert(isRight);
  assertEquals(update?.bytes, downloaded);
  assert(downloaded < CHANGED / 2 + MIB, `${downloaded}`);
  assertEquals(written, SIZE - 2.5 * MIB);
});

Deno.test("copyFromBase() declines a base that differs too much", async () => {
  const base = older.slice().fill(1, 10 * MIB);
  const { reason, update, downloaded, isRight } = await copyAndFill({ base });
  assertEquals([update, downloaded, isRight], [undefined, SIZE, true]);
  assertEquals(reason, "84 % differs from 1.0");
});

Deno.test("copyFromBase() looks for no index of an image below 64 MiB", async () => {
  await using dir = await temporaryDir();
  const small = { ...expected, size: SIZE - 1 };
  await using part = await openPartFile(dir.path, small);
  const events: { type: string }[] = [];
  const job = {
    image: { name: "demo" },
    base: { path: part.path, name: "1.0", isGiven: true },
    emit: (event) => void events.push(event),
  } as FetchJob;
  const update = await copyFromBase(
    job,
    part,
    // deno-lint-ignore require-yield
    async function* () {
      throw new Error("not expected");
    }(),
    () => Promise.reject(new Error("not expected")),
  );
  assertEquals([update, events], [undefined, []]);
});

Deno.test("copyFromBase() declines a base that cannot be read", async () => {
  const { reason, isRight } = await copyAndFill({
    prepare: (part) => Deno.remove(join(part.path, "..", "..", "base.qcow2")),
  });
  assert(isRight);
  assert(`${reason}`.startsWith("No such file"), `${reason}`);
});

for (
  const [how, msPerMib] of [
    ["the download takes less than a second", { downloaded: 15, read: 0 }],
    ["the download is as fast as reading it", { downloaded: 25, read: 15 }],
  ] as const
) {
  Deno.test(`copyFromBase() declines a cached base if ${how}`, async () => {
    let now = 0;
    using _clock = replaceMethod(performance, { now: () => now });
    const { prototype } = Deno.FsFile;
    const { read } = prototype;
    using _file = replaceMethod(prototype, {
      read(this: Deno.FsFile, bytes: Uint8Array) {
        now += msPerMib.read;
        return read.call(this, bytes);
      },
    });
    let part: PartFile;
    const { reason, isRight, downloaded } = await copyAndFill({
      isGiven: false,
      prepare(opened) {
        part = opened;
        return Promise.resolve();
      },
      async download({ signal, onBytesWritten }) {
        using writer = await part.openWriter();
        for (let at = 0; !signal!.aborted; at += MIB) {
          now += msPerMib.downloaded;
          writer.write(at, target.subarray(at, at + MIB));
          onBytesWritten();
        }
        throw signal!.reason;
      },
    });
    assert(isRight);
    assertEquals(reason, "the download is as fast");
    assertEquals(downloaded, SIZE - 5 * MIB);
  });
}

Deno.test("copyFromBase() reads no cached base once the download has brought all", async () => {
  let part: PartFile;
  const { reason, missing, isRight } = await copyAndFill({
    isGiven: false,
    prepare(opened) {
      part = opened;
      return Promise.resolve();
    },
    async download({ onBytesWritten }) {
      using writer = await part.openWriter();
      writer.write(0, target);
      onBytesWritten();
    },
  });
  assert(isRight);
  assertEquals([reason, missing], ["the download is as fast", []]);
});

Deno.test("copyFromBase() stops the probe of a slow download, and copies", async () => {
  let aborted = 0;
  const { update, isRight } = await copyAndFill({
    isGiven: false,
    download({ signal, onBytesWritten, connections, ...limits }) {
      // A server that hangs costs little time.
      assertEquals([limits.retries, limits.stallTimeoutMs], [0, 10_000]);
      assertEquals(connections, 1);
      onBytesWritten();
      const { promise, reject } = Promise.withResolvers<never>();
      signal!.addEventListener("abort", () => {
        aborted++;
        reject(signal!.reason);
      });
      return promise;
    },
  });
  assert(isRight);
  assertEquals([aborted, update?.from], [1, "1.0"]);
});

Deno.test("copyFromBase() throws the signal's reason, and keeps what was copied", async () => {
  const stop = new AbortController();
  const reason = new Error("stop");
  let present = 0;
  let writes = 0;
  const copying = copyAndFill({
    signal: stop.signal,
    prepare(part) {
      const openWriter = part.openWriter.bind(part);
      part.openWriter = async () => {
        const writer = await openWriter();
        return {
          write(position, bytes) {
            writer.write(position, bytes);
            present = part.presentBytes;
            if (++writes === 3) stop.abort(reason);
          },
          [Symbol.dispose]: () => writer[Symbol.dispose](),
        };
      };
      return Promise.resolve();
    },
  });
  const error = await copying.then(() => undefined, (error) => error);
  assertEquals(error, reason);
  assertEquals([writes, present > 0], [3, true]);
});
