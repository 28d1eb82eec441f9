import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import type { ImageStaging } from "../../lib/cache/entry.ts";
import { createEmitter, type ToolsmithEvent } from "../../lib/events.ts";
import type { FetchedImage } from "../../lib/hydrate/_fetch_job.ts";
import { addToCache } from "../../lib/hydrate/_add_to_cache.ts";
import { readFileIdentity } from "../../lib/system/files.ts";
import { temporaryDir } from "../support/directory.ts";
import { dataOffset, makeQcow2, writeImage } from "../support/qcow2.ts";

const DIGEST = "d".repeat(64);
const source = { kind: "file", path: "/images/a.qcow2" } as const;

/** An image with or without boot code in the first sector. */
function imageOf(boots: boolean): DataView {
  const sector = new Uint8Array(512);
  if (boots) sector.set([0x55, 0xaa], 510);
  sector[0] = 0x90;
  const tables = [[BigInt(dataOffset({}))]];
  return makeQcow2({ tables, data: sector });
}

/** Adds an image to a fake cache; returns the events and the committed files. */
async function placed(boots: boolean, arch?: FetchedImage["arch"]) {
  await using dir = await temporaryDir();
  const path = join(dir.path, "arrived");
  await writeImage(path, imageOf(boots));
  const hashedFile = (await readFileIdentity(path))!;
  const events: ToolsmithEvent[] = [];
  const given: unknown[] = [];
  const staging: ImageStaging = {
    dir: dir.path,
    commit(file) {
      given.push({ ...file, path: file.path === path });
      return Promise.resolve("/cache/a.qcow2");
    },
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
  const fetched = {
    path,
    fileName: "a.qcow2",
    bytes: 77,
    sha256: DIGEST,
    hashedFile,
  };
  const emit = createEmitter((event) => events.push(event));
  const image = { name: "demo", source };
  const result = await addToCache(image, { ...fetched, arch }, staging, {
    emit,
  });
  const told = events.map(({ timestamp: _, ...fields }) => fields);
  return { result, told, given, hashedFile };
}

Deno.test("addToCache() detects the boot loader, stores it in the verification record, and emits cache events", async () => {
  const cases = [
    [true, undefined, { arch: "x86_64", firmware: "bios" }],
    // The publisher's statement takes precedence over the disk.
    [true, "aarch64", { arch: "aarch64", firmware: "bios" }],
    [false, "aarch64", { arch: "aarch64" }],
    [false, undefined, undefined],
  ] as const;
  for (const [boots, arch, boot] of cases) {
    const { result, told, given, hashedFile } = await placed(boots, arch);
    assertEquals(result, { path: "/cache/a.qcow2", boot });
    const file = { path: true, fileName: "a.qcow2", source: source.path };
    assertEquals(given, [{ ...file, boot, hashedFile }]);
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
