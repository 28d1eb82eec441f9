import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import type { ImageStaging } from "../../lib/cache/entry.ts";
import { emitter, type ToolsmithEvent } from "../../lib/events.ts";
import type { FetchedImage } from "../../lib/hydrate/fetch.ts";
import { placeFetched } from "../../lib/hydrate/_place.ts";
import { fingerprint } from "../../lib/system/files.ts";
import { temporaryDir } from "../support/directory.ts";
import { dataOffset, qcow2, writeImage } from "../support/qcow2.ts";

const DIGEST = "d".repeat(64);
const source = { kind: "file", path: "/images/a.qcow2" } as const;

/** An image whose first sector has a program, or has none. */
function imageOf(boots: boolean): DataView {
  const sector = new Uint8Array(512);
  if (boots) sector.set([0x55, 0xaa], 510);
  sector[0] = 0x90;
  const tables = [[BigInt(dataOffset({}))]];
  return qcow2({ tables, data: sector });
}

/** Places an image; returns what was told, and what the cache was given. */
async function placed(boots: boolean, arch?: FetchedImage["arch"]) {
  await using dir = await temporaryDir();
  const path = join(dir.path, "arrived");
  await writeImage(path, imageOf(boots));
  const hashed = (await fingerprint(path))!;
  const events: ToolsmithEvent[] = [];
  const given: unknown[] = [];
  const staging: ImageStaging = {
    dir: dir.path,
    place(file) {
      given.push({ ...file, path: file.path === path });
      return Promise.resolve("/cache/a.qcow2");
    },
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
  const fetched = { path, name: "a.qcow2", bytes: 77, actual: DIGEST, hashed };
  const result = await placeFetched({ name: "demo", source }, {
    staging,
    fetched: { ...fetched, ...arch && { arch } },
    emit: emitter((event) => events.push(event)),
  });
  const told = events.map(({ timestamp: _, ...fields }) => fields);
  return { result, told, given, hashed };
}

Deno.test("what an image boots with is told, and goes into its record", async () => {
  const cases = [
    [true, undefined, { arch: "x86_64", firmware: "bios" }],
    // Who publishes it knows better than its disk says.
    [true, "aarch64", { arch: "aarch64", firmware: "bios" }],
    [false, "aarch64", { arch: "aarch64" }],
    [false, undefined, undefined],
  ] as const;
  for (const [boots, arch, boot] of cases) {
    const { result, told, given, hashed } = await placed(boots, arch);
    assertEquals(result, { path: "/cache/a.qcow2", boot });
    const file = { path: true, name: "a.qcow2", source: source.path };
    assertEquals(given, [{ ...file, boot, hashed }]);
    const image = "demo";
    const digest = `sha256:${DIGEST}`;
    assertEquals(told, [
      { type: "checksum_verified", image, digest, bytes: 77 },
      {
        ...{ type: "cache_placed", image, path: "/cache/a.qcow2" },
        ...{ digest, bytes: 77 },
      },
    ]);
  }
});
