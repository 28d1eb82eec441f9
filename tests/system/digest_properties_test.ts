/**
 * Property tests of digests: arbitrary bytes and text.
 */
import { assertEquals } from "@std/assert";
import { createHash } from "node:crypto";
import fc from "fast-check";
import {
  digestToSha256,
  parseSha256,
  sha256OfChunks,
  sha256OfText,
  sha256ToDigest,
} from "../../lib/system/digest.ts";

const hex = fc.stringMatching(/^[0-9a-f]{64}$/);

Deno.test("parseSha256() reads back a digest in lower and upper case", () => {
  fc.assert(fc.property(hex, (digits) => {
    assertEquals(digestToSha256(sha256ToDigest(digits)), digits);
    assertEquals(parseSha256(sha256ToDigest(digits)), digits);
    assertEquals(
      parseSha256(` ${sha256ToDigest(digits).toUpperCase()}\n`),
      digits,
    );
  }));
});

Deno.test("parseSha256() rejects any text that is not a digest", () => {
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

Deno.test("sha256OfChunks() computes the same digest however the bytes are split, with both engines", async () => {
  const chunks = fc.array(fc.uint8Array({ maxLength: 300 }));
  await fc.assert(fc.asyncProperty(chunks, async (chunks) => {
    const whole = await new Blob(chunks.map((it) => new Uint8Array(it)))
      .bytes();
    const digest = await crypto.subtle.digest("SHA-256", whole);
    for (const engine of ["std", "runtime"] as const) {
      // All chunks share one buffer, like those of readFileChunks().
      const buffer = new Uint8Array(300);
      const bytes = (async function* () {
        for (const chunk of chunks) {
          buffer.set(chunk);
          yield buffer.subarray(0, chunk.length);
        }
      })();
      assertEquals(
        await sha256OfChunks(bytes, engine),
        new Uint8Array(digest).toHex(),
      );
    }
  }));
});

Deno.test("sha256OfText() hashes the UTF-8 bytes of a text", async () => {
  await fc.assert(
    fc.asyncProperty(fc.string({ unit: "grapheme" }), async (text) => {
      const expected = createHash("sha256").update(text, "utf8").digest("hex");
      assertEquals(await sha256OfText(text), expected);
    }),
  );
});
