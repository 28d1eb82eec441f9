import { assert, assertEquals } from "@std/assert";
import { feed } from "../../lib/guest/_streams.ts";

const MIB = 2 ** 20;

/** A port that keeps what is written; each write waits for a promise first. */
function portThat(waits: () => Promise<void> = () => Promise.resolve()) {
  const chunks: Uint8Array[] = [];
  const port = {
    async write(bytes: Uint8Array) {
      await waits();
      chunks.push(bytes.slice());
      return bytes.length;
    },
  } as Deno.UnixConn;
  return { port, written: () => new Blob(chunks as BlobPart[]).bytes() };
}

/** Takes apart what was written: as the guest's shell does. */
function framesOf(written: Uint8Array): Uint8Array[] {
  const frames: Uint8Array[] = [];
  for (let at = 0; at < written.length;) {
    const end = written.indexOf(0x0a, at);
    const line = new TextDecoder().decode(written.subarray(at, end));
    const [block, count = 0] = line.split(" ").map(Number);
    assert(block <= MIB, "no guest has to hold more than a block");
    const size = block * count;
    frames.push(written.subarray(end + 1, end + 1 + size));
    assertEquals(frames.at(-1)!.length, size, "a frame was cut");
    at = end + 1 + size;
  }
  assertEquals(frames.pop()?.length, 0, "the end is missing");
  return frames;
}

function bytesOf(length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, at) => (at * 31 + (at >> 8)) & 0xff);
}

const signal = new AbortController().signal;

Deno.test("input that waits goes in few frames, however small its pieces", async () => {
  const all = bytesOf(8 * MIB + 7);
  const piece = 64 * 1024;
  let at = 0;
  const stdin = new ReadableStream<Uint8Array>({
    pull(controller) {
      if (at >= all.length) return controller.close();
      controller.enqueue(all.slice(at, at += piece));
    },
  });
  // A guest takes a moment for each frame.
  const slow = portThat(() => new Promise((done) => setTimeout(done, 2)));
  await feed(slow.port, stdin, signal);
  const frames = framesOf(await slow.written());
  assert(frames.length <= 8, `${frames.length} frames`);
  assertEquals(await new Blob(frames as BlobPart[]).bytes(), all);
});

Deno.test("no frame is larger than what is read ahead", async () => {
  const all = bytesOf(33 * MIB + 1);
  for (const stdin of [all, new Blob([all as BlobPart]).stream()]) {
    const { port, written } = portThat();
    await feed(port, stdin, signal);
    const frames = framesOf(await written());
    for (const { length } of frames) assert(length <= 16 * MIB, `${length}`);
    assertEquals(await new Blob(frames as BlobPart[]).bytes(), all);
  }
});

Deno.test("no more is read ahead than a frame takes while the guest does not read", async () => {
  let pulled = 0;
  const stdin = new ReadableStream<Uint8Array>({
    pull(controller) {
      pulled += MIB;
      controller.enqueue(new Uint8Array(MIB));
    },
  });
  const stop = new AbortController();
  const blocked = Promise.withResolvers<void>();
  const { port } = portThat(() => blocked.promise);
  const fed = feed(port, stdin, stop.signal).catch(() => {});
  await new Promise((done) => setTimeout(done, 50));
  const before = pulled;
  await new Promise((done) => setTimeout(done, 50));
  assertEquals(pulled, before);
  assert(pulled <= 34 * MIB, `${pulled}`);
  stop.abort();
  blocked.resolve();
  await fed;
});

Deno.test("pieces of no byte end nothing, and what breaks off is said after what came", async () => {
  let at = 0;
  const stdin = new ReadableStream<Uint8Array>({
    pull(controller) {
      const piece = [[], [1], [], [2, 3]][at++];
      if (piece) controller.enqueue(new Uint8Array(piece));
      else controller.error(new Error("the disk is gone"));
    },
  });
  const { port, written } = portThat();
  const error = await feed(port, stdin, signal).catch((error) => error);
  assertEquals(
    error.message,
    "The command's input cannot be read: the disk is gone",
  );
  const text = new TextDecoder("latin1").decode(await written());
  assertEquals(text.replaceAll(/\d( 1)?\n/g, ""), "\x01\x02\x03");
});
