/**
 * Finds the end marker in the output of a command, however it is cut;
 * tests/guest/command_streams_test.ts tests what is done with the output.
 */
import { assertEquals } from "@std/assert";
import fc from "fast-check";
import { readUntilMarker } from "../../lib/guest/_command_output.ts";
import { portSending } from "../support/sending_port.ts";

const MARKER = "abcabd";

/** Reads text that arrives in chunks of a size. */
async function readInChunks(text: string, size: number) {
  const bytes = new TextEncoder().encode(text);
  const chunks = [];
  for (let at = 0; at < bytes.length; at += size) {
    chunks.push(bytes.slice(at, at + size));
  }
  const { text: out, trailer } = await readUntilMarker(
    portSending(chunks),
    MARKER,
  );
  return { out, trailer };
}

/** Reads chunks to the port's end, and returns what has arrived until then. */
async function arrivals(...chunks: string[]) {
  const seen: string[] = [];
  const show = (chunk: Uint8Array) =>
    void seen.push(new TextDecoder().decode(chunk));
  const trailer = await readUntilMarker(portSending(chunks), MARKER, show)
    .then((it) => it.trailer, () => undefined);
  return { seen, trailer };
}

Deno.test("readUntilMarker() returns all output before the marker, for any chunk size", async () => {
  const texts = ["", "x", "abc", "abcabcab", "ab\0\nabcab", "aaaaabcabc", "d"];
  for (const text of texts) {
    for (let size = 1; size <= 20; size++) {
      const whole = `${text}${MARKER}42\nlater${MARKER}7\n`;
      const read = await readInChunks(whole, size);
      assertEquals(read, { out: text, trailer: "42" });
    }
  }
});

Deno.test("readUntilMarker() ends random output at the first marker, for any chunk size", async () => {
  // Letters of the marker, so that many prefixes occur.
  const text = fc.string({ unit: fc.constantFrom(..."abcd\n\0") });
  const chunks = fc.array(fc.oneof(text, fc.constant(MARKER)));
  await fc.assert(
    fc.asyncProperty(
      chunks,
      fc.integer({ min: 1, max: 9 }),
      async (parts, size) => {
        const whole = `${parts.join("")}${MARKER}7\n`;
        const at = whole.indexOf(MARKER);
        const { out, trailer } = await readInChunks(whole, size);
        assertEquals(out, whole.slice(0, at));
        const [first] = whole.slice(at + MARKER.length).split("\n");
        if (first.length <= 16) assertEquals(trailer, first);
      },
    ),
  );
});

Deno.test("readUntilMarker() holds back only bytes that may start the marker", async () => {
  assertEquals(await arrivals("progress 10 %", "..abca", "x", "abcab"), {
    seen: ["progress 10 %", "..", "abcax"],
    trailer: undefined,
  });
});

Deno.test("readUntilMarker() waits for a split trailer and accepts an empty one", async () => {
  const split = await arrivals(`${MARKER}1`, "37\n");
  assertEquals(split, { seen: [], trailer: "137" });
  assertEquals((await arrivals(`${MARKER}\n`)).trailer, "");
  assertEquals((await arrivals(`${MARKER}1`)).trailer, undefined);
});

Deno.test("readUntilMarker() copies its output, as it reuses its buffer", async () => {
  const seen: Uint8Array[] = [];
  const port = portSending(["onabc", "!", `${MARKER}\n`]);
  await readUntilMarker(port, MARKER, (chunk) => void seen.push(chunk));
  const texts = seen.map((it) => new TextDecoder().decode(it));
  assertEquals(texts, ["on", "abc!"]);
});

Deno.test("readUntilMarker() limits a trailer without a newline to 17 characters", async () => {
  const most = "7".repeat(16);
  assertEquals((await arrivals(MARKER, most)).trailer, undefined);
  assertEquals((await arrivals(MARKER, most, "7", "8")).trailer, `${most}7`);
});
