import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { cacheEntryHandle } from "../../lib/cache/entry.ts";
import { listCache } from "../../lib/cache/maintenance.ts";
import { snapshotStore } from "../../lib/cache/snapshots.ts";
import { formatTime, shortDigest } from "../../lib/cli/format.ts";
import { sha256ToDigest } from "../../lib/system/digest.ts";
import { runProcess } from "../../lib/system/process.ts";
import { openPartFile } from "../../lib/system/part_file.ts";
import { temporaryDir } from "../support/directory.ts";
import { putCachedImage } from "../support/images.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { performCommand, recordedIo } from "../support/recorded_io.ts";
import { fillSnapshot } from "../support/snapshots.ts";

const DAY = 86_400_000;
/** The images' times of last use, newest last. */
const USED = [3, 2, 1].map((days) => new Date(Date.now() - days * DAY));

const sha256 = (digit: number) => `${digit}`.repeat(64);
const digest = (digit: number) => sha256ToDigest(sha256(digit));

/** A workspace with cached images 1 to 3, and a partial download of image 4. */
async function workspace() {
  const dir = await temporaryDir();
  const cache = join(dir.path, "cache");
  for (const [at, used] of USED.entries()) {
    await putCachedImage(
      { cache, image: "demo", sha256: sha256(at + 1) },
      used,
    );
  }
  using held = await cacheEntryHandle({
    cache,
    image: "demo",
    sha256: sha256(4),
  })
    .lock();
  await using staging = await held.createOrResumeStaging();
  const identity = { size: 1000, digest: digest(4) };
  await using part = await openPartFile(staging.dir, identity);
  using writer = await part.openWriter();
  writer.write(0, new Uint8Array(600));
  const manifest = join(dir.path, "tools.json");
  await Deno.writeTextFile(
    manifest,
    JSON.stringify({
      image: { name: "demo", qcow2: "none", qcow2_sha256: sha256(1) },
    }),
  );
  return { ...dir, cache, manifest };
}

/** Runs `toolsmith cache` and returns its output. */
async function runCacheCommand(
  args: string[],
  options: Parameters<typeof recordedIo>[0] = {},
) {
  const recorded = recordedIo(options);
  assertEquals(await performCommand(["cache", ...args], recorded), 0);
  const [{ json, fields, text }, ...more] = recorded.results;
  assertEquals(more, []);
  return { json, fields, text, told: recorded.stderrText() };
}

const line = (digit: number) =>
  `demo  ${shortDigest(digest(digit))}  5 B  ${
    formatTime(USED[digit - 1].toISOString())
  }  verified`;

Deno.test("cache ls prints a line per image, newest first, and a line per partial download", async () => {
  await using work = await workspace();
  const { text, fields, json, told } = await runCacheCommand(
    ["ls", "--cache", work.cache],
  );
  const lines = text.split("\n");
  assertEquals(lines.slice(0, -1), [line(3), line(2), line(1)]);
  assertMatch(lines[3], /^demo {2}sha256:444444444444 {2}600 B of 1000 B {2}/);
  assert(lines[3].endsWith("  partial"));
  assertEquals([json, told, fields.cache], [false, "", work.cache]);
  assertEquals((fields.entries as unknown[]).length, 3);
  assertEquals((fields.partials as unknown[]).length, 1);
  const image = join(work.cache, "demo", sha256(2), "i.qcow2");
  await Deno.chmod(image, 0o644);
  await Deno.writeTextFile(image, "other");
  const changed = await runCacheCommand([
    "ls",
    "--cache",
    work.cache,
    "--json",
  ]);
  assertMatch(changed.text, /sha256:222222222222 .* unverified\n/);
  assertEquals(changed.json, true);
});

Deno.test("cache path prints --cache, else TOOLSMITH_CACHE, else the workspace's cache directory", async () => {
  await using work = await workspace();
  const named = ["path", "--manifest", work.manifest];
  const env = new Map([["TOOLSMITH_CACHE", "/variable"]]);
  const flag = await runCacheCommand([...named, "--cache", "/flag"], { env });
  assertEquals([flag.text, flag.fields], ["/flag", { path: "/flag" }]);
  assertEquals((await runCacheCommand(named, { env })).text, "/variable");
  const usual = await runCacheCommand(named);
  assertEquals(usual.text, join(work.path, ".toolsmith", "cache"));
  const lost = join(work.path, "lost.json");
  await expectFailure(
    "manifest_not_found",
    () => runCacheCommand(["path", "--manifest", lost]),
  );
  await Deno.writeTextFile(lost, "{");
  await expectFailure(
    "manifest_invalid",
    () => runCacheCommand(["path", "--manifest", lost]),
  );
});

Deno.test("cache prune keeps the manifest's image and the newest ones, and prints the freed bytes", async () => {
  await using work = await workspace();
  const args = ["prune", "--manifest", work.manifest, "--cache", work.cache];
  const left = async () =>
    (await listCache(work.cache)).map((it) => it.digest[7]).join("");
  const dry = await runCacheCommand([...args, "--dry-run"]);
  const [removed, partial] = dry.text.split("\n");
  assertEquals(removed, line(2));
  assert(partial.endsWith("  partial"), partial);
  assertEquals(dry.told, `would free 605 B in ${work.cache}\n`);
  assertEquals([dry.fields.dryRun, dry.fields.bytes], [true, 605]);
  assertEquals(await left(), "321");
  const { told, fields } = await runCacheCommand(args);
  assertEquals(told, `freed 605 B in ${work.cache}\n`);
  assertEquals([fields.dryRun, fields.cache], [false, work.cache]);
  assertEquals(await left(), "31");
  const json = await runCacheCommand([...args, "--keep", "0", "--json"]);
  assertEquals([json.told, json.fields.bytes], ["", 5]);
  assertEquals(await left(), "1");
});

Deno.test("cache ls, prune and adopt print a line per snapshot below its image", async () => {
  await using work = await workspace();
  const key = "0123456789abcdef".repeat(4);
  const { dir } = cacheEntryHandle({
    ...{ cache: work.cache, image: "demo", sha256: sha256(3) },
  });
  {
    const machines = snapshotStore(join(dir, "machines"));
    await using staging = await machines.createStaging(key);
    await fillSnapshot(staging!, { state: "state", memory: "", disk: "" });
  }
  const { text } = await runCacheCommand(["ls", "--cache", work.cache]);
  const lines = text.split("\n");
  const state = /^snapshot {2}0123456789ab {2}5 B {2}\S.*\d/;
  const at = lines.findIndex((it) => state.test(it.slice(2)));
  assert(lines[at - 1].startsWith(`demo  ${shortDigest(digest(3))}  `), text);
  const args = ["prune", "--manifest", work.manifest, "--cache", work.cache];
  const pruned = await runCacheCommand([...args, "--keep", "0", "--dry-run"]);
  assertMatch(pruned.text, state);
  const copy = `${work.cache}-copied`;
  const copying = await runProcess("cp", { args: ["-a", work.cache, copy] });
  assertEquals(copying.code, 0, copying.stderr);
  const adopted = await runCacheCommand(["adopt", "--cache", copy]);
  assertMatch(adopted.text, state);
  assertEquals(adopted.told, "snapshots adopted: 1\n");
  const again = await runCacheCommand(["adopt", "--cache", copy, "--json"]);
  assertEquals([again.json, again.fields, again.told], [
    ...[true, { cache: copy, states: [] }, ""],
  ]);
});

Deno.test("cache prune reports and keeps images that are in use", async () => {
  await using work = await workspace();
  const key = { cache: work.cache, image: "demo", sha256: sha256(2) };
  using _held = await cacheEntryHandle(key).lock();
  const args = ["prune", "--manifest", work.manifest, "--cache", work.cache];
  const { told } = await runCacheCommand(args);
  const [busy, freed] = told.split("\n");
  assertMatch(busy, new RegExp(`^in use, kept: ${work.cache}/demo/.*2222`));
  assertEquals(freed, `freed 600 B in ${work.cache}`);
});
