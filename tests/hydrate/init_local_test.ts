import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import { dirname, join } from "@std/path";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { init, type InitOptions } from "../../lib/hydrate/init.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { makeQcow2, writeImage } from "../support/qcow2.ts";

/** What each test gets. */
interface Bench {
  /** The workspace, the base of relative paths. */
  cwd: string;
  /** Writes an image; returns its digest. */
  image: (path: string) => Promise<string>;
  /** Runs init without a network. */
  write: (options: InitOptions) => ReturnType<typeof init>;
  /** The manifest's text. */
  text: (path?: string) => Promise<string>;
}

/** Runs a test with a workspace. */
function test(name: string, body: (bench: Bench) => Promise<void>) {
  Deno.test(name, async () => {
    await using dir = await temporaryDir();
    const cwd = join(dir.path, "work");
    await Deno.mkdir(cwd);
    const env = new Map<string, string>();
    await body({
      cwd,
      async image(path) {
        const whole = join(cwd, path);
        await Deno.mkdir(dirname(whole), { recursive: true });
        await writeImage(whole, makeQcow2({}));
        const bytes = await Deno.readFile(whole);
        const digest = await crypto.subtle.digest("SHA-256", bytes);
        return new Uint8Array(digest).toHex();
      },
      write: (options) => init({ cwd, env, ...options }),
      text: (path = ".toolsmith/tools.json") =>
        Deno.readTextFile(join(cwd, path)),
    });
  });
}

const REF = "https://images.invalid/a.qcow2";

Deno.test("init requires exactly one of ref and file, with a hint", async () => {
  for (const options of [{}, { ref: REF, file: "a.qcow2" }]) {
    const { message, hint } = await expectFailure("usage", () => init(options));
    assertEquals(
      message,
      "Cannot write a manifest: pass exactly one of --ref and --file",
    );
    assertEquals(
      hint,
      "run: toolsmith init --ref oci://REGISTRY/OWNER/REPO:VERSION",
    );
  }
});

test("init writes the manifest to its option, TOOLSMITH_MANIFEST or .toolsmith/tools.json", async (bench) => {
  const { cwd, image, write } = bench;
  await image("a.qcow2");
  const env = new Map([["TOOLSMITH_MANIFEST", "variable.json"]]);
  const cases: [InitOptions, string][] = [
    [{}, ".toolsmith/tools.json"],
    [{ env }, "variable.json"],
    [{ env, manifest: "option.json" }, "option.json"],
  ];
  for (const [options, expected] of cases) {
    const { path, manifest } = await write({ file: "a.qcow2", ...options });
    assertEquals([path, manifest.path], Array(2).fill(join(cwd, expected)));
    const source = { kind: "file", path: join(cwd, "a.qcow2") } as const;
    assertEquals(manifest.image.source, source);
  }
});

test("init writes a local image's path relative to the manifest, never like a URL or registry reference", async (bench) => {
  const { cwd, image, write, text } = bench;
  const cases: [string, string, string][] = [
    ["a.qcow2", "tools.json", "./a.qcow2"],
    ["images/a.qcow2", "tools.json", "./images/a.qcow2"],
    ["a.qcow2", "deep/er/tools.json", "../../a.qcow2"],
    ["oci:a.qcow2", "tools.json", "./oci:a.qcow2"],
    ["..a.qcow2", "tools.json", "./..a.qcow2"],
  ];
  for (const [file, manifest, expected] of cases) {
    const sha256 = await image(file);
    const { path } = await write({ file, manifest });
    const written = JSON.parse(await text(manifest)).image;
    assertEquals([written.qcow2, written.qcow2_sha256], [expected, sha256]);
    assertEquals(
      written.name,
      file.split("/").at(-1)!.replace(/\W/g, "-")
        .replace(/^-+|-qcow2$/g, ""),
    );
    await Deno.remove(join(cwd, manifest));
    assertEquals(path, join(cwd, manifest));
  }
});

test("init hashes a local image and emits checksum_progress", async ({ image, write }) => {
  await image("a.qcow2");
  const events: ToolsmithEvent[] = [];
  const onEvent = (event: ToolsmithEvent) => events.push(event);
  await write({ file: "a.qcow2", onEvent });
  const [{ timestamp: _, ...fields }] = events;
  const size = 1536;
  assertEquals(fields as unknown, {
    type: "checksum_progress",
    ...{ image: "a", bytes: size, total: size },
  });
});

test("init overwrites an existing manifest only with update", async (bench) => {
  const { cwd, image, write, text } = bench;
  const sha256 = await image("a.qcow2");
  await image("b.qcow2");
  const file = "a.qcow2";
  assertEquals((await write({ file })).outcome, "created");
  const before = await text();
  const path = join(cwd, ".toolsmith/tools.json");
  const { message, hint } = await expectFailure("usage", () => write({ file }));
  assertEquals(
    message,
    `Cannot write manifest ${path}: the file already exists`,
  );
  assertEquals(
    hint,
    "pass --update to replace the image in the existing manifest",
  );
  // A dangling link counts as an existing manifest.
  await Deno.symlink("nowhere", join(cwd, "link.json"));
  await expectFailure("usage", () => write({ file, manifest: "link.json" }));
  // A path below a file.
  const below = () => write({ file, manifest: "a.qcow2/tools.json" });
  const cannot = await expectFailure("file_unreadable", below);
  assertMatch(
    cannot.message,
    /^Cannot write manifest .*a\.qcow2\/tools\.json: /,
  );
  assertEquals(await text(), before);

  const update = true;
  assertEquals((await write({ file, update })).outcome, "unchanged");
  const other = await write({ file: "b.qcow2", update });
  assertEquals([other.outcome, other.manifest.image.name], ["updated", "a"]);
  const named = await write({ file, update, name: "new" });
  assertEquals(named.manifest.image.name, "new");
  assertEquals(named.manifest.image.sha256, sha256);
  // With update, a missing manifest is created.
  const manifest = "fresh.json";
  assertEquals((await write({ file, update, manifest })).outcome, "created");
});

test("init compares a local image with the given digest, and rejects a malformed one", async (bench) => {
  const { cwd, image, write } = bench;
  const file = "a.qcow2";
  const digest = await image(file);
  const wrong = "0".repeat(64);
  const error = await expectFailure(
    "checksum_mismatch",
    () => write({ file, sha256: wrong }),
  );
  assertEquals(
    error.message,
    `Checksum mismatch for ${
      join(cwd, file)
    }: expected ${wrong}, actual ${digest}`,
  );
  assertEquals(
    error.hint,
    "find out which digest is right before using the image",
  );
  for (const sha256 of ["abc", "", digest + "0"]) {
    const bad = await expectFailure("usage", () => write({ file, sha256 }));
    assertEquals(bad.message, `--sha256 ${sha256} is not a SHA-256`);
    assertEquals(
      bad.hint,
      "pass the 64 hex digits that `sha256sum IMAGE` prints",
    );
  }
  assertEquals([...Deno.readDirSync(cwd)].map(({ name }) => name), [file]);
  const sha256 = `SHA256:${digest.toUpperCase()}`;
  assertEquals((await write({ file, sha256 })).manifest.image.sha256, digest);
});

test("init accepts sha256sums only as an https:// URL, for an https:// image", async ({ write }) => {
  const sha256sums = "https://images.invalid/SHA256SUMS";
  const refused: InitOptions[] = [
    { file: "a.qcow2", sha256sums },
    { ref: "ghcr.io/o/r:1", sha256sums },
    { ref: REF, sha256sums, sha256: "0".repeat(64) },
  ];
  for (const options of refused) {
    const { message, hint } = await expectFailure(
      "usage",
      () => write(options),
    );
    assertEquals(
      message,
      options.sha256 === undefined
        ? "Cannot use --sha256sums: the image is not at an https:// URL"
        : "Cannot use --sha256 and --sha256sums together",
    );
    assertEquals(
      hint,
      "use --sha256sums alone, with the https:// URL of an image",
    );
  }
  for (const list of ["SHA256SUMS", "file:///tmp/SHA256SUMS"]) {
    const { message, hint } = await expectFailure(
      "usage",
      () => write({ ref: REF, sha256sums: list }),
    );
    assertEquals(
      message,
      `Cannot use --sha256sums ${list}: not an https:// URL`,
    );
    assertEquals(
      hint,
      "pass the https:// URL of the checksum list, or --sha256 DIGEST",
    );
  }
});

test("init rejects an image name that is not a plain directory name before any request", async ({ write }) => {
  for (const name of ["", "a/b", ".."]) {
    const { message } = await expectFailure(
      "usage",
      () => write({ ref: REF, sha256sums: REF, name, retries: 0 }),
    );
    assertEquals(
      message,
      `Cannot name the image "${name}": not a valid directory name`,
    );
  }
});

test("init fails before hashing when the manifest's path cannot be inspected", async ({ cwd, image, write }) => {
  await image("a.qcow2");
  await Deno.writeTextFile(join(cwd, "file"), "");
  const events: ToolsmithEvent[] = [];
  const onEvent = (event: ToolsmithEvent) => events.push(event);
  const manifest = "file/tools.json";
  await assertRejects(() => write({ file: "a.qcow2", manifest, onEvent }));
  assertEquals(events, []);
});
