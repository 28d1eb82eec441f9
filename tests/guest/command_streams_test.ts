import { assert, assertEquals } from "@std/assert";
import { sendLine, sendStdin } from "../../lib/guest/_command_stdin.ts";
import { readUntilMarker } from "../../lib/guest/_command_output.ts";
import { VmDisconnectedError } from "../../lib/qemu/errors.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { portSending } from "../support/sending_port.ts";

const MIB = 2 ** 20;

/** Lets pending promises settle. */
function settle(): Promise<void> {
  return new Promise((done) => setTimeout(done));
}

/** A port that records writes; each write first awaits a promise. */
function recordingPort(waits: () => Promise<void> = () => Promise.resolve()) {
  const chunks: Uint8Array[] = [];
  const port = {
    async write(bytes: Uint8Array) {
      await waits();
      chunks.push(bytes.slice());
      return bytes.length;
    },
  } as Deno.UnixConn;
  return {
    port,
    written: () => new Blob(chunks as BlobPart[]).bytes(),
    countWrites: () => chunks.length,
  };
}

/** Parses frames, as the guest's shell does. */
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

/** Compares large arrays by digest: assertEquals would take seconds. */
async function assertSame(frames: Uint8Array[], expected: Uint8Array) {
  const bytes = await new Blob(frames as BlobPart[]).bytes();
  assertEquals(await digestOf(bytes), await digestOf(expected));
}

async function digestOf(bytes: Uint8Array): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", bytes as BufferSource);
  return new Uint8Array(digest).toHex();
}

const signal = new AbortController().signal;

Deno.test("sendStdin() combines small chunks into few frames for a slow guest", async () => {
  const all = bytesOf(8 * MIB + 7);
  const piece = 64 * 1024;
  let at = 0;
  const stdin = new ReadableStream<Uint8Array>({
    pull(controller) {
      if (at >= all.length) return controller.close();
      controller.enqueue(all.slice(at, at += piece));
    },
  });
  // A slow guest delays each frame.
  const slow = recordingPort(settle);
  await sendStdin(slow.port, stdin, signal);
  const frames = framesOf(await slow.written());
  assert(frames.length <= 8, `${frames.length} frames`);
  await assertSame(frames, all);
});

Deno.test("sendStdin() limits a frame to 16 MiB", async () => {
  const all = bytesOf(33 * MIB + 1);
  for (const stdin of [all, new Blob([all as BlobPart]).stream()]) {
    const { port, written } = recordingPort();
    await sendStdin(port, stdin, signal);
    const frames = framesOf(await written());
    for (const { length } of frames) assert(length <= 16 * MIB, `${length}`);
    await assertSame(frames, all);
  }
});

Deno.test("sendStdin() applies backpressure to its stream while the guest does not read", async () => {
  let pulled = 0;
  const stdin = new ReadableStream<Uint8Array>({
    pull(controller) {
      pulled += MIB;
      controller.enqueue(new Uint8Array(MIB));
    },
  });
  const stop = new AbortController();
  const blocked = Promise.withResolvers<void>();
  const { port } = recordingPort(() => blocked.promise);
  const fed = sendStdin(port, stdin, stop.signal).catch(() => {});
  await settle();
  const before = pulled;
  await settle();
  assertEquals(pulled, before);
  assert(pulled <= 34 * MIB, `${pulled}`);
  stop.abort();
  blocked.resolve();
  await fed;
});

Deno.test("sendStdin() skips empty chunks and reports a stream error after sending what arrived", async () => {
  let at = 0;
  const stdin = new ReadableStream<Uint8Array>({
    pull(controller) {
      const piece = [[], [1], [], [2, 3]][at++];
      if (piece) controller.enqueue(new Uint8Array(piece));
      else controller.error(new Error("the disk is gone"));
    },
  });
  const { port, written } = recordingPort();
  const error = await sendStdin(port, stdin, signal).catch((error) => error);
  assertEquals(
    error.message,
    "Cannot read the command's standard input: the disk is gone",
  );
  const text = new TextDecoder("latin1").decode(await written());
  assertEquals(text.replaceAll(/\d( 1)?\n/g, ""), "\x01\x02\x03");
});

Deno.test("readUntilMarker() collects output as text and counts its bytes up to the marker", async () => {
  const half = new TextEncoder().encode("é");
  const port = portSending(["a", half.slice(0, 1), half.slice(1), "bMARK3\nx"]);
  assertEquals(await readUntilMarker(port, "MARK"), {
    ...{ text: "aéb", trailer: "3", byteCount: 4, truncated: false },
  });
  const cut = portSending([half.slice(0, 1), "M\n"]);
  assertEquals((await readUntilMarker(cut, "M")).text, "\ufffd");
});

Deno.test("readUntilMarker() with a sink waits for each chunk's sink call and collects no output", async () => {
  const seen: string[] = [];
  let busy = false;
  const port = portSending(["one", "two", "MARK", "0\n"]);
  const received = await readUntilMarker(port, "MARK", async (chunk) => {
    assert(!busy, "two at once");
    busy = true;
    await settle();
    seen.push(new TextDecoder().decode(chunk));
    busy = false;
  });
  assertEquals(seen, ["one", "two"]);
  assertEquals([received.text, received.byteCount], ["", 6]);
  const failing = readUntilMarker(portSending(["one"]), "MARK", () => {
    throw new Error("the screen is gone");
  });
  const error = await failing.catch((error) => error);
  assertEquals(error.message, "the screen is gone");
});

Deno.test("readUntilMarker() collects at most 32 MiB and reports truncated output", async () => {
  const piece = new Uint8Array(256 * 1024).fill(0x61);
  const most = Array.from({ length: 128 }, () => piece);
  for (const more of [0, 1]) {
    const port = portSending([...most, `${"b".repeat(more)}M\n`]);
    const received = await readUntilMarker(port, "M");
    assertEquals(received.byteCount, 32 * MIB + more);
    assertEquals(received.truncated, more > 0);
    const { text } = received;
    assertEquals([text.length, text.at(-1)], [32 * MIB, "a"]);
  }
  const across = portSending([...most.slice(1), "bb", piece, "M\n"]);
  assertEquals((await readUntilMarker(across, "M")).text.length, 32 * MIB);
});

Deno.test("readUntilMarker() throws VmDisconnectedError when the port closes before the marker", async () => {
  for (const broken of [false, true]) {
    const port = portSending(["some"], broken);
    const error = await expectFailure(
      "guest_failed",
      () => readUntilMarker(port, "MARK"),
    );
    assert(error instanceof VmDisconnectedError);
  }
});

/** The frame headers for an input of the given length. */
async function headersOf(length: number): Promise<string[]> {
  const { port, written } = recordingPort();
  await sendStdin(port, new Uint8Array(length), signal);
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

Deno.test("sendStdin() sends up to 1 MiB as one block and more as 64 KiB blocks", async () => {
  assertEquals(await headersOf(0), ["0"]);
  assertEquals(await headersOf(1), ["1 1", "0"]);
  assertEquals(await headersOf(MIB), [`${MIB} 1`, "0"]);
  assertEquals(await headersOf(MIB + 1), ["65536 16", "1 1", "0"]);
  assertEquals(await headersOf(17 * MIB + 1), [
    ...["65536 256", "65536 16", "1 1", "0"],
  ]);
});

Deno.test("sendStdin() encodes text as UTF-8, and sendLine() appends a newline", async () => {
  const { port, written } = recordingPort();
  await sendStdin(port, "é", signal);
  await sendLine(port, "TERM");
  assertEquals(
    await written(),
    new TextEncoder().encode("2 1\né0\nTERM\n"),
  );
});

Deno.test("sendStdin() cancels its stream when the command ends or the port closes", async () => {
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
  const { port, written, countWrites } = recordingPort();
  const fed = sendStdin(port, ended.stdin, stop.signal);
  while (countWrites() === 0) await settle();
  stop.abort();
  await fed;
  assertEquals([ended.cancelled(), ended.stdin.locked], [1, false]);
  assertEquals(
    await written(),
    new Uint8Array([0x31, 0x20, 0x31, 10, 7, 0x30, 10]),
  );
  const broken = waiting();
  const closed = recordingPort(() =>
    Promise.reject(new Deno.errors.BrokenPipe())
  );
  const error = await sendStdin(closed.port, broken.stdin, signal)
    .catch((error) => error);
  assert(error instanceof Deno.errors.BrokenPipe);
  await settle();
  assertEquals([broken.cancelled(), broken.stdin.locked], [1, false]);
  // Unsent chunks stay in the stream.
  const late = AbortSignal.abort();
  const rest = recordingPort();
  await sendStdin(rest.port, bytesOf(10), late);
  assertEquals(await rest.written(), new TextEncoder().encode("0\n"));
});
