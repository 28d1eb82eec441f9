/**
 * Processes that are killed, disks that are full, read-only or other ones: a
 * reader sees nothing or a whole image, and the next run leaves nothing behind.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { basename, join } from "@std/path";
import { cacheEntry } from "../../lib/cache/entry.ts";
import { fileChunks, sha256 as hash } from "../../lib/system/digest.ts";
import { type Output, run, spawn } from "../../lib/system/process.ts";
import { sleep } from "../../lib/system/time.ts";
import { BUNDLE, bundle } from "../../scripts/bundle.ts";
import { needs, parts } from "../support/parts.ts";
import { killUnlessEnded } from "../support/processes.ts";
import { type Registry, startRegistry } from "../support/registry.ts";
import { seededRandom } from "../support/seed.ts";
import {
  cleanEnvironment,
  jsonLines,
  makeQcow2,
  publishImage,
  type Workspace,
  workspace,
} from "../support/workspace.ts";

const MIB = 1024 * 1024;
const REAL = needs("oras", "registry", "qemuImg");
const isRoot = Deno.build.os === "linux" && Deno.uid() === 0;
const MOUNTS = { ignore: REAL.ignore || !isRoot };

Deno.test({
  name: "hydrate, killed at 200 moments, leaves nothing or a whole image",
  ...REAL,
  async fn() {
    await using site = await makeSite();
    const { work, registry } = site;
    const { sha256 } = await publishImage(registry, work, { bytes: 8 * MIB });
    const cache = join(work.dir, ".toolsmith", "cache");
    const entry = cacheEntry({ cache, image: "demo", sha256 });
    const begun = performance.now();
    assertEquals(await outcome(site), "pulled");
    let duration = performance.now() - begun;
    await Deno.remove(cache, { recursive: true });
    const random = seededRandom();
    const seen = { nothing: 0, whole: 0 };
    for (let kill = 0; kill < 200; kill++) {
      const delay = random() * duration * 1.1;
      const what = `kill ${kill} after ${delay.toFixed(1)} ms`;
      await killed(site, ["hydrate"], delay);
      const found = await entry.lookUp();
      if (found) {
        assertEquals(found.trusted, true, what);
        assertEquals(await hash(fileChunks(found.path)), sha256, what);
      }
      seen[found ? "whole" : "nothing"]++;
      const begun = performance.now();
      assertEquals(await outcome(site), found ? "cached" : "pulled", what);
      // The host may be busier at times: the kills keep up with it.
      if (!found) duration = (duration + performance.now() - begun) / 2;
      assertEquals(await names(cache), WHOLE(sha256), what);
      await Deno.remove(cache, { recursive: true });
    }
    console.log("found:", seen);
    assert(seen.nothing > 50, "the kills came too late");
  },
});

Deno.test({
  name: "publish, killed at 50 moments, leaves nothing or the whole artifact",
  ...REAL,
  async fn() {
    await using site = await makeSite();
    const { work: { dir }, registry } = site;
    const { path, sha256 } = await makeQcow2(join(dir, "i.qcow2"), 8 * MIB);
    // From another directory: it is pushed from one that is made for it.
    const notes = join(dir, "other", "notes.json");
    await Deno.mkdir(join(dir, "other"));
    await Deno.writeTextFile(notes, "{}");
    const extra = ["--extra", `${notes}:application/json`];
    const layers = [sha256, await hash(fileChunks(notes))]
      .map((digest) => `sha256:${digest}`);
    let count = 0;
    const publish = (tag: number) => {
      const reference = `${registry.host}/o/i:${tag}`;
      return ["publish", path, reference, ...extra, "--verify", "pull"];
    };
    const begun = performance.now();
    assertEquals((await toolsmith(site, publish(count++))).code, 0);
    let duration = performance.now() - begun;
    await forget(registry);
    const random = seededRandom();
    const seen = { nothing: 0, whole: 0 };
    for (let kill = 0; kill < 50; kill++) {
      const delay = random() * duration * 1.1;
      const what = `kill ${kill} after ${delay.toFixed(1)} ms`;
      await killed(site, publish(count), delay);
      const served = await layersOf(registry, `o/i:${count}`);
      if (served) assertEquals(served, layers, what);
      seen[served ? "whole" : "nothing"]++;
      const begun = performance.now();
      const { code, stderr } = await toolsmith(site, publish(count));
      if (!served) duration = (duration + performance.now() - begun) / 2;
      assertEquals(code, 0, `${what}: ${stderr}`);
      assertEquals(await layersOf(registry, `o/i:${count}`), layers, what);
      assertEquals(await names(join(dir, "tmp")), [], what);
      count++;
      await forget(registry);
    }
    console.log("served:", seen);
    assert(seen.nothing > 10, "the kills came too late");
  },
});

Deno.test({
  name:
    "a disk that is full at any step of a hydrate is said, and holds no part of an image",
  ...MOUNTS,
  async fn() {
    await using site = await makeSite();
    const { work, registry } = site;
    const { sha256 } = await publishImage(registry, work);
    await using disk = await mountTmpfs(join(work.dir, "small"), "64m");
    const cache = join(disk.path, "cache");
    const entry = cacheEntry({ cache, image: "demo", sha256 });
    // Without --allow-sys=statfs nothing is refused beforehand.
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
      const found = await entry.lookUp();
      assertEquals(found !== undefined, said.code === 0, said.stdout);
      await disk.free();
      assertEquals(await outcome(site, cache), found ? "cached" : "pulled");
      assertEquals(await names(cache), WHOLE(sha256), `${kib} KiB`);
      await Deno.remove(cache, { recursive: true });
    }
    assertEquals([...ends].sort(), ["disk_full", "pulled"]);
  },
});

Deno.test({
  name:
    "a read-only cache serves what it holds, verified too, and says what it lacks",
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
  name: "a cache may be on another device, under any name",
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
      assertEquals(await names(cache), WHOLE(sha256), name);
    }
  },
});

/** All that a cache with one image holds. */
const WHOLE = (sha256: string) => [
  "demo",
  `demo/.${sha256}.lock`,
  `demo/${sha256}`,
  `demo/${sha256}/image.qcow2`,
  `demo/${sha256}/verified.json`,
];

interface Site extends AsyncDisposable {
  work: Workspace;
  registry: Registry;
  /** The program in one file: it starts fast. */
  program: string;
}

async function makeSite(): Promise<Site> {
  await using undo = new AsyncDisposableStack();
  const work = undo.use(await workspace());
  const registry = undo.use(await startRegistry());
  if (!await bundle()) throw new Error("The program is not bundled");
  const program = join(work.dir, "toolsmith.js");
  await Deno.copyFile(BUNDLE, program);
  await Deno.mkdir(join(work.dir, "tmp"));
  const all = undo.move();
  const dispose = () => all.disposeAsync();
  return { work, registry, program, [Symbol.asyncDispose]: dispose };
}

interface Given {
  permissions?: string[];
  cache?: string;
}

function command({ work, program }: Site, args: string[], given: Given = {}) {
  const { permissions = ["-A"], cache = "" } = given;
  return {
    args: ["run", "--quiet", "--no-prompt", ...permissions, program, ...args],
    cwd: work.dir,
    env: {
      ...cleanEnvironment(),
      DENO_DIR: join(work.dir, "deno"),
      TMPDIR: join(work.dir, "tmp"),
      TOOLSMITH_ORAS: parts.oras!,
      TOOLSMITH_CACHE: cache,
    },
  };
}

function toolsmith(site: Site, args: string[], given?: Given): Promise<Output> {
  const options = command(site, args, given);
  return run(Deno.execPath(), { ...options, timeoutMs: 60_000 });
}

async function outcome(site: Site, cache?: string, flags: string[] = []) {
  const said = await toolsmith(site, ["hydrate", "--json", ...flags], {
    cache,
  });
  const { last } = jsonLines(said.stdout);
  return last.outcome ?? `${last.code}: ${last.message}`;
}

/** Starts the program, and kills it after a time if it still runs. */
async function killed(site: Site, args: string[], afterMs: number) {
  const child = spawn(Deno.execPath(), command(site, args));
  const over = new AbortController();
  const ended = child.ended.then(() => over.abort());
  await sleep(afterMs, over.signal).catch(() => {});
  killUnlessEnded(child.pid);
  await ended;
}

/** The names of all that lies below a directory. */
async function names(dir: string, below = ""): Promise<string[]> {
  const found: string[] = [];
  for await (const { name, isDirectory } of Deno.readDir(join(dir, below))) {
    // What proves whose staging is.
    if (name.startsWith(".staging.key")) continue;
    found.push(join(below, name));
    if (isDirectory) found.push(...await names(dir, join(below, name)));
  }
  return found.sort();
}

/** Digests of the layers that a registry serves, if it serves them all. */
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

/** Takes all that a registry holds, so that the next push is of everything. */
async function forget({ storage }: Registry) {
  const data = join(storage, "docker");
  await Deno.remove(data, { recursive: true }).catch((error) => {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  });
}

/** A filesystem of its own, in memory. */
async function mountTmpfs(path: string, size: string) {
  await Deno.mkdir(path);
  const mount = async (...args: string[]) => {
    const { code, stderr } = await run("mount", { args });
    if (code !== 0) {
      throw new Error(`Cannot mount ${basename(path)}: ${stderr}`);
    }
  };
  await mount("-t", "tmpfs", "-o", `size=${size},mode=755`, "tmpfs", path);
  const filler = join(path, "filler");
  return {
    path,
    remount: (how: string) => mount("-o", `remount,${how}`, path),
    /** Leaves this much free. */
    async fill(bytes: number) {
      const { stdout } = await run("stat", {
        args: ["-f", "-c", "%a %S", path],
      });
      const [blocks, each] = stdout.split(" ").map(Number);
      const size = Math.max(0, blocks * each - bytes);
      await run("fallocate", { args: ["-l", `${size}`, filler] });
    },
    free: () => Deno.remove(filler),
    async [Symbol.asyncDispose]() {
      const { code, stderr } = await run("umount", { args: [path] });
      if (code !== 0) throw new Error(stderr);
    },
  };
}
