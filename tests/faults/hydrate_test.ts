/**
 * Fault injection: killed processes, full and read-only disks. A reader sees
 * either nothing or a complete image, and the next run leaves nothing behind.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { basename, join } from "@std/path";
import { cacheEntryHandle } from "../../lib/cache/entry.ts";
import {
  readFileChunks,
  sha256OfChunks as hash,
} from "../../lib/system/digest.ts";
import { orIfNotFound } from "../../lib/system/files.ts";
import {
  type ProcessResult,
  runProcess,
  spawnProcess,
} from "../../lib/system/process.ts";
import { sleep } from "../../lib/system/time.ts";
import { BUNDLE_PATH, writeBundle } from "../../scripts/bundle.ts";
import { foundTools, requires } from "../support/parts.ts";
import { fakeOras } from "../support/fake_oras.ts";
import {
  assertAllEnded,
  findProcesses,
  killUnlessEnded,
} from "../support/processes.ts";
import { type Registry, startRegistry } from "../support/registry.ts";
import { seededRandom } from "../support/seeded_random.ts";
import { waitUntil } from "../support/wait_until.ts";
import {
  cleanEnvironment,
  jsonLines,
  makeQcow2,
  publishImage,
  type Workspace,
  workspace,
} from "../support/workspace.ts";

const MIB = 1024 * 1024;
const REAL = requires("oras", "registry", "qemuImg");
const MOUNTS = requires("oras", "registry", "qemuImg", "root");

Deno.test({
  name:
    "hydrate, killed at 200 random moments, leaves either nothing or a complete image",
  ...REAL,
  async fn() {
    await using site = await makeSite();
    const { work, registry } = site;
    const { sha256 } = await publishImage(registry, work, { bytes: 8 * MIB });
    const cache = join(work.dir, ".toolsmith", "cache");
    const entry = cacheEntryHandle({ cache, image: "demo", sha256 });
    const begun = performance.now();
    assertEquals(await outcome(site), "pulled");
    let duration = performance.now() - begun;
    await Deno.remove(cache, { recursive: true });
    const random = seededRandom();
    const seen = { nothing: 0, whole: 0 };
    for (let kill = 0; kill < 200; kill++) {
      const delay = random() * duration * 1.1;
      const what = `kill ${kill} after ${delay.toFixed(1)} ms`;
      const isOrasAlive = await runAndKill(site, ["hydrate"], delay);
      const found = await entry.lookUpImage();
      if (found) {
        assertEquals(found.trusted, true, what);
        assertEquals(await hash(readFileChunks(found.path)), sha256, what);
      }
      seen[found ? "whole" : "nothing"]++;
      const begun = performance.now();
      assertEquals(await outcome(site), found ? "cached" : "pulled", what);
      // Adapts the kill times to the load of the host.
      if (!found) duration = (duration + performance.now() - begun) / 2;
      await assertOrasEnded(site);
      // It may have created the removed staging directory again.
      if (isOrasAlive) assertEquals(await outcome(site), "cached", what);
      assertEquals(await names(cache), CACHE_WITH_IMAGE(sha256), what);
      await Deno.remove(cache, { recursive: true });
    }
    console.log("found:", seen);
    assert(seen.nothing > 50, "the kills came too late");
  },
});

Deno.test({
  name:
    "hydrate removes a staging directory that the oras of a killed hydrate created again",
  ...REAL,
  async fn() {
    await using site = await makeSite();
    const { work } = site;
    const { sha256 } = await publishImage(site.registry, work);
    await using orphan = await killBeforePull(site, ["hydrate"]);
    assertEquals(await outcome(site), "pulled");
    await orphan.pull();
    const cache = join(work.dir, ".toolsmith", "cache");
    const [, , staging] = await names(cache);
    assertMatch(staging, /^demo\/\.staging-/);
    assertEquals(await outcome(site), "cached");
    assertEquals(await names(cache), CACHE_WITH_IMAGE(sha256));
  },
});

Deno.test({
  name:
    "publish, killed at 50 random moments, leaves either nothing or the complete artifact",
  ...REAL,
  async fn() {
    await using site = await makeSite();
    const { work: { dir }, registry } = site;
    const { path, sha256 } = await makeQcow2(join(dir, "i.qcow2"), 8 * MIB);
    // From another directory: publish pushes from a temporary one.
    const notes = join(dir, "other", "notes.json");
    await Deno.mkdir(join(dir, "other"));
    await Deno.writeTextFile(notes, "{}");
    const extra = ["--extra", `${notes}:application/json`];
    const layers = [sha256, await hash(readFileChunks(notes))]
      .map((digest) => `sha256:${digest}`);
    let count = 0;
    // Each in a repository of its own, to which the push uploads everything.
    const publish = (nth: number) => {
      const reference = `${registry.host}/o/i${nth}:1`;
      return ["publish", path, reference, ...extra, "--verify", "pull"];
    };
    const begun = performance.now();
    assertEquals((await toolsmith(site, publish(count++))).code, 0);
    let duration = performance.now() - begun;
    const random = seededRandom();
    const seen = { nothing: 0, whole: 0 };
    for (let kill = 0; kill < 50; kill++) {
      const delay = random() * duration * 1.1;
      const what = `kill ${kill} after ${delay.toFixed(1)} ms`;
      const isOrasAlive = await runAndKill(site, publish(count), delay);
      const served = await layersOf(registry, `o/i${count}:1`);
      if (served) assertEquals(served, layers, what);
      seen[served ? "whole" : "nothing"]++;
      const complete = async () => {
        const { code, stderr } = await toolsmith(site, publish(count));
        assertEquals(code, 0, `${what}: ${stderr}`);
      };
      const begun = performance.now();
      await complete();
      if (!served) duration = (duration + performance.now() - begun) / 2;
      assertEquals(await layersOf(registry, `o/i${count}:1`), layers, what);
      await assertOrasEnded(site);
      // It may have created the removed temporary directory again.
      if (isOrasAlive) await complete();
      assertEquals(await names(join(dir, "tmp")), [], what);
      count++;
    }
    console.log("served:", seen);
    assert(seen.nothing > 10, "the kills came too late");
  },
});

Deno.test({
  name:
    "publish removes a temporary directory that the oras of a killed publish created again",
  ...REAL,
  async fn() {
    await using site = await makeSite();
    const { work: { dir }, registry } = site;
    const { path } = await makeQcow2(join(dir, "i.qcow2"));
    const args = ["publish", path, `${registry.host}/o/i:1`, "--verify=pull"];
    const temporary = () => names(join(dir, "tmp"));
    await using orphan = await killBeforePull(site, args);
    assertEquals((await toolsmith(site, args)).code, 0);
    assertEquals(await temporary(), []);
    await orphan.pull();
    assertMatch((await temporary())[0], /^toolsmith-verify-/);
    assertEquals((await toolsmith(site, args)).code, 0);
    assertEquals(await temporary(), []);
  },
});

Deno.test({
  name: "hydrate fails with disk_full at any step, and leaves no partial image",
  ...MOUNTS,
  async fn() {
    await using site = await makeSite();
    const { work, registry } = site;
    const { sha256 } = await publishImage(registry, work);
    await using disk = await mountTmpfs(join(work.dir, "small"), "64m");
    const cache = join(disk.path, "cache");
    const entry = cacheEntryHandle({ cache, image: "demo", sha256 });
    // Without --allow-sys=statfs, hydrate cannot check the free space first.
    const blind = [
      "--allow-read",
      "--allow-write",
      "--allow-run",
      "--allow-env",
    ];
    const ends = new Set<unknown>();
    for (let kib = 0; kib <= 1536; kib += kib < 64 ? 4 : 64) {
      await Deno.mkdir(cache);
      await disk.fill(kib * 1024);
      const said = await toolsmith(site, ["hydrate", "--json"], {
        permissions: blind,
        cache,
      });
      const { last } = jsonLines(said.stdout);
      ends.add(last.code ?? last.outcome);
      const found = await entry.lookUpImage();
      assertEquals(found !== undefined, said.code === 0, said.stdout);
      await disk.free();
      assertEquals(await outcome(site, cache), found ? "cached" : "pulled");
      assertEquals(await names(cache), CACHE_WITH_IMAGE(sha256), `${kib} KiB`);
      await Deno.remove(cache, { recursive: true });
    }
    assertEquals([...ends].sort(), ["disk_full", "pulled"]);
  },
});

Deno.test({
  name:
    "hydrate serves and verifies images from a read-only cache, and reports a missing image",
  ...MOUNTS,
  async fn() {
    await using site = await makeSite();
    const { work, registry } = site;
    await publishImage(registry, work);
    await using disk = await mountTmpfs(join(work.dir, "disk"), "64m");
    const cache = join(disk.path, "cache");
    assertEquals(await outcome(site, cache), "pulled");
    await disk.remount("ro");
    for (const flags of [[], ["--verify"], ["--offline"]]) {
      assertEquals(await outcome(site, cache, flags), "cached", flags.join());
    }
    const none = join(disk.path, "none");
    const said = await toolsmith(site, ["hydrate"], { cache: none });
    assertEquals(said.code, 51, said.stderr);
    assertMatch(said.stderr, /read-only|Read-only/);
  },
});

Deno.test({
  name: "hydrate accepts a cache on another filesystem and any directory name",
  ...MOUNTS,
  async fn() {
    await using site = await makeSite();
    const { work, registry } = site;
    const { sha256 } = await publishImage(registry, work);
    await using disk = await mountTmpfs(join(work.dir, "disk"), "256m");
    const odd = [
      "a b",
      "'\"",
      "line\nbreak",
      "größe-🐄",
      "-rf",
      "$(id)",
      "a,b=c",
    ]
      .concat("%2e%2e", "*?", "\\n", "n".repeat(200));
    for (const name of odd) {
      const cache = join(disk.path, name);
      assertEquals(await outcome(site, cache), "pulled", name);
      assertEquals(await outcome(site, cache), "cached", name);
      assertEquals(await names(cache), CACHE_WITH_IMAGE(sha256), name);
    }
  },
});

/** All paths in a cache with one image. */
const CACHE_WITH_IMAGE = (sha256: string) => [
  "demo",
  `demo/.${sha256}.lock`,
  `demo/${sha256}`,
  `demo/${sha256}/image.qcow2`,
  `demo/${sha256}/verified.json`,
];

interface Site extends AsyncDisposable {
  work: Workspace;
  registry: Registry;
  /** The bundled program, which starts fast. */
  program: string;
}

async function makeSite(): Promise<Site> {
  await using undo = new AsyncDisposableStack();
  const work = undo.use(await workspace());
  const registry = undo.use(await startRegistry());
  if (!await writeBundle()) throw new Error("The program is not bundled");
  const program = join(work.dir, "toolsmith.js");
  await Deno.copyFile(BUNDLE_PATH, program);
  await Deno.mkdir(join(work.dir, "tmp"));
  const all = undo.move();
  const dispose = () => all.disposeAsync();
  return { work, registry, program, [Symbol.asyncDispose]: dispose };
}

interface Given {
  permissions?: string[];
  cache?: string;
  oras?: string;
}

function command({ work, program }: Site, args: string[], given: Given = {}) {
  const { permissions = ["-A"], cache = "", oras = foundTools.oras! } = given;
  return {
    args: ["run", "--quiet", "--no-prompt", ...permissions, program, ...args],
    cwd: work.dir,
    env: {
      ...cleanEnvironment(),
      DENO_DIR: join(work.dir, "deno"),
      TMPDIR: join(work.dir, "tmp"),
      TOOLSMITH_ORAS: oras,
      TOOLSMITH_CACHE: cache,
    },
  };
}

function toolsmith(
  site: Site,
  args: string[],
  given?: Given,
): Promise<ProcessResult> {
  const options = command(site, args, given);
  return runProcess(Deno.execPath(), options);
}

async function outcome(site: Site, cache?: string, flags: string[] = []) {
  const said = await toolsmith(site, ["hydrate", "--json", ...flags], {
    cache,
  });
  const { last } = jsonLines(said.stdout);
  return last.outcome ?? `${last.code}: ${last.message}`;
}

/**
 * Starts the program, and kills it after a delay if still running. Returns whether its
 * oras has outlived it.
 */
async function runAndKill(site: Site, args: string[], afterMs: number) {
  const child = spawnProcess(Deno.execPath(), command(site, args));
  const over = new AbortController();
  const ended = child.ended.then(() => over.abort());
  await sleep(afterMs, over.signal).catch(() => {});
  killUnlessEnded(child.pid);
  await ended;
  // Until it becomes oras, a child process has its parent's command line.
  const { work, registry } = site;
  const alive = await Promise.all([work.dir, registry.host].map(findProcesses));
  return alive.flat().length > 0;
}

/** Kills a command when its oras, which lives on, is about to pull. */
async function killBeforePull(site: Site, args: string[]) {
  const { dir } = site.work;
  const [started, go] = [join(dir, "started"), join(dir, "go")];
  // With its output discarded, oras does not end at the closed pipe.
  const slow = await fakeOras(`
    [ "$1" = pull ] || exec '${foundTools.oras}' "$@"
    : > '${started}'
    until [ -e '${go}' ]; do sleep 0.05; done
    exec '${foundTools.oras}' "$@" >/dev/null 2>&1
  `);
  const child = spawnProcess(
    Deno.execPath(),
    command(site, args, { oras: slow.path }),
  );
  await waitUntil(
    "oras to start",
    async () => await orIfNotFound(Deno.stat(started)) !== undefined,
  );
  killUnlessEnded(child.pid);
  await child.ended;
  return {
    /** Lets oras pull, and waits for its end. */
    async pull() {
      await Deno.writeTextFile(go, "");
      await assertOrasEnded(site);
    },
    [Symbol.asyncDispose]: () => slow[Symbol.asyncDispose](),
  };
}

async function assertOrasEnded({ work, registry }: Site) {
  await assertAllEnded(work.dir);
  await assertAllEnded(registry.host);
}

/** Lists all paths below a directory. */
async function names(dir: string, below = ""): Promise<string[]> {
  const found: string[] = [];
  for await (const { name, isDirectory } of Deno.readDir(join(dir, below))) {
    // The secret key that proves ownership of staging directories.
    if (name.startsWith(".staging.key")) continue;
    found.push(join(below, name));
    if (isDirectory) found.push(...await names(dir, join(below, name)));
  }
  return found.sort();
}

/** Digests of a tag's layers; asserts that the registry serves them all. */
async function layersOf({ url }: Registry, name: string) {
  const [repository, tag] = name.split(":");
  const accept = "application/vnd.oci.image.manifest.v1+json";
  const response = await fetch(`${url}/v2/${repository}/manifests/${tag}`, {
    headers: { accept },
  });
  const text = await response.text();
  if (response.status === 404) return undefined;
  const digests: string[] = JSON.parse(text).layers
    .map(({ digest }: { digest: string }) => digest);
  for (const digest of digests) {
    const blob = await fetch(`${url}/v2/${repository}/blobs/${digest}`);
    const bytes = new Uint8Array(await blob.arrayBuffer());
    const made = await crypto.subtle.digest("SHA-256", bytes);
    assertEquals(`sha256:${new Uint8Array(made).toHex()}`, digest);
  }
  return digests;
}

/** Mounts a tmpfs. */
async function mountTmpfs(path: string, size: string) {
  await Deno.mkdir(path);
  const mount = async (...args: string[]) => {
    const { code, stderr } = await runProcess("mount", { args });
    if (code !== 0) {
      throw new Error(`Cannot mount ${basename(path)}: ${stderr}`);
    }
  };
  await mount("-t", "tmpfs", "-o", `size=${size},mode=755`, "tmpfs", path);
  const filler = join(path, "filler");
  return {
    path,
    remount: (how: string) => mount("-o", `remount,${how}`, path),
    /** Fills the disk, except for so many bytes. */
    async fill(bytes: number) {
      const { stdout } = await runProcess("stat", {
        args: ["-f", "-c", "%a %S", path],
      });
      const [blocks, each] = stdout.split(" ").map(Number);
      const size = Math.max(0, blocks * each - bytes);
      await runProcess("fallocate", { args: ["-l", `${size}`, filler] });
    },
    free: () => Deno.remove(filler),
    async [Symbol.asyncDispose]() {
      const { code, stderr } = await runProcess("umount", { args: [path] });
      if (code !== 0) throw new Error(stderr);
    },
  };
}
