/**
 * A cloned repository with a malicious `.toolsmith/`: nothing outside of it is
 * written, removed or read.
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { sha256ToDigest } from "../../lib/system/digest.ts";
import { runProcess } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import { collectEvents } from "../support/guest.ts";
import { hydrateInProcess } from "../support/hydrate_here.ts";
import { requires } from "../support/parts.ts";
import { startRegistry } from "../support/registry.ts";
import {
  jsonLines,
  publishImage,
  type Workspace,
  workspace,
} from "../support/workspace.ts";

const PLANTED = "p".repeat(1000);

/** A workspace with an image in a registry, and a directory of the user. */
interface Victim {
  work: Workspace;
  /** The workspace's directory. */
  dir: string;
  /** The image file in the workspace. */
  image: string;
  sha256: string;
  /** The image's directory in the workspace's cache; it does not exist. */
  demo: string;
  /** The user's directory. */
  home: string;
  /** Plants a staging directory of another program, and returns its path. */
  plantStaging(at?: string, record?: Record<string, unknown>): Promise<string>;
}

const NEEDED = requires("oras", "registry", "qemuImg");
const shared = new AsyncDisposableStack();
/** The published image of all manifests. */
let published: { image: string; qcow2: string; sha256: string };

Deno.test.beforeAll(async () => {
  if (NEEDED.ignore) return;
  const registry = shared.use(await startRegistry());
  const publisher = shared.use(await workspace());
  const { sha256, reference } = await publishImage(registry, publisher);
  const image = join(publisher.dir, "image.qcow2");
  published = { image, qcow2: `oci://${reference}`, sha256 };
});
Deno.test.afterAll(() => shared.disposeAsync());

function test(name: string, body: (victim: Victim) => Promise<void>) {
  const fn = async () => {
    await using user = await temporaryDir();
    await using work = await workspace();
    const home = user.path;
    for (const name of ["bashrc", "profile", "secret"]) {
      await Deno.writeTextFile(join(home, name), name);
    }
    const { qcow2, sha256 } = published;
    await work.manifest({ qcow2, qcow2_sha256: sha256 });
    const { dir } = work;
    const image = join(dir, "image.qcow2");
    await Deno.copyFile(published.image, image);
    const { size } = await Deno.stat(image);
    const demo = join(dir, ".toolsmith", "cache", "demo");
    const before = await treeOf(home);
    await body({
      ...{ work, dir, image, sha256, demo, home },
      async plantStaging(
        at = join(demo, `.staging-${sha256}-aaaaaaaa`),
        record = {},
      ) {
        await Deno.mkdir(at, { recursive: true });
        await Deno.writeTextFile(join(at, "image.part"), PLANTED);
        await Deno.truncate(join(at, "image.part"), size);
        const note = {
          size,
          digest: sha256ToDigest(sha256),
          extents: [[0, 1000]],
        };
        const text = JSON.stringify({ ...note, ...record });
        await Deno.writeTextFile(join(at, "image.part.json"), text);
        return at;
      },
    });
    assertEquals(await treeOf(home), before);
  };
  // The tests share one registry.
  const shares = { sanitizeOps: false, sanitizeResources: false };
  Deno.test({ name, ...NEEDED, ...shares, fn });
}

/** Plants staging directories for the manifest's image. */
const STAGINGS: Record<string, (victim: Victim) => Promise<unknown>> = {
  async "symbolic links in place of part file records"({ plantStaging, home }) {
    const dir = await plantStaging();
    const link = (name: string, to: string) =>
      Deno.symlink(join(home, to), join(dir, name));
    await link("image.part.written", "bashrc");
    await link("image.part.json.new", "profile");
    await link("image.qcow2", "secret");
  },
  async "a symbolic link in place of the part file"({ plantStaging, home }) {
    const dir = await plantStaging();
    await Deno.remove(join(dir, "image.part"));
    await Deno.symlink(join(home, "bashrc"), join(dir, "image.part"));
  },
  async "a part file record that names a file elsewhere"(
    { plantStaging, home },
  ) {
    await plantStaging(undefined, {
      filled: `../../../../../..${home}/secret`,
      extents: [],
    });
  },
  async "a symbolic link in place of the staging directory"(
    { plantStaging, demo, sha256, dir },
  ) {
    const elsewhere = await plantStaging(join(dir, "elsewhere"));
    await Deno.mkdir(demo, { recursive: true });
    await Deno.symlink(elsewhere, join(demo, `.staging-${sha256}-aaaaaaaa`));
  },
  async "a staging ID without a valid MAC"(victim) {
    const { plantStaging, demo, sha256 } = victim;
    await plantStaging(join(demo, `.staging-${sha256}-aaaaaaaaundefined`));
    await plantStaging(join(demo, `.staging-${sha256}-`));
  },
  async "a symbolic link in place of the image's directory"(
    { demo, sha256, dir },
  ) {
    await Deno.mkdir(demo, { recursive: true });
    await Deno.mkdir(join(dir, "elsewhere"));
    const image = join(dir, "elsewhere", "image.qcow2");
    await Deno.copyFile(join(dir, "image.qcow2"), image);
    await Deno.symlink(join(dir, "elsewhere"), join(demo, sha256));
  },
};

for (const [what, plant] of Object.entries(STAGINGS)) {
  test(`hydrate ignores staging planted in the workspace: ${what}`, async (victim) => {
    const { work, dir, demo, sha256 } = victim;
    await plant(victim);
    const before = await treeOf(join(dir, "elsewhere"));
    const { events, onEvent } = collectEvents("download_start");
    const { outcome, message } = await hydrateInProcess(work, { onEvent });
    assertEquals(outcome, "pulled", message);
    assertEquals(events.map(({ resumed }) => resumed), [0]);
    assertEquals(await treeOf(join(dir, "elsewhere")), before);
    const dirs = [...Deno.readDirSync(demo)]
      .filter(({ isFile }) => !isFile);
    assertEquals(dirs.map(({ name }) => name), [sha256]);
    assert(dirs[0].isDirectory);
  });
}

/** Paths of planted symbolic links, and the expected error codes. */
const LINKS: [path: string, code: string][] = [
  [".toolsmith/cache/demo", "cache_unwritable"],
  [".toolsmith/cache", "cache_unwritable"],
  [".toolsmith", "file_unreadable"],
];

for (const [path, code] of LINKS) {
  test(`hydrate and cache commands refuse a symbolic link at ${path}`, async (victim) => {
    const { work, dir, home } = victim;
    const link = join(dir, path);
    const manifest = join(dir, "tools.json");
    const usual = join(dir, ".toolsmith", "tools.json");
    await Deno.copyFile(usual, manifest);
    if (path === ".toolsmith") {
      await Deno.rename(usual, join(home, "tools.json"));
    }
    const before = await treeOf(home);
    await Deno.mkdir(join(link, ".."), { recursive: true });
    await Deno.remove(link, { recursive: true }).catch(() => {});
    await Deno.symlink(home, link);
    for (const command of [["hydrate"], ["cache", "prune"], ["cache", "ls"]]) {
      // `cache prune` and `cache ls` do not follow a link below the cache.
      if (command.length > 1 && path.endsWith("demo")) continue;
      const { stdout } = await work.toolsmith([...command, "--json"]);
      const { last } = jsonLines(stdout);
      assertEquals(last.code, code, stdout);
      assertStringIncludes(last.message, `${link} is a symbolic link`);
      assertStringIncludes(
        last.hint,
        code === "cache_unwritable" ? "--cache DIR" : "--manifest PATH",
      );
    }
    const doctor = await work.toolsmith(["doctor"]);
    if (!path.endsWith("demo")) {
      assertStringIncludes(doctor.stdout, `${link} is a symbolic link`);
    }
    assertEquals(await treeOf(home), before);
    // The commands of the hints work.
    await using own = await temporaryDir();
    await Deno.symlink(own.path, join(dir, "mine"));
    const hints = ["--cache", join(dir, "mine"), "--manifest", manifest];
    const { stdout } = await work.toolsmith(["hydrate", "--json", ...hints]);
    assertEquals(jsonLines(stdout).last.outcome, "pulled", stdout);
    if (path === ".toolsmith") await Deno.remove(join(home, "tools.json"));
  });
}

test("hydrate writes to a cache behind a symbolic link in TOOLSMITH_CACHE", async (victim) => {
  const { work, dir } = victim;
  await Deno.mkdir(join(dir, "disk"));
  await Deno.symlink("disk", join(dir, "mine"));
  const env = { TOOLSMITH_CACHE: join(dir, "mine") };
  const { stdout } = await work.toolsmith(["hydrate", "--json"], { env });
  assertEquals(jsonLines(stdout).last.outcome, "pulled", stdout);
  const again = await work.toolsmith(["hydrate", "--json"], { env });
  assertEquals(jsonLines(again.stdout).last.outcome, "cached", stdout);
});

test("init --update refuses a symbolic link at .toolsmith/tools.json", async (victim) => {
  const { work, dir, image, home } = victim;
  const usual = join(dir, ".toolsmith", "tools.json");
  const others = join(home, "tools.json");
  await Deno.rename(usual, others);
  await Deno.symlink(others, usual);
  const before = await Deno.readTextFile(others);
  for (const command of [["init", "--file", image, "--update"], ["hydrate"]]) {
    const { stdout } = await work.toolsmith([...command, "--json"]);
    const { last } = jsonLines(stdout);
    assertEquals(last.code, "file_unreadable", stdout);
    assertStringIncludes(last.message, `${usual} is a symbolic link`);
  }
  assertEquals(await Deno.readTextFile(others), before);
  // A link outside of .toolsmith/ is trusted.
  await Deno.symlink(others, join(dir, "mine.json"));
  const own = ["--update", "--manifest", join(dir, "mine.json"), "--json"];
  const { stdout } = await work.toolsmith(["init", "--file", image, ...own]);
  assertEquals(jsonLines(stdout).last.outcome, "updated", stdout);
  await Deno.remove(others);
});

test("cache prune removes nothing behind a symbolic link at an image's snapshot directory", async (victim) => {
  const { work, demo, sha256, home } = victim;
  await work.toolsmith(["hydrate"]);
  const key = "c".repeat(64);
  const snapshots = join(home, "private");
  await Deno.mkdir(snapshots, { mode: 0o700 });
  const mine = [`${key}.json`, `${key}.state`, `.staging-${key}-0`];
  for (const name of mine) await Deno.writeTextFile(join(snapshots, name), "");
  await Deno.symlink(snapshots, join(demo, sha256, "machines"));
  const { code, stderr } = await work.toolsmith(["cache", "prune"]);
  assertEquals(code, 0, stderr);
  const found = [...Deno.readDirSync(snapshots)].map(({ name }) => name);
  assertEquals(found.sort(), mine.sort());
  await Deno.remove(snapshots, { recursive: true });
});

/** Lists all files below a directory, with their contents. */
async function treeOf(dir: string): Promise<string> {
  // Without the times of directories, which the tests themselves change.
  const list = "find . -type d -print -o -ls; find . -type f -exec cat {} +";
  const args = ["-c", `cd "$1" 2>/dev/null && { ${list}; }`, "sh", dir];
  const { stdout } = await runProcess("sh", { args });
  return stdout;
}
