import { assertEquals } from "@std/assert";
import fc from "fast-check";
import {
  formatDetachedVmRecord,
  parseDetachedVmRecord,
} from "../../lib/vm/detached_record.ts";
import { record } from "../support/detached_vm.ts";

Deno.test("parseDetachedVmRecord() rejects a record with any invalid field", () => {
  const wrong: Record<string, unknown>[] = [
    { layout: 2 },
    { pid: 1 },
    { pid: -1 },
    { pid: 4.5 },
    { folder: undefined },
    { folder: 7 },
    { accelerator: "xen" },
    { memory: "512" },
    { network: 1 },
    { digest: 1 },
    { token: 1 },
    { shares: [{ path: "/", tag: "a" }] },
    { shares: {} },
  ];
  const good = JSON.parse(formatDetachedVmRecord(record));
  assertEquals(parseDetachedVmRecord(good), record);
  for (const fields of wrong) {
    assertEquals(
      parseDetachedVmRecord({ ...good, ...fields }),
      undefined,
      JSON.stringify(fields),
    );
  }
});

Deno.test("parseDetachedVmRecord() reads what formatDetachedVmRecord() wrote and never throws", () => {
  const share = fc.record({
    path: fc.string(),
    tag: fc.string(),
    writable: fc.boolean(),
  });
  const count = fc.nat();
  const records = fc.record({
    layout: fc.constant(1 as const),
    image: fc.string(),
    pid: fc.integer({ min: 2 }),
    dir: fc.string(),
    version: fc.string(),
    accelerator: fc.constantFrom(
      "kvm" as const,
      "hvf" as const,
      "tcg" as const,
    ),
    memory: count,
    cpus: count,
    shares: fc.array(share),
    network: fc.boolean(),
    since: fc.string(),
    graceMs: count,
    digest: fc.string(),
    token: fc.string(),
  }, {
    requiredKeys: [
      ...["layout", "image", "pid", "dir", "version", "accelerator"] as const,
      ...["memory", "cpus", "shares", "network", "since", "graceMs"] as const,
    ],
    noNullPrototype: true,
  });
  fc.assert(fc.property(records, (it) => {
    const json = JSON.parse(formatDetachedVmRecord(it));
    assertEquals(parseDetachedVmRecord(json), it);
  }));
  const objects = fc.dictionary(fc.string(), fc.jsonValue());
  fc.assert(fc.property(objects, (json) => {
    assertEquals(parseDetachedVmRecord(json), undefined);
  }));
});
