import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import { createEmitter, type ToolsmithEvent } from "../../lib/events.ts";
import {
  fetchImage,
  type FetchOptions,
} from "../../lib/hydrate/fetch_image.ts";
import { parseImageSource } from "../../lib/manifest/image_source.ts";
import { readFileIdentity } from "../../lib/system/files.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { replaceMethod } from "../support/replace_method.ts";

const ZEROS = "0".repeat(64);

/** Runs a test with a target directory and a source directory. */
function test(
  name: string,
  body: (dirs: { dir: string; beside: string }) => Promise<void>,
) {
  Deno.test(name, async () => {
    await using made = await temporaryDir();
    const [dir, beside] = ["dir", "beside"].map((it) => join(made.path, it));
    await Deno.mkdir(dir);
    await Deno.mkdir(beside);
    await body({ dir, beside });
  });
}

/** Fetches an image from a source into a directory. */
function fetchFrom(
  source: string,
  dir: string,
  options: FetchOptions & { events?: ToolsmithEvent[] } = {},
) {
  const { events = [], ...more } = options;
  const image = {
    name: "demo",
    source: parseImageSource(source, dir),
    sha256: ZEROS,
  };
  const emit = createEmitter((event) => events.push(event));
  return fetchImage({ image, dir, emit, ...more });
}

test("fetchImage() replaces a hard or symbolic link at the copy's path, without writing to its target", async ({ dir, beside }) => {
  const [path, victim] = [join(beside, "a.qcow2"), join(beside, "victim")];
  await Deno.writeTextFile(path, "an image");
  await Deno.writeTextFile(victim, "mine");
  for (const leave of [Deno.link, Deno.symlink]) {
    await Deno.remove(join(dir, "a.qcow2")).catch(() => {});
    await leave(victim, join(dir, "a.qcow2"));
    const { path: copy } = await fetchFrom(path, dir);
    assertEquals(await Deno.readTextFile(copy), "an image");
    assertEquals(await Deno.readTextFile(victim), "mine");
  }
});

test("fetchImage() copies a local image with its holes and renames .img to .qcow2", async ({ dir, beside }) => {
  const path = join(beside, "disk one.IMG");
  await Deno.writeTextFile(path, "an image");
  await Deno.truncate(path, 4 * 1024 * 1024);
  const bytes = await Deno.readFile(path);
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  const events: ToolsmithEvent[] = [];
  const copy = join(dir, "disk one.qcow2");
  assertEquals(await fetchFrom(path, dir, { events }), {
    path: copy,
    fileName: "disk one.qcow2",
    bytes: bytes.length,
    sha256: new Uint8Array(digest).toHex(),
    hashedFile: (await readFileIdentity(copy))!,
  });
  assertEquals(await Deno.readFile(copy), bytes);
  const { blocks } = await Deno.stat(copy);
  assert(blocks === null || blocks * 512 < 1024 * 1024, `${blocks} blocks`);
  assertEquals(events.map(({ type }) => type).slice(0, 1), ["download_start"]);
});

test("fetchImage() rejects a directory or missing file with its path and a hint", async ({ dir, beside }) => {
  const none = await expectFailure(
    "file_unreadable",
    () => fetchFrom(beside, dir),
  );
  assertEquals(
    none.message,
    `Cannot hydrate from ${beside}: not a regular file`,
  );
  assertEquals(
    none.hint,
    "set image.qcow2 in the manifest to the path of a file",
  );
  const relative =
    "check image.qcow2 in the manifest: a relative path starts at the manifest's directory, a registry reference starts with oci://";
  const registry =
    "write the registry reference in the manifest with the prefix oci://";
  const cases: [string, string][] = [
    [join(beside, "gone.qcow2"), relative],
    [join(beside, "images/gone:1"), relative],
    ["/work/.toolsmith/ghcr.io/owner/repo:1.0", registry],
    ["/work/.toolsmith/registry.example:5000/repo:1", registry],
    ["/work/.toolsmith/localhost/repo:1", relative],
    ["/work/.toolsmith/ghcr.io/owner/repo", relative],
  ];
  for (const [path, hint] of cases) {
    const error = await expectFailure(
      "source_not_found",
      () => fetchFrom(path, dir),
    );
    assertEquals(error.message, `Cannot hydrate from ${path}: no such file`);
    assertEquals(error.hint, hint, path);
  }
  assertEquals([...Deno.readDirSync(dir)], []);
});

test("fetchImage() reports a local image that disappears before it is read as missing", async ({ dir, beside }) => {
  const path = join(beside, "a.qcow2");
  await Deno.writeTextFile(path, "an image");
  const source = parseImageSource(path, dir);
  const image = { name: "demo", source, sha256: ZEROS };
  const emit = createEmitter(({ type }) => {
    if (type === "download_start") Deno.removeSync(path);
  });
  const error = await expectFailure(
    "source_not_found",
    () => fetchImage({ image, dir, emit }),
  );
  assertEquals(error.message, `Cannot hydrate from ${path}: no such file`);
});

test("fetchImage() syncs a copy to disk while copying, and throws the error of a failed sync", async ({ dir, beside }) => {
  using _system = replaceMethod(Deno.FsFile.prototype, {
    syncData: () => Promise.reject(new Error("broken disk")),
  });
  const path = join(beside, "a.qcow2");
  await Deno.writeFile(path, new Uint8Array(5 * 1024 * 1024).fill(7));
  await assertRejects(() => fetchFrom(path, dir), Error, "broken disk");
});

test("fetchImage() rejects with the abort reason when a copy is aborted", async ({ dir, beside }) => {
  const path = join(beside, "a.qcow2");
  await Deno.writeTextFile(path, "an image");
  const signal = AbortSignal.abort(new Error("enough"));
  const copy = () => fetchFrom(path, dir, { signal });
  await assertRejects(copy, Error, "enough");
});

test("fetchImage() accepts 1 to 99 connections and rejects other values", async ({ dir, beside }) => {
  const path = join(beside, "a.qcow2");
  await Deno.writeTextFile(path, "an image");
  const copy = async (value: string, connections?: number) => {
    await Deno.remove(join(dir, "a.qcow2")).catch(() => {});
    const env = new Map([["TOOLSMITH_CONNECTIONS", value]]);
    const { bytes } = await fetchFrom(path, dir, { env, connections });
    assertEquals(bytes, 8);
  };
  for (const value of ["", "1", "9", "10", "99"]) await copy(value);
  for (const value of ["0", "100", "01", "1.5", "-1", "many"]) {
    const { message, hint } = await expectFailure("usage", () => copy(value));
    assertEquals(message, `Cannot use TOOLSMITH_CONNECTIONS=${value}`);
    assertEquals(hint, "use a number from 1 to 99");
    // The connections option overrides a bad variable.
    await copy(value, 2);
  }
  for (const connections of [0, 100, 1.5, -1, NaN]) {
    const { message } = await expectFailure(
      "usage",
      () => copy("2", connections),
    );
    assertEquals(message, `Cannot use ${connections} connections`);
  }
  const long = await expectFailure("usage", () => copy("9".repeat(80)));
  assertEquals(
    long.message,
    `Cannot use TOOLSMITH_CONNECTIONS=${"9".repeat(40)}…`,
  );
});

test("fetchImage() emits a retry event with the error for each new attempt", async ({ dir }) => {
  // Nothing listens there, unlike at a port that was free a moment ago.
  const source = "https://127.0.0.1:2/a.qcow2";
  const events: ToolsmithEvent[] = [];
  const { code, message } = await expectFailure(
    "connection_failed",
    () => fetchFrom(source, dir, { events, retries: 2, retryDelayMs: 4 }),
  );
  const told = events.filter((event) => event.type === "retry");
  assertEquals(told.length, 2);
  for (const [nth, event] of told.entries()) {
    const { timestamp: _, delayMs, ...fields } = event;
    assertEquals(fields, {
      ...{ type: "retry", image: "demo", code, message },
      ...{ attempt: nth + 2, attempts: 3 },
    });
    // The delay doubles, with a jitter of a quarter.
    const usual = 4 * 2 ** nth;
    assert(delayMs >= usual * 0.75 && delayMs <= usual * 1.25, `${delayMs}`);
  }
});
