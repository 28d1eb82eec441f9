import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { readFileIdentity } from "../../lib/system/files.ts";
import { openPartFile } from "../../lib/system/part_file.ts";
import {
  hashFile,
  hashPartFileWhileFilling,
} from "../../lib/transfer/file_digest.ts";
import { temporaryDir } from "../support/directory.ts";

const BYTES = new Uint8Array(50_000).map((_, at) => at * 31 + (at >> 8));
const SHA256 = new Uint8Array(await crypto.subtle.digest("SHA-256", BYTES))
  .toHex();

Deno.test("hashFile() returns a file's SHA-256 and the identity of the hashed file", async () => {
  await using dir = await temporaryDir();
  const path = join(dir.path, "a");
  await Deno.writeFile(path, BYTES);
  const counts: number[] = [];
  const onBytes = (bytes: number) => counts.push(bytes);
  assertEquals(await hashFile(path, { onBytesRead: onBytes }), {
    sha256: SHA256,
    hashed: (await readFileIdentity(path))!,
  });
  assertEquals(counts.at(-1), BYTES.length);
  const signal = AbortSignal.abort(new Error("enough"));
  await assertRejects(() => hashFile(path, { signal }), Error, "enough");
});

Deno.test("hashFile() hashes a growing file until its writer ends, and throws the writer's error", async () => {
  await using dir = await temporaryDir();
  const path = join(dir.path, "a");
  const write = async () => {
    using file = await Deno.open(path, { write: true, create: true });
    await file.write(BYTES.subarray(0, 20_000));
    await file.write(BYTES.subarray(20_000));
  };
  const { sha256 } = await hashFile(path, { written: write() });
  assertEquals(sha256, SHA256);
  const failing = write().then(() => Promise.reject(new Error("cut")));
  const hashing = () => hashFile(path, { written: failing });
  await assertRejects(hashing, Error, "cut");
});

Deno.test("hashFile() stops reading when the writer fails", async () => {
  await using dir = await temporaryDir();
  const path = join(dir.path, "a");
  await Deno.writeFile(path, BYTES);
  await Deno.truncate(path, 64 * 1024 ** 2);
  const { promise, reject } = Promise.withResolvers<void>();
  let read = 0;
  const onBytes = (bytes: number) => {
    read = bytes;
    reject(new Error("cut"));
  };
  const hashing = () =>
    hashFile(path, { written: promise, onBytesRead: onBytes });
  await assertRejects(hashing, Error, "cut");
  assert(read <= 2 * 1024 ** 2, `${read} bytes`);
});

Deno.test("hashPartFileWhileFilling() hashes a part file during the download and stops when the download fails", async () => {
  await using dir = await temporaryDir();
  const identity = { size: BYTES.length, digest: `sha256:${SHA256}` };
  await using part = await openPartFile(dir.path, identity);
  const fill = async (to: number) => {
    using writer = await part.openWriter();
    writer.write(0, BYTES.subarray(0, to));
  };
  const cut = () => fill(9).then(() => Promise.reject(new Error("cut")));
  await assertRejects(
    () => hashPartFileWhileFilling(part, undefined, cut),
    Error,
    "cut",
  );
  const whole = () => fill(BYTES.length);
  assertEquals(await hashPartFileWhileFilling(part, undefined, whole), SHA256);
  // The digest waits for missing bytes until the signal is aborted.
  await part.clear();
  const stop = new AbortController();
  const partly = async () => {
    await fill(9);
    stop.abort(new Error("enough"));
  };
  const hashing = () => hashPartFileWhileFilling(part, stop.signal, partly);
  await assertRejects(hashing, Error, "enough");
});
