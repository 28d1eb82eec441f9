/**
 * What is read from the cache, whatever lies there.
 */
import { assertEquals } from "@std/assert";
import fc from "fast-check";
import { formatRecord, parseRecord } from "../../lib/cache/_record.ts";
import { parseMetadata } from "../../lib/cache/_snapshot_metadata.ts";
import type { Digest } from "../../lib/system/digest.ts";

const time = fc.option(fc.integer({ min: 0 }), { nil: null });
const fingerprint = fc.record({
  size: fc.nat(),
  mtime: time,
  ctime: time,
  inode: time,
});
const sha256 = fc.stringMatching(/^[0-9a-f]{64}$/);
const boot = fc.record({
  arch: fc.constantFrom("x86_64" as const, "aarch64" as const),
  firmware: fc.constantFrom("bios" as const, "uefi" as const),
}, { requiredKeys: [] });
const record = fc.record({
  file: fc.stringMatching(/^[^/\\]{1,40}\.qcow2$/),
  digest: sha256.map((hex): Digest => `sha256:${hex}`),
  source: fc.string(),
  verified: fc.string(),
  boot,
}, { requiredKeys: ["file", "digest", "source", "verified"] }).chain((about) =>
  fingerprint.map((file) => ({ ...about, ...file }))
);

Deno.test("a verification record is read as it was written", () => {
  fc.assert(fc.property(record, (record) => {
    assertEquals(parseRecord(formatRecord(record)), record);
  }));
});

Deno.test("a record whose boot loader is not understood is one without it", () => {
  fc.assert(fc.property(record, fc.jsonValue(), (record, value) => {
    const text = JSON.stringify({ ...record, boot: value });
    const known = parseRecord(JSON.stringify({ ...record, boot: { value } }));
    assertEquals(known?.boot, undefined);
    assertEquals(parseRecord(text)?.digest, record.digest);
  }));
});

Deno.test("a snapshot's metadata is read as it was written", () => {
  const metadata = fc.record({
    state: fingerprint,
    memory: fc.option(fingerprint, { nil: undefined }),
    disk: fingerprint,
  });
  fc.assert(fc.property(metadata, (metadata) => {
    assertEquals(parseMetadata(JSON.stringify(metadata)), metadata);
  }));
});

Deno.test("a record or metadata of anything else is none, and no error", () => {
  const anything = fc.oneof(
    fc.string(),
    fc.json(),
    fc.jsonValue().map((value) => JSON.stringify(value)),
    // One field of a good one is something else.
    fc.tuple(record, fc.nat(7), fc.jsonValue()).map(([record, at, value]) => {
      const key = Object.keys(record)[at];
      return JSON.stringify({ ...record, [key]: value });
    }),
  );
  fc.assert(fc.property(anything, (text) => {
    const record = parseRecord(text);
    if (record) assertEquals(parseRecord(formatRecord(record)), record);
    const metadata = parseMetadata(text);
    if (metadata) {
      assertEquals(parseMetadata(JSON.stringify(metadata)), metadata);
    }
  }));
});

Deno.test("a record that points out of its directory, or names another kind of file, is none", () => {
  const paths = fc.tuple(fc.string(), fc.constantFrom("/", "\\"), fc.string())
    .map(([a, separator, b]) => `${a}${separator}${b}.qcow2`);
  const other = fc.string().filter((name) => !/\.qcow2$/i.test(name));
  fc.assert(
    fc.property(record, fc.oneof(paths, other), (record, file) => {
      const text = JSON.stringify({ ...record, file });
      assertEquals(parseRecord(text), undefined);
    }),
  );
});
