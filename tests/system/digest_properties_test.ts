/**
 * Digests, whatever the bytes and the text are.
 */
import { assertEquals } from "@std/assert";
import { createHash } from "node:crypto";
import fc from "fast-check";
import {
  asDigest,
  parseSha256,
  sha256,
  sha256Hex,
  sha256OfText,
} from "../../lib/system/digest.ts";

const hex = fc.stringMatching(/^[0-9a-f]{64}$/);

Deno.test("a digest is read as it was written, in either case", () => {
  fc.assert(fc.property(hex, (digits) => {
    assertEquals(sha256Hex(asDigest(digits)), digits);
    assertEquals(parseSha256(asDigest(digits)), digits);
    assertEquals(parseSha256(` ${asDigest(digits).toUpperCase()}\n`), digits);
  }));
});

Deno.test("what is no digest is none", () => {
  const near = fc.tuple(hex, fc.nat(63), fc.string({ maxLength: 3 }))
    .map(([digits, at, text]) =>
      digits.slice(0, at) + text + digits.slice(at + 1)
    );
  fc.assert(fc.property(fc.oneof(fc.string(), near), (text) => {
    const digits = text.trim().replace(/^sha256:/i, "");
    const isOne = digits.length === 64 && /^[0-9a-f]+$/i.test(digits);
    assertEquals(parseSha256(text) !== undefined, isOne);
  }));
});

Deno.test("both engines compute the digest of the bytes, however they are split", async () => {
  const chunks = fc.array(fc.uint8Array({ maxLength: 300 }));
  await fc.assert(fc.asyncProperty(chunks, async (chunks) => {
    const whole = await new Blob(chunks.map((it) => new Uint8Array(it)))
      .bytes();
    const digest = await crypto.subtle.digest("SHA-256", whole);
    for (const engine of ["std", "runtime"] as const) {
      // One buffer for all chunks, as files are read.
      const buffer = new Uint8Array(300);
      const bytes = (async function* () {
        for (const chunk of chunks) {
          buffer.set(chunk);
          yield buffer.subarray(0, chunk.length);
        }
      })();
      assertEquals(await sha256(bytes, engine), new Uint8Array(digest).toHex());
    }
  }));
});

Deno.test("a text's digest is that of its UTF-8", async () => {
  await fc.assert(
    fc.asyncProperty(fc.string({ unit: "grapheme" }), async (text) => {
      const expected = createHash("sha256").update(text, "utf8").digest("hex");
      assertEquals(await sha256OfText(text), expected);
    }),
  );
});
