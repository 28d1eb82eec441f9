import { assert, assertEquals } from "@std/assert";
import { feed, receive, sendLine } from "../../lib/guest/_streams.ts";
import { VmDisconnectedError } from "../../lib/qemu/errors.ts";
import { failure } from "../support/failure.ts";

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
  const bytes = new Uint8Array(length);
  for (let at = 0; at < length; at++) bytes[at] = at * 31 + (at >> 8);
  return bytes;
}

/** Compares many bytes, which assertEquals takes seconds for. */
async function assertSame(frames: Uint8Array[], expected: Uint8Array) {
  const bytes = await new Blob(frames as BlobPart[]).bytes();
  assertEquals(bytes.length, expected.length);
  assertEquals(bytes.findIndex((byte, at) => byte !== expected[at]), -1);
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
  await assertSame(frames, all);
});

Deno.test("no frame is larger than what is read ahead", async () => {
  const all = bytesOf(33 * MIB + 1);
  for (const stdin of [all, new Blob([all as BlobPart]).stream()]) {
    const { port, written } = portThat();
    await feed(port, stdin, signal);
    const frames = framesOf(await written());
    for (const { length } of frames) assert(length <= 16 * MIB, `${length}`);
    await assertSame(frames, all);
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

/** A port from which chunks come, and then its end, or an error. */
function portFrom(chunks: (string | Uint8Array)[], broken = false) {
  let at = 0;
  return {
    read(buffer: Uint8Array) {
      const chunk = chunks[at++];
      if (chunk === undefined && broken) {
        return Promise.reject(new Deno.errors.ConnectionReset());
      }
      if (chunk === undefined) return Promise.resolve(null);
      const bytes = typeof chunk === "string"
        ? new TextEncoder().encode(chunk)
        : chunk;
      buffer.set(bytes);
      return Promise.resolve(bytes.length);
    },
  } as Deno.UnixConn;
}

Deno.test("output is collected as text up to the marker, and its bytes are counted", async () => {
  const half = new TextEncoder().encode("é");
  const port = portFrom(["a", half.slice(0, 1), half.slice(1), "bMARK3\nx"]);
  const received = receive(port, "MARK");
  assertEquals(received.word(), undefined);
  await received.done;
  assertEquals(received.text(), "aéb");
  assertEquals([received.word(), received.bytes()], ["3", 4]);
  assertEquals(received.truncated(), false);
  const cut = receive(portFrom([half.slice(0, 1), "M\n"]), "M");
  await cut.done;
  assertEquals(cut.text(), "\ufffd");
});

Deno.test("a sink sees each piece before the next is read, and nothing is collected", async () => {
  const seen: string[] = [];
  let busy = false;
  const port = portFrom(["one", "two", "MARK", "0\n"]);
  const received = receive(port, "MARK", async (chunk) => {
    assert(!busy, "two at once");
    busy = true;
    await new Promise((done) => setTimeout(done, 1));
    seen.push(new TextDecoder().decode(chunk));
    busy = false;
  });
  await received.done;
  assertEquals(seen, ["one", "two"]);
  assertEquals([received.text(), received.bytes()], ["", 6]);
  const failing = receive(portFrom(["one"]), "MARK", () => {
    throw new Error("the screen is gone");
  });
  const error = await failing.done.catch((error) => error);
  assertEquals(error.message, "the screen is gone");
});

Deno.test("no more than 32 MiB are collected, and that is said", async () => {
  const piece = new Uint8Array(256 * 1024).fill(0x61);
  const most = Array.from({ length: 128 }, () => piece);
  for (const more of [0, 1]) {
    const port = portFrom([...most, `${"b".repeat(more)}M\n`]);
    const received = receive(port, "M");
    await received.done;
    assertEquals(received.bytes(), 32 * MIB + more);
    assertEquals(received.truncated(), more > 0);
    const text = received.text();
    assertEquals([text.length, text.at(-1)], [32 * MIB, "a"]);
  }
  const across = receive(portFrom([...most.slice(1), "bb", piece, "M\n"]), "M");
  await across.done;
  assertEquals(across.text().length, 32 * MIB);
});

Deno.test("a port that ends or breaks before the marker is a machine that broke off", async () => {
  for (const broken of [false, true]) {
    const received = receive(portFrom(["some"], broken), "MARK");
    const error = await failure("guest_failed", () => received.done);
    assert(error instanceof VmDisconnectedError);
    assertEquals(received.text(), "some");
  }
});

/** The headers of frames for an input of a length. */
async function headersOf(length: number): Promise<string[]> {
  const { port, written } = portThat();
  await feed(port, new Uint8Array(length), signal);
  const bytes = await written();
  const headers: string[] = [];
  for (let at = 0; at < bytes.length;) {
    const end = bytes.indexOf(0x0a, at);
    const header = new TextDecoder().decode(bytes.subarray(at, end));
    headers.push(header);
    const [block, count = 0] = header.split(" ").map(Number);
    at = end + 1 + block * count;
  }
  return headers;
}

Deno.test("up to 1 MiB goes as one block, more as blocks of 64 KiB and a rest", async () => {
  assertEquals(await headersOf(0), ["0"]);
  assertEquals(await headersOf(1), ["1 1", "0"]);
  assertEquals(await headersOf(MIB), [`${MIB} 1`, "0"]);
  assertEquals(await headersOf(MIB + 1), ["65536 16", "1 1", "0"]);
  assertEquals(await headersOf(17 * MIB + 1), [
    ...["65536 256", "65536 16", "1 1", "0"],
  ]);
});

Deno.test("text goes as UTF-8, and a line with its end", async () => {
  const { port, written } = portThat();
  await feed(port, "é", signal);
  await sendLine(port, "TERM");
  assertEquals(
    await written(),
    new TextEncoder().encode("2 1\né0\nTERM\n"),
  );
});

Deno.test("an input is cancelled where the command ends, or the port breaks off", async () => {
  const waiting = () => {
    let cancelled = 0;
    const stdin = new ReadableStream<Uint8Array>({
      start: (controller) => controller.enqueue(new Uint8Array([7])),
      cancel: () => void cancelled++,
    });
    return { stdin, cancelled: () => cancelled };
  };
  const ended = waiting();
  const stop = new AbortController();
  const { port, written } = portThat();
  const fed = feed(port, ended.stdin, stop.signal);
  await new Promise((done) => setTimeout(done, 10));
  stop.abort();
  await fed;
  assertEquals([ended.cancelled(), ended.stdin.locked], [1, false]);
  assertEquals(
    await written(),
    new Uint8Array([0x31, 0x20, 0x31, 10, 7, 0x30, 10]),
  );
  const broken = waiting();
  const closed = portThat(() => Promise.reject(new Deno.errors.BrokenPipe()));
  const error = await feed(closed.port, broken.stdin, signal)
    .catch((error) => error);
  assert(error instanceof Deno.errors.BrokenPipe);
  await new Promise((done) => setTimeout(done));
  assertEquals([broken.cancelled(), broken.stdin.locked], [1, false]);
  // What is not sent yet stays here.
  const late = AbortSignal.abort();
  const rest = portThat();
  await feed(rest.port, bytesOf(10), late);
  assertEquals(await rest.written(), new TextEncoder().encode("0\n"));
});
