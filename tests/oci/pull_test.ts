import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { join } from "@std/path";
import { type Artifact, TITLE_ANNOTATION } from "../../lib/oci/artifact.ts";
import { orasClient, type PullOptions } from "../../lib/oci/oras_client.ts";
import {
  pullImage,
  reportDownloadStart,
  totalPullBytes,
} from "../../lib/oci/pull.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { sha256OfText, sha256ToDigest } from "../../lib/system/digest.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { replaceMethod } from "../support/replace_method.ts";

const TEXT = "the image's bytes";
const IMAGE = "disk/image.qcow2";
const digest = sha256ToDigest("d".repeat(64));

function titled(title: string | undefined, size: number) {
  const annotations = title === undefined
    ? undefined
    : { [TITLE_ANNOTATION]: title };
  return { mediaType: "a/b", digest, size, annotations };
}

const ARTIFACT: Artifact = {
  reference: parseReference(`ghcr.io/owner/vm@${digest}`),
  digest,
  layers: [
    titled(IMAGE, TEXT.length),
    titled("./notes", 5),
    titled(undefined, 9),
  ],
  config: titled("config.json", 2),
};

/** Pulls the image with a fake oras. */
async function pull(
  work: (dir: string, options: PullOptions) => Promise<void>,
  { text = TEXT, sync = false } = {},
) {
  await using dir = await temporaryDir();
  const { path } = dir;
  const seen: [string, number][] = [];
  const client = {
    ...orasClient(),
    async pull(reference: Artifact["reference"], options: PullOptions) {
      assertEquals(reference, ARTIFACT.reference);
      await work(path, options);
    },
  };
  const pulled = await pullImage(client, ARTIFACT, {
    layer: { title: IMAGE, size: text.length, digest: "", sha256: "" },
    dir: path,
    syncToDisk: sync,
    progress: {
      reportBytes: (bytes) => seen.push(["at", bytes]),
      reportEnd: (bytes) => seen.push(["end", bytes]),
    },
  });
  return { pulled, seen, path };
}

/** Writes the files of the artifact, as a pull does. */
async function writeAll(dir: string, text = TEXT) {
  await Deno.mkdir(join(dir, "disk"), { recursive: true });
  await Deno.writeTextFile(join(dir, IMAGE), text);
  await Deno.writeTextFile(join(dir, "notes"), "notes");
}

/** Returns the reason why pullImage() rejects the pulled files. */
async function refused(work: (dir: string) => Promise<void>) {
  const error = await expectFailure(
    "checksum_mismatch",
    () => pull((dir) => work(dir)),
  );
  assertStringIncludes(error.hint!, "check the registry");
  const start = `Cannot use ${IMAGE} after the pull: `;
  assert(error.message.startsWith(start), error.message);
  return error.message.slice(start.length);
}

Deno.test("pullImage() returns the image's path, size, digest and hashed file", async () => {
  let inode: number | null = 0;
  const { pulled, seen, path } = await pull(async (dir, options) => {
    assertEquals(options.dir, dir);
    // The image, the notes and the titled config.
    assertEquals(options.maxBytes, TEXT.length + 7);
    options.onBytes?.(3);
    await writeAll(dir);
    inode = (await Deno.stat(join(dir, IMAGE))).ino;
  });
  assertEquals(pulled.path, join(path, "disk", "image.qcow2"));
  assertEquals(pulled.bytes, TEXT.length);
  assertEquals(pulled.sha256, await sha256OfText(TEXT));
  assertEquals([pulled.hashedFile.size, pulled.hashedFile.inode], [
    TEXT.length,
    inode,
  ]);
  assertEquals(seen, [["at", 3], ["end", TEXT.length + 7]]);
});

Deno.test("pullImage() rejects a missing, resized, linked or shared image file after the pull", async () => {
  assertEquals(await refused(async () => {}), "the file is missing");
  const size = TEXT.length;
  assertEquals(
    await refused((dir) => writeAll(dir, TEXT + "!")),
    `the file has ${size + 1} bytes, expected ${size}`,
  );
  assertEquals(
    await refused(async (dir) => {
      await writeAll(dir);
      await Deno.rename(join(dir, IMAGE), join(dir, "moved"));
      await Deno.symlink(join(dir, "moved"), join(dir, IMAGE));
    }),
    "not a regular file",
  );
  for (const name of ["notes", "config.json"]) {
    assertEquals(
      await refused(async (dir) => {
        await writeAll(dir);
        await Deno.remove(join(dir, name)).catch(() => {});
        await Deno.link(join(dir, IMAGE), join(dir, name));
      }),
      `the file is the same as ${name}`,
    );
  }
});

Deno.test("pullImage() rejects an image file that was replaced after it was hashed", async () => {
  const { stat } = Deno.FsFile.prototype;
  // Called after the last byte was read.
  using _system = replaceMethod(Deno.FsFile.prototype, {
    async stat(this: Deno.FsFile) {
      const seen = await stat.call(this);
      return { ...seen, ino: seen.ino! + 1 };
    },
  });
  assertEquals(
    await refused(writeAll),
    "the file was replaced while it was hashed",
  );
});

Deno.test("pullImage() throws oras's error, whatever files the failed pull left", async () => {
  for (const leave of [async () => {}, writeAll]) {
    await assertRejects(
      () =>
        pull(async (dir) => {
          await leave(dir);
          throw new Error("cut");
        }),
      Error,
      "cut",
    );
  }
});

Deno.test("pullImage() can sync the image to disk during the pull, and throws a disk error", async () => {
  using _system = replaceMethod(Deno.FsFile.prototype, {
    syncData: () => Promise.reject(new Error("broken disk")),
  });
  const text = "x".repeat(5 * 1024 * 1024);
  const work = (dir: string) => writeAll(dir, text);
  await assertRejects(() => pull(work, { text, sync: true }), Error, "broken");
  await pull(work, { text });
});

Deno.test("pullImage() reports an image path that is a directory", async () => {
  const error = await pull(async (dir) => {
    await Deno.mkdir(join(dir, IMAGE), { recursive: true });
  }).catch((error) => error);
  assert(!(error instanceof Deno.errors.NotFound), String(error));
  assertStringIncludes(String(error), "directory");
});

Deno.test("reportDownloadStart() emits start, end and at most ten progress events a second", () => {
  const events: object[] = [];
  const emit = (event: object) => events.push(event);
  let now = 1000;
  using _clock = replaceMethod(performance, { now: () => now });
  const known = { image: "vm", source: "oci://x", total: 50 };
  const { reportBytes, reportEnd } = reportDownloadStart(emit, known);
  for (const time of [1099, 1100, 1199, 1200]) {
    now = time;
    reportBytes(time - 1000);
  }
  now = 1234.6;
  reportEnd(50);
  const { total: bytes, ...rest } = known;
  const { image, total } = known;
  assertEquals(events, [
    { type: "download_start", ...rest, bytes, resumed: 0, connections: 1 },
    { type: "download_progress", image, bytes: 100, total },
    { type: "download_progress", image, bytes: 200, total },
    { type: "download_end", ...rest, bytes: 50, elapsedMs: 235 },
  ]);
  reportDownloadStart(emit, { ...known, resumed: 7, connections: 4 });
  const again = { ...rest, bytes, resumed: 7, connections: 4 };
  assertEquals(events.at(-1), { type: "download_start", ...again });
});

Deno.test("totalPullBytes() sums the sizes of all titled files", () => {
  assertEquals(totalPullBytes(ARTIFACT), TEXT.length + 7);
  const bare = { ...ARTIFACT, config: titled(undefined, 2) };
  assertEquals(totalPullBytes(bare), TEXT.length + 5);
  assertEquals(totalPullBytes({ ...bare, layers: [] }), 0);
});
