import {
  assert,
  assertEquals,
  assertRejects,
  assertStringIncludes,
} from "@std/assert";
import { join } from "@std/path";
import { type Artifact, TITLE } from "../../lib/oci/artifact.ts";
import { oras, type PullOptions } from "../../lib/oci/oras.ts";
import { pullImage, startTransfer, totalBytes } from "../../lib/oci/pull.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { asDigest, sha256OfText } from "../../lib/system/digest.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { replace } from "../support/replace.ts";

const TEXT = "the image's bytes";
const IMAGE = "disk/image.qcow2";
const digest = asDigest("d".repeat(64));

function titled(title: string | undefined, size: number) {
  const annotations = title === undefined ? undefined : { [TITLE]: title };
  return { mediaType: "a/b", digest, size, annotations };
}

const ARTIFACT: Artifact = {
  reference: parseReference(`ghcr.io/owner/vm@${digest}`),
  digest,
  mediaType: "",
  layers: [
    titled(IMAGE, TEXT.length),
    titled("./notes", 5),
    titled(undefined, 9),
  ],
  config: titled("config.json", 2),
};

/** Pulls with an oras that does this. */
async function pull(
  work: (dir: string, options: PullOptions) => Promise<void>,
  { text = TEXT, sync = false } = {},
) {
  await using dir = await temporaryDir();
  const { path } = dir;
  const seen: [string, number][] = [];
  const client = {
    ...oras(),
    async pull(reference: Artifact["reference"], options: PullOptions) {
      assertEquals(reference, ARTIFACT.reference);
      await work(path, options);
    },
  };
  const pulled = await pullImage(client, ARTIFACT, {
    layer: { title: IMAGE, size: text.length, digest: "", sha256: "" },
    dir: path,
    sync,
    progress: {
      at: (bytes) => seen.push(["at", bytes]),
      end: (bytes) => seen.push(["end", bytes]),
    },
  });
  return { pulled, seen, path };
}

/** Writes what a pull of the artifact leaves. */
async function writeAll(dir: string, text = TEXT) {
  await Deno.mkdir(join(dir, "disk"), { recursive: true });
  await Deno.writeTextFile(join(dir, IMAGE), text);
  await Deno.writeTextFile(join(dir, "notes"), "notes");
}

/** The reason why what was pulled is not taken. */
async function refused(work: (dir: string) => Promise<void>) {
  const error = await failure(
    "checksum_mismatch",
    () => pull((dir) => work(dir)),
  );
  assertStringIncludes(error.hint!, "the registry is broken");
  const start = `Cannot take ${IMAGE} after the pull: `;
  assert(error.message.startsWith(start), error.message);
  return error.message.slice(start.length);
}

Deno.test("a pulled image comes with its path, size and digest, and the file that was hashed", async () => {
  let inode: number | null = 0;
  const { pulled, seen, path } = await pull(async (dir, options) => {
    assertEquals(options.dir, dir);
    // The image, the notes, and the configuration that has a title.
    assertEquals(options.maxBytes, TEXT.length + 7);
    options.onBytes?.(3);
    await writeAll(dir);
    inode = (await Deno.stat(join(dir, IMAGE))).ino;
  });
  assertEquals(pulled.path, join(path, "disk", "image.qcow2"));
  assertEquals(pulled.bytes, TEXT.length);
  assertEquals(pulled.sha256, await sha256OfText(TEXT));
  assertEquals([pulled.hashed.size, pulled.hashed.inode], [TEXT.length, inode]);
  assertEquals(seen, [["at", 3], ["end", TEXT.length + 7]]);
});

Deno.test("what lies there after a pull is not taken for the image if it is something else", async () => {
  assertEquals(await refused(async () => {}), "it is not there");
  const size = TEXT.length;
  assertEquals(
    await refused((dir) => writeAll(dir, TEXT + "!")),
    `it has ${size + 1} bytes, not ${size}`,
  );
  assertEquals(
    await refused(async (dir) => {
      await writeAll(dir);
      await Deno.rename(join(dir, IMAGE), join(dir, "moved"));
      await Deno.symlink(join(dir, "moved"), join(dir, IMAGE));
    }),
    "it is no plain file",
  );
  for (const name of ["notes", "config.json"]) {
    assertEquals(
      await refused(async (dir) => {
        await writeAll(dir);
        await Deno.remove(join(dir, name)).catch(() => {});
        await Deno.link(join(dir, IMAGE), join(dir, name));
      }),
      `it is the same file as ${name}`,
    );
  }
});

Deno.test("an image that is replaced between its hash and its use is not taken", async () => {
  const { stat } = Deno.FsFile.prototype;
  // What is asked when all of it has been read.
  using _system = replace(Deno.FsFile.prototype, {
    async stat(this: Deno.FsFile) {
      const seen = await stat.call(this);
      return { ...seen, ino: seen.ino! + 1 };
    },
  });
  assertEquals(await refused(writeAll), "it was replaced while it was hashed");
});

Deno.test("a pull that fails says why, whatever it has left", async () => {
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

Deno.test("an image that is to stay is synced while it comes, and a disk that fails then says so", async () => {
  using _system = replace(Deno.FsFile.prototype, {
    syncData: () => Promise.reject(new Error("broken disk")),
  });
  const text = "x".repeat(5 * 1024 * 1024);
  const work = (dir: string) => writeAll(dir, text);
  await assertRejects(() => pull(work, { text, sync: true }), Error, "broken");
  await pull(work, { text });
});

Deno.test("an image that cannot be read says so", async () => {
  const error = await pull(async (dir) => {
    await Deno.mkdir(join(dir, IMAGE), { recursive: true });
  }).catch((error) => error);
  assert(!(error instanceof Deno.errors.NotFound), String(error));
  assertStringIncludes(String(error), "directory");
});

Deno.test("a transfer is told with all that is known of it, ten times a second at most", () => {
  const events: object[] = [];
  const emit = (event: object) => events.push(event);
  let now = 1000;
  using _clock = replace(performance, { now: () => now });
  const known = { image: "vm", source: "oci://x", total: 50 };
  const { at, end } = startTransfer(emit, known);
  for (const time of [1099, 1100, 1199, 1200]) {
    now = time;
    at(time - 1000);
  }
  now = 1234.6;
  end(50);
  const { total: bytes, ...rest } = known;
  const { image, total } = known;
  assertEquals(events, [
    { type: "download_start", ...rest, bytes, resumed: 0, connections: 1 },
    { type: "download_progress", image, bytes: 100, total },
    { type: "download_progress", image, bytes: 200, total },
    { type: "download_end", ...rest, bytes: 50, elapsedMs: 235 },
  ]);
  startTransfer(emit, { ...known, resumed: 7, connections: 4 });
  const again = { ...rest, bytes, resumed: 7, connections: 4 };
  assertEquals(events.at(-1), { type: "download_start", ...again });
});

Deno.test("what a pull writes is the sum of the files that have a title", () => {
  assertEquals(totalBytes(ARTIFACT), TEXT.length + 7);
  const bare = { ...ARTIFACT, config: titled(undefined, 2) };
  assertEquals(totalBytes(bare), TEXT.length + 5);
  assertEquals(totalBytes({ ...bare, layers: [] }), 0);
});
