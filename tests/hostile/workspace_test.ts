/**
 * A repository that brings its own `.toolsmith/`: whatever lies in it, nothing
 * outside of it is written, removed or read.
 */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { asDigest } from "../../lib/system/digest.ts";
import { run } from "../../lib/system/process.ts";
import { temporaryDir } from "../support/directory.ts";
import {
  type ImageBench,
  jsonLines,
  publishImage,
  testWithImage,
} from "../support/workspace.ts";

const PLANTED = "p".repeat(1000);

/** A workspace whose image is in a registry, and a directory of the user. */
interface Victim extends ImageBench {
  /** The image's directory in the workspace's cache; it does not exist. */
  demo: string;
  /** The user's directory. */
  home: string;
  /** Plants a staging directory of another program, and returns its path. */
  plantStaging(at?: string, record?: Record<string, unknown>): Promise<string>;
}

function test(name: string, body: (victim: Victim) => Promise<void>) {
  testWithImage(name, async (bench) => {
    await using user = await temporaryDir();
    const home = user.path;
    for (const name of ["bashrc", "profile", "secret"]) {
      await Deno.writeTextFile(join(home, name), name);
    }
    const { work, registry } = bench;
    const { sha256 } = await publishImage(registry, work);
    const { size } = await Deno.stat(join(work.dir, "image.qcow2"));
    const demo = join(work.dir, ".toolsmith", "cache", "demo");
    const before = await treeOf(home);
    await body({
      ...{ ...bench, sha256, demo, home },
      async plantStaging(
        at = join(demo, `.staging-${sha256}-aaaaaaaa`),
        record = {},
      ) {
        await Deno.mkdir(at, { recursive: true });
        await Deno.writeTextFile(join(at, "image.part"), PLANTED);
        await Deno.truncate(join(at, "image.part"), size);
        const note = { size, digest: asDigest(sha256), extents: [[0, 1000]] };
        const text = JSON.stringify({ ...note, ...record });
        await Deno.writeTextFile(join(at, "image.part.json"), text);
        return at;
      },
    });
    assertEquals(await treeOf(home), before);
  });
}

/** What a repository brings as staging for the image that its manifest names. */
const STAGINGS: Record<string, (victim: Victim) => Promise<unknown>> = {
  async "links for the records of a partial download"({ plantStaging, home }) {
    const dir = await plantStaging();
    const link = (name: string, to: string) =>
      Deno.symlink(join(home, to), join(dir, name));
    await link("image.part.written", "bashrc");
    await link("image.part.json.new", "profile");
    await link("image.qcow2", "secret");
  },
  async "a link for the partial download"({ plantStaging, home }) {
    const dir = await plantStaging();
    await Deno.remove(join(dir, "image.part"));
    await Deno.symlink(join(home, "bashrc"), join(dir, "image.part"));
  },
  async "a record that names a file elsewhere"({ plantStaging, home }) {
    await plantStaging(undefined, {
      filled: `../../../../../..${home}/secret`,
      extents: [],
    });
  },
  async "a link for the whole directory"({ plantStaging, demo, sha256, dir }) {
    const elsewhere = await plantStaging(join(dir, "elsewhere"));
    await Deno.mkdir(demo, { recursive: true });
    await Deno.symlink(elsewhere, join(demo, `.staging-${sha256}-aaaaaaaa`));
  },
  async "an id as is made where there is no secret"(victim) {
    const { plantStaging, demo, sha256 } = victim;
    await plantStaging(join(demo, `.staging-${sha256}-aaaaaaaaundefined`));
    await plantStaging(join(demo, `.staging-${sha256}-`));
  },
  async "a link for the image's own directory"({ demo, sha256, dir }) {
    await Deno.mkdir(demo, { recursive: true });
    await Deno.mkdir(join(dir, "elsewhere"));
    const image = join(dir, "elsewhere", "image.qcow2");
    await Deno.copyFile(join(dir, "image.qcow2"), image);
    await Deno.symlink(join(dir, "elsewhere"), join(demo, sha256));
  },
};

for (const [what, plant] of Object.entries(STAGINGS)) {
  test(`hydrate neither resumes nor writes through ${what}`, async (victim) => {
    const { work, dir, demo, sha256 } = victim;
    await plant(victim);
    const before = await treeOf(join(dir, "elsewhere"));
    const { stdout } = await work.toolsmith(["hydrate", "--json"]);
    const { events, last } = jsonLines(stdout);
    assertEquals(last.outcome, "pulled", stdout);
    const starts = events.filter(({ type }) => type === "download_start");
    assertEquals(starts.map(({ resumed }) => resumed), [0]);
    assertEquals(await treeOf(join(dir, "elsewhere")), before);
    const dirs = [...Deno.readDirSync(demo)]
      .filter(({ isFile }) => !isFile);
    assertEquals(dirs.map(({ name }) => name), [sha256]);
    assert(dirs[0].isDirectory);
  });
}

/** Where a repository may bring a link, and what shows then that it is refused. */
const LINKS: [path: string, code: string][] = [
  [".toolsmith/cache/demo", "cache_unwritable"],
  [".toolsmith/cache", "cache_unwritable"],
  [".toolsmith", "file_unreadable"],
];

for (const [path, code] of LINKS) {
  test(`hydrate follows no link at ${path}, and says how to do without`, async (victim) => {
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
      // What these two look for, they find no link below the cache.
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
    // The next steps of the hints.
    await using own = await temporaryDir();
    await Deno.symlink(own.path, join(dir, "mine"));
    const hints = ["--cache", join(dir, "mine"), "--manifest", manifest];
    const { stdout } = await work.toolsmith(["hydrate", "--json", ...hints]);
    assertEquals(jsonLines(stdout).last.outcome, "pulled", stdout);
    if (path === ".toolsmith") await Deno.remove(join(home, "tools.json"));
  });
}

test("hydrate fills a cache behind a link that the user named", async (victim) => {
  const { work, dir } = victim;
  await Deno.mkdir(join(dir, "disk"));
  await Deno.symlink("disk", join(dir, "mine"));
  const env = { TOOLSMITH_CACHE: join(dir, "mine") };
  const { stdout } = await work.toolsmith(["hydrate", "--json"], { env });
  assertEquals(jsonLines(stdout).last.outcome, "pulled", stdout);
  const again = await work.toolsmith(["hydrate", "--json"], { env });
  assertEquals(jsonLines(again.stdout).last.outcome, "cached", stdout);
});

test("init --update writes through no link at .toolsmith/tools.json", async (victim) => {
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
  // Outside of .toolsmith/, a link is the user's own.
  await Deno.symlink(others, join(dir, "mine.json"));
  const own = ["--update", "--manifest", join(dir, "mine.json"), "--json"];
  const { stdout } = await work.toolsmith(["init", "--file", image, ...own]);
  assertEquals(jsonLines(stdout).last.outcome, "updated", stdout);
  await Deno.remove(others);
});

test("cache prune removes nothing behind a link at an image's machines", async (victim) => {
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

/** All that lies below a directory, and what the files hold. */
async function treeOf(dir: string): Promise<string> {
  // A directory's own time is that of what the tests themselves put there.
  const list = "find . -type d -print -o -ls; find . -type f -exec cat {} +";
  const args = ["-c", `cd "$1" 2>/dev/null && { ${list}; }`, "sh", dir];
  const { stdout } = await run("sh", { args });
  return stdout;
}
