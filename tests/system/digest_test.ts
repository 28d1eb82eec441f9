import { assert, assertEquals, assertRejects } from "@std/assert";
import {
  parseSha256,
  readFileChunks,
  sha256OfChunks,
} from "../../lib/system/digest.ts";
import { growthUntil } from "../../lib/transfer/file_digest.ts";
import { temporaryDir } from "../support/directory.ts";
import { replaceMethod } from "../support/replace_method.ts";

// NIST's examples for SHA-256 (FIPS 180-2, appendix B), and the empty message.
const KNOWN: [string, string][] = [
  ["", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"],
  ["abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"],
  [
    "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
    "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
  ],
  [
    "a".repeat(1_000_000),
    "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
  ],
];

async function* pieces(...texts: string[]) {
  for (const text of texts) yield new TextEncoder().encode(text);
}

for (const engine of ["std", "runtime"] as const) {
  Deno.test(`sha256OfChunks() with the ${engine} engine computes NIST's example digests from one chunk, several chunks and a file`, async () => {
    await using dir = await temporaryDir();
    const path = `${dir.path}/file`;
    for (const [text, digest] of KNOWN) {
      assertEquals(await sha256OfChunks(pieces(text), engine), digest);
      const half = text.length >> 1;
      const split = pieces(text.slice(0, half), "", text.slice(half));
      assertEquals(await sha256OfChunks(split, engine), digest);
      await Deno.writeTextFile(path, text);
      assertEquals(await sha256OfChunks(readFileChunks(path), engine), digest);
    }
  });
}

Deno.test("parseSha256() accepts upper and lower case, an optional sha256: prefix and surrounding spaces", () => {
  const hex = "ab".repeat(32);
  for (
    const text of [
      hex,
      hex.toUpperCase(),
      `sha256:${hex}`,
      `SHA256:${hex}`,
      ` ${hex}\n`,
    ]
  ) assertEquals(parseSha256(text), hex);
  for (
    const text of [
      "",
      hex.slice(1),
      `${hex}0`,
      `x${hex.slice(1)}`,
      `sha512:${hex}`,
      `sha256:sha256:${hex}`,
      `${hex}  image.qcow2`,
      `${hex}\n${hex}`,
    ]
  ) assertEquals(parseSha256(text), undefined, text);
});

Deno.test("readFileChunks() uses one buffer for a file of any size", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/big`;
  const size = 64 * 1024 * 1024 + 7;
  await Deno.writeFile(path, new Uint8Array());
  await Deno.truncate(path, size);
  const buffers = new Set<ArrayBufferLike>();
  const progress: number[] = [];
  let bytes = 0;
  for await (
    const chunk of readFileChunks(path, {
      onBytesRead: (n) => progress.push(n),
    })
  ) {
    buffers.add(chunk.buffer);
    bytes += chunk.length;
  }
  assertEquals(bytes, size);
  assertEquals(progress.at(-1), size);
  assertEquals(buffers.size, 1);
  assert([...buffers][0].byteLength <= 1024 * 1024);
});

Deno.test("readFileChunks() follows a growing file until its writer ends", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/growing`;
  const writer = Promise.withResolvers<void>();
  const sought = Promise.withResolvers<void>();
  const { open } = Deno;
  using _system = replaceMethod(Deno, {
    open(...args: Parameters<typeof open>) {
      sought.resolve();
      return open(...args);
    },
  });
  let reached = (_bytes: number) => {};
  const until = (bytes: number) =>
    new Promise<void>((done) => reached = (now) => now === bytes && done());
  const digest = sha256OfChunks(readFileChunks(path, {
    byteCounts: growthUntil(writer.promise),
    onBytesRead: (bytes) => reached(bytes),
  }));

  // The file is missing, then empty, then grows in two steps.
  await sought.promise;
  using file = await Deno.open(path, { write: true, createNew: true });
  const text = new TextEncoder().encode("a".repeat(1_000_000));
  const first = until(300_000);
  await file.write(text.subarray(0, 300_000));
  await first;
  await file.write(text.subarray(300_000));
  writer.resolve();
  assertEquals(await digest, KNOWN[3][1]);
});

Deno.test("readFileChunks() calls onEndOfFile once, with the file's stat", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/file`;
  await Deno.writeTextFile(path, "abc");
  const ends: Deno.FileInfo[] = [];
  const onEnd = (stat: Deno.FileInfo) => ends.push(stat);
  assertEquals(
    await sha256OfChunks(readFileChunks(path, { onEndOfFile: onEnd })),
    KNOWN[1][1],
  );
  const { size, ino } = await Deno.stat(path);
  assertEquals(ends.map((stat) => [stat.size, stat.ino]), [[size, ino]]);
});

Deno.test("readFileChunks() reads to the end of the file, and does not throw, when its writer fails", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/partial`;
  await Deno.writeTextFile(path, "abc");
  const failed = Promise.reject(new Error("cut"));
  failed.catch(() => {});
  const byteCounts = growthUntil(failed);
  assertEquals(
    await sha256OfChunks(readFileChunks(path, { byteCounts })),
    KNOWN[1][1],
  );
});

Deno.test("readFileChunks() throws NotFound when the file never appears", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/none`;
  await assertRejects(
    () => sha256OfChunks(readFileChunks(path)),
    Deno.errors.NotFound,
  );
  await assertRejects(
    () => {
      const byteCounts = growthUntil(Promise.resolve());
      return sha256OfChunks(readFileChunks(path, { byteCounts }));
    },
    Deno.errors.NotFound,
  );
});

Deno.test("readFileChunks() stops on abort, also while waiting for more bytes", async () => {
  await using dir = await temporaryDir();
  const path = `${dir.path}/waiting`;
  const never = new Promise(() => {});
  for (const text of [undefined, "abc"]) {
    if (text !== undefined) await Deno.writeTextFile(path, text);
    const abort = new AbortController();
    const reading = sha256OfChunks(
      readFileChunks(path, {
        byteCounts: growthUntil(never),
        signal: abort.signal,
      }),
    );
    const rejected = assertRejects(() => reading, Error, "enough");
    abort.abort(new Error("enough"));
    await rejected;
  }
});
