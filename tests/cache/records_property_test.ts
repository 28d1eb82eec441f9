/**
 * Properties of the cache's JSON parsers.
 */
import { assertEquals } from "@std/assert";
import fc from "fast-check";
import { parseVerificationRecord } from "../../lib/cache/_verification_record.ts";
import { parseSnapshotMetadata } from "../../lib/cache/snapshots.ts";
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

Deno.test("parseVerificationRecord() returns any valid record unchanged", () => {
  fc.assert(fc.property(record, (record) => {
    assertEquals(parseVerificationRecord(record), record);
  }));
});

Deno.test("parseVerificationRecord() drops an unknown boot loader", () => {
  fc.assert(fc.property(record, fc.jsonValue(), (record, value) => {
    const known = parseVerificationRecord({ ...record, boot: { value } });
    assertEquals(known?.boot, undefined);
    const other = parseVerificationRecord({ ...record, boot: value });
    assertEquals(other?.digest, record.digest);
  }));
});

Deno.test("parseVerificationRecord() keeps a valid update, and drops another", () => {
  const size = fc.nat();
  const update = fc.record({ from: fc.string(), bytes: size, total: size });
  fc.assert(fc.property(record, update, (record, update) => {
    assertEquals(parseVerificationRecord({ ...record, update }), {
      ...record,
      update,
    });
    const other = { ...update, total: "1" };
    assertEquals(parseVerificationRecord({ ...record, update: other }), record);
  }));
});

Deno.test("parseSnapshotMetadata() returns any valid metadata unchanged", () => {
  const metadata = fc.record({
    state: fingerprint,
    memory: fingerprint,
    disk: fingerprint,
  });
  fc.assert(fc.property(metadata, (metadata) => {
    assertEquals(parseSnapshotMetadata({ ...metadata }), metadata);
  }));
});

Deno.test("parseVerificationRecord() and parseSnapshotMetadata() never throw, for any JSON", () => {
  const anything = fc.oneof(
    fc.dictionary(fc.string(), fc.jsonValue()),
    // A valid record with one field replaced.
    fc.tuple(record, fc.nat(7), fc.jsonValue()).map(([record, at, value]) => {
      const key = Object.keys(record)[at];
      return { ...record, [key]: value };
    }),
  );
  fc.assert(fc.property(anything, (value) => {
    const record = parseVerificationRecord(value);
    if (record) assertEquals(parseVerificationRecord({ ...record }), record);
    const metadata = parseSnapshotMetadata(value);
    if (metadata) {
      assertEquals(parseSnapshotMetadata({ ...metadata }), metadata);
    }
  }));
});

Deno.test("parseVerificationRecord() returns undefined for a file name with a path or another extension", () => {
  const paths = fc.tuple(fc.string(), fc.constantFrom("/", "\\"), fc.string())
    .map(([a, separator, b]) => `${a}${separator}${b}.qcow2`);
  const other = fc.string().filter((name) => !/\.qcow2$/i.test(name));
  fc.assert(
    fc.property(record, fc.oneof(paths, other), (record, file) => {
      assertEquals(parseVerificationRecord({ ...record, file }), undefined);
    }),
  );
});
