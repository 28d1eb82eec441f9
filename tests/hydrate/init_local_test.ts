import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import { dirname, join } from "@std/path";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { init, type InitOptions } from "../../lib/hydrate/init.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { qcow2, writeImage } from "../support/qcow2.ts";

/** What a test has at hand. */
interface Bench {
  /** The workspace, in which relative paths start. */
  cwd: string;
  /** Writes an image; returns its digest. */
  image: (path: string) => Promise<string>;
  /** Writes a manifest, by this host's means alone. */
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
        await writeImage(whole, qcow2({}));
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

Deno.test("init takes one image, and says how it is named", async () => {
  for (const options of [{}, { ref: REF, file: "a.qcow2" }]) {
    const { message, hint } = await failure("usage", () => init(options));
    assertEquals(
      message,
      "Cannot write a manifest: name one image, by --ref or by --file",
    );
    assertEquals(
      hint,
      "toolsmith init --ref oci://REGISTRY/OWNER/REPO:VERSION",
    );
  }
});

test("the manifest is where it is asked for, where the variable says, or in the usual place", async (bench) => {
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

test("an image of this host is named from the manifest's directory, and never as another source", async (bench) => {
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

test("an image of this host is hashed, and that is told", async ({ image, write }) => {
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

test("a manifest that exists is left alone, unless it is to be updated", async (bench) => {
  const { cwd, image, write, text } = bench;
  const sha256 = await image("a.qcow2");
  await image("b.qcow2");
  const file = "a.qcow2";
  assertEquals((await write({ file })).outcome, "created");
  const before = await text();
  const path = join(cwd, ".toolsmith/tools.json");
  const { message, hint } = await failure("usage", () => write({ file }));
  assertEquals(message, `Cannot write manifest ${path}: it exists already`);
  assertEquals(hint, "--update changes its image, and keeps all else");
  // A link that leads nowhere is there, too.
  await Deno.symlink("nowhere", join(cwd, "link.json"));
  await failure("usage", () => write({ file, manifest: "link.json" }));
  // Below a file nothing can be.
  const below = () => write({ file, manifest: "a.qcow2/tools.json" });
  const cannot = await failure("file_unreadable", below);
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
  // What is not there is written.
  const manifest = "fresh.json";
  assertEquals((await write({ file, update, manifest })).outcome, "created");
});

test("an image has to have the digest that is given, in whichever form", async (bench) => {
  const { cwd, image, write } = bench;
  const file = "a.qcow2";
  const digest = await image(file);
  const wrong = "0".repeat(64);
  const error = await failure(
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
    "find out which of both is right before you use the image",
  );
  for (const sha256 of ["abc", "", digest + "0"]) {
    const bad = await failure("usage", () => write({ file, sha256 }));
    assertEquals(bad.message, `Not a SHA-256: ${sha256}`);
    assertEquals(
      bad.hint,
      "it is what `sha256sum IMAGE` prints: 64 hex digits",
    );
  }
  assertEquals([...Deno.readDirSync(cwd)].map(({ name }) => name), [file]);
  const sha256 = `SHA256:${digest.toUpperCase()}`;
  assertEquals((await write({ file, sha256 })).manifest.image.sha256, digest);
});

test("a list of digests goes with an address alone, and is one itself", async ({ write }) => {
  const sha256sums = "https://images.invalid/SHA256SUMS";
  const refused: InitOptions[] = [
    { file: "a.qcow2", sha256sums },
    { ref: "ghcr.io/o/r:1", sha256sums },
    { ref: REF, sha256sums, sha256: "0".repeat(64) },
  ];
  for (const options of refused) {
    const { message, hint } = await failure("usage", () => write(options));
    assertEquals(message, "Cannot use a list of digests here");
    assertEquals(
      hint,
      "--sha256sums goes with an https:// address, without --sha256",
    );
  }
  for (const list of ["SHA256SUMS", "file:///tmp/SHA256SUMS"]) {
    const { message, hint } = await failure(
      "usage",
      () => write({ ref: REF, sha256sums: list }),
    );
    assertEquals(message, `Not the address of a list of digests: ${list}`);
    assertEquals(
      hint,
      "it begins with https://; a digest at hand goes with --sha256",
    );
  }
});

test("a name that is no directory is refused before anything is asked for", async ({ write }) => {
  for (const name of ["", "a/b", ".."]) {
    const { message } = await failure(
      "usage",
      () => write({ ref: REF, name, retries: 0 }),
    );
    assertEquals(
      message,
      `Cannot name the image "${name}": it is not a plain directory name`,
    );
  }
});

test("what cannot be looked at is not taken for what is not there", async ({ cwd, image, write }) => {
  await image("a.qcow2");
  await Deno.writeTextFile(join(cwd, "file"), "");
  const events: ToolsmithEvent[] = [];
  const onEvent = (event: ToolsmithEvent) => events.push(event);
  const manifest = "file/tools.json";
  await assertRejects(() => write({ file: "a.qcow2", manifest, onEvent }));
  assertEquals(events, []);
});
