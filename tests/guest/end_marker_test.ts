import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { endMarker } from "../../lib/guest/_end_marker.ts";

const encode = (text: string) => new TextEncoder().encode(text);
const MARKER = "abcabd";

/** Pushes the text in pieces of a size, and joins what comes out. */
function through(text: string, size: number) {
  const end = endMarker(MARKER);
  const bytes = encode(text);
  let out = "";
  for (let at = 0; at < bytes.length; at += size) {
    out += new TextDecoder().decode(end.push(bytes.slice(at, at + size)));
  }
  return { out, word: end.word };
}

Deno.test("output before the marker is whole, however it is cut", () => {
  const texts = ["", "x", "abc", "abcabcab", "ab\0\nabcab", "aaaaabcabc", "d"];
  for (const text of texts) {
    for (let size = 1; size <= 20; size++) {
      const whole = `${text}${MARKER}42\nlater${MARKER}7\n`;
      assertEquals(through(whole, size), { out: text, word: "42" });
    }
  }
});

Deno.test("any output ends just before the first marker, however it is cut", () => {
  // Letters of the marker, so that much looks like its beginning.
  const text = fc.string({ unit: fc.constantFrom(..."abcd\n\0") });
  const chunks = fc.array(fc.oneof(text, fc.constant(MARKER)));
  fc.assert(
    fc.property(chunks, fc.integer({ min: 1, max: 9 }), (parts, size) => {
      const whole = parts.join("");
      const at = whole.indexOf(MARKER);
      const { out, word } = through(whole, size);
      if (at >= 0) {
        assertEquals(out, whole.slice(0, at));
        const [first, ...more] = whole.slice(at + MARKER.length).split("\n");
        if (more.length > 0 && first.length <= 16) assertEquals(word, first);
      } else {
        assert(
          whole.startsWith(out) && whole.length - out.length < MARKER.length,
        );
        assertEquals(word, undefined);
      }
    }),
  );
});

Deno.test("output is not delayed unless it may be the marker", () => {
  const end = endMarker(MARKER);
  assertEquals(end.push(encode("progress 10 %")), encode("progress 10 %"));
  assertEquals(end.push(encode("..abca")), encode(".."));
  assertEquals(end.push(encode("x")), encode("abcax"));
  assertEquals(end.word, undefined);
});

Deno.test("a word that is cut is waited for, and may be empty", () => {
  const end = endMarker(MARKER);
  end.push(encode(`${MARKER}1`));
  assertEquals(end.word, undefined);
  end.push(encode("37\n"));
  assertEquals(end.word, "137");
  const empty = endMarker(MARKER);
  empty.push(encode(`${MARKER}\n`));
  assertEquals(empty.word, "");
});

Deno.test("a chunk that is used again by its owner stays as it was", () => {
  const end = endMarker(MARKER);
  const chunk = encode("onabc");
  const out = end.push(chunk);
  chunk.fill(0);
  assertEquals(out, encode("on"));
  assertEquals(end.push(encode("!")), encode("abc!"));
});

Deno.test("a guest that never ends its last word fills no memory", () => {
  const end = endMarker(MARKER);
  end.push(encode(MARKER));
  end.push(encode("7".repeat(16)));
  assertEquals(end.word, undefined);
  end.push(encode("7"));
  assertEquals(end.word, "7".repeat(17));
  end.push(encode("7".repeat(100)));
  assertEquals(end.word, "7".repeat(17));
});
