/**
 * Another user of the host, who shares a cache or planted files in it.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { ALICE, BUILDER, testWithTwoUsers } from "../support/users.ts";
import { jsonLines } from "../support/workspace.ts";

const HYDRATE = ["hydrate", "--json"];

/** Returns the final result and the types of the events before it. */
function outcomeOf({ stdout }: { stdout: string }) {
  const { events, last } = jsonLines(stdout);
  return { last, types: events.map(({ type }) => type) };
}

testWithTwoUsers(
  "hydrate uses root's cache for every user without hashing or writing",
  async ({ dirOf, toolsmith, dir }) => {
    const cache = await dirOf(0, "cache");
    const filled = await toolsmith(0, HYDRATE, cache);
    assertEquals(outcomeOf(filled).last.outcome, "copied", filled.stdout);
    const before = await list(cache);
    const { last, types } = outcomeOf(await toolsmith(ALICE, HYDRATE, cache));
    assertEquals([last.outcome, types], ["cached", ["cache_hit"]]);
    assert(last.path.startsWith(cache));
    assertEquals(await list(cache), before);
    assertEquals(await list(join(dir, "home", `${ALICE}`, ".toolsmith")), []);
  },
);

testWithTwoUsers(
  "hydrate ignores another image whose directory it may list but not search",
  async ({ dirOf, toolsmith }) => {
    const cache = await dirOf(ALICE, "cache");
    const other = await dirOf(0, "cache/other");
    await Deno.mkdir(join(other, "0".repeat(64)));
    await Deno.chmod(other, 0o744);
    const { last } = outcomeOf(await toolsmith(ALICE, HYDRATE, cache));
    assertEquals(last.outcome, "copied", JSON.stringify(last));
  },
);

testWithTwoUsers(
  "hydrate verifies the image of another user's cache on every run",
  async ({ dirOf, toolsmith }) => {
    const cache = await dirOf(BUILDER, "cache");
    await toolsmith(BUILDER, HYDRATE, cache);
    const own = outcomeOf(await toolsmith(BUILDER, HYDRATE, cache));
    assertEquals(own.types, ["cache_hit"]);
    for (const _ of [1, 2]) {
      const { last, types } = outcomeOf(await toolsmith(ALICE, HYDRATE, cache));
      assertEquals(last.outcome, "cached");
      assertEquals(types, ["warning", "checksum_verified", "cache_hit"]);
    }
    // Root does not trust other users either.
    const root = outcomeOf(await toolsmith(0, HYDRATE, cache));
    assertEquals(root.types, ["warning", "checksum_verified", "cache_hit"]);
  },
);

testWithTwoUsers(
  "hydrate does not trust a verification record forged by another user",
  async ({ dirOf, toolsmith, sha256, sh }) => {
    const cache = await dirOf(BUILDER, "cache");
    await toolsmith(BUILDER, HYDRATE, cache);
    const image = join(cache, "demo", sha256, "i.qcow2");
    await sh(
      BUILDER,
      `cd ${cache}/demo/${sha256}; echo wrong > new.qcow2
      chmod 444 new.qcow2; mv -f new.qcow2 i.qcow2`,
    );
    const { size, mtime, ctime, ino } = await Deno.stat(image);
    const path = join(cache, "demo", sha256, "verified.json");
    const record = JSON.parse(await Deno.readTextFile(path));
    await Deno.writeTextFile(
      path,
      JSON.stringify({
        ...record,
        size,
        mtime: mtime!.getTime(),
        ctime: ctime!.getTime(),
        inode: ino,
      }),
    );
    // The owner trusts the forged record, other users do not.
    const own = outcomeOf(await toolsmith(BUILDER, HYDRATE, cache));
    assertEquals(own.last.outcome, "cached");
    for (const user of [ALICE, 0]) {
      const said = await toolsmith(user, HYDRATE, cache);
      const { last, types } = outcomeOf(said);
      assertEquals(types, ["warning", "cache_corrupt"], said.stdout);
      assertEquals(last.code, "cache_unwritable");
    }
  },
);

testWithTwoUsers(
  "hydrate writes through no symbolic link that another user planted in the cache",
  async ({ dirOf, toolsmith, sha256, sh, dir }) => {
    const victim = join(dir, "victim");
    await Deno.mkdir(victim);
    await Deno.writeTextFile(join(victim, "file"), "mine");
    const before = await list(victim);
    const plant: Record<string, string> = {
      "a link in the lock's place": `mkdir demo; chmod 777 demo;
        ln -s ${victim}/file demo/.${sha256}.lock`,
      "an image directory that is a link": `ln -s ${victim} demo`,
      "an image directory of another user": "mkdir demo; chmod 777 demo",
    };
    for (const [index, [what, words]] of Object.entries(plant).entries()) {
      const cache = await dirOf(0, `cache ${index}`, 0o1777);
      await sh(BUILDER, `cd '${cache}'; ${words}`);
      const { last } = outcomeOf(await toolsmith(0, HYDRATE, cache));
      assertEquals(last.code, "cache_unwritable", what);
    }
    // A cache with write access for other users is refused.
    const open = await dirOf(0, "open", 0o777);
    const { last } = outcomeOf(await toolsmith(0, HYDRATE, open));
    assertEquals(last.code, "cache_unwritable");
    assertMatch(last.message, /can be written by other users \(mode 777\)/);
    assertEquals(await list(victim), before);
    assertEquals(await Deno.readTextFile(join(victim, "file")), "mine");
  },
);

testWithTwoUsers(
  "cache ls and cache prune skip images and snapshots of another user",
  async ({ dirOf, toolsmith, sha256, sh }) => {
    const cache = await dirOf(BUILDER, "cache");
    await toolsmith(BUILDER, HYDRATE, cache);
    const key = "c".repeat(64);
    await sh(
      BUILDER,
      `cd ${cache}/demo/${sha256}; umask 077; mkdir machines
      echo {} > machines/${key}.json; echo memory > machines/${key}.state`,
    );
    await dirOf(BUILDER, "cache/private", 0o700);
    const before = await list(cache);
    const ls = await toolsmith(ALICE, ["cache", "ls", "--json"], cache);
    const [entry, ...more] = jsonLines(ls.stdout).last.entries;
    assertEquals([entry.image, entry.states, more], ["demo", [], []]);
    const prune = ["cache", "prune", "--keep", "0", "--json"];
    // The image that a manifest names is never pruned.
    const other = [...prune, "--manifest", "../other.json"];
    const manifest = { name: "x", qcow2: "x.qcow2", qcow2_sha256: key };
    await Deno.writeTextFile(
      join(cache, "..", "home", "other.json"),
      JSON.stringify({ image: manifest }),
    );
    const pruned = await toolsmith(ALICE, other, cache);
    assertEquals(pruned.code, 0, pruned.stdout);
    const { removed, denied, bytes } = jsonLines(pruned.stdout).last;
    assertEquals([removed, denied.length, bytes], [[], 1, 0]);
    assertEquals(await list(cache), before);
    const owner = await toolsmith(BUILDER, other, cache);
    const { states, removed: gone } = jsonLines(owner.stdout).last;
    assertEquals([states.length, gone.length], [1, 1], owner.stdout);
  },
);

testWithTwoUsers(
  "hydrate and cache prune skip staging directories that the user cannot remove",
  async ({ dirOf, toolsmith, sha256 }) => {
    const cache = await dirOf(ALICE, "cache");
    await toolsmith(ALICE, HYDRATE, cache);
    const demo = join(cache, "demo");
    const other = "d".repeat(64);
    await Deno.writeTextFile(join(demo, `.${other}.lock`), "", { mode: 0o600 });
    for (const digest of [sha256, other]) {
      const stale = join(demo, `.staging-${digest}-00000000`, "machines");
      await Deno.mkdir(stale, { recursive: true });
      await Deno.writeTextFile(join(stale, "state"), "root's");
    }
    const again = await toolsmith(ALICE, [...HYDRATE, "--force"], cache);
    assertEquals(outcomeOf(again).last.outcome, "copied", again.stdout);
    const prune = ["cache", "prune", "--keep", "0", "--older-than", "0s"];
    const pruned = await toolsmith(ALICE, prune, cache);
    assertEquals(pruned.code, 0, pruned.stderr);
  },
);

/** Every file below a directory, with its owner, mode and size. */
async function list(dir: string): Promise<string[]> {
  const found: string[] = [];
  try {
    for await (const { name } of Deno.readDir(dir)) {
      const path = join(dir, name);
      const { isDirectory, uid, mode, size } = await Deno.lstat(path);
      const length = isDirectory ? "" : size;
      found.push(`${path} ${uid} ${(mode ?? 0).toString(8)} ${length}`);
      if (isDirectory) found.push(...await list(path));
    }
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
  return found.sort();
}
