/**
 * `toolsmith cache`: lists, locates, prunes or adopts cached images and snapshots.
 */
import { resolveCacheDir } from "../../cache/entry.ts";
import {
  adoptSnapshots,
  type CacheEntry,
  listCache,
  listPartialImages,
  type PartialImage,
  pruneCache,
} from "../../cache/maintenance.ts";
import type { Environment } from "../../environment.ts";
import { toToolsmithError } from "../../errors.ts";
import { loadManifest, type Manifest } from "../../manifest/manifest.ts";
import { defineSubcommand } from "../subcommand.ts";
import { defineFlags, type FlagValues } from "../flag.ts";
import { parseChoice } from "../usage_error.ts";
import { CACHE_FLAGS, JSON_FLAGS, MANIFEST_FLAGS } from "../shared_flags.ts";
import { formatBytes, formatTime, shortDigest } from "../format.ts";
import type { CliIo } from "../io.ts";

const PRUNE_FLAGS = defineFlags("Flags", {
  keep: "--keep N  prune: keep the N newest entries of each image (default 1)",
  olderThanMs:
    "--older-than AGE  prune: only entries unused for that long, such as 12h or 30d",
  dryRun: "--dry-run  prune: list what would be removed, remove nothing",
});

export const cacheCommand = defineSubcommand({
  name: "cache",
  usage: "ls | path | prune | adopt [flags]",
  summary: "list, locate, prune or adopt cached images and snapshots",
  details:
    `prune removes all snapshots; it keeps the manifest's image and images in use. adopt trusts
snapshots that rsync -a or actions/cache copied here with their modification times.`,
  positionals: ["ls|path|prune|adopt"],
  flags: { ...PRUNE_FLAGS, ...MANIFEST_FLAGS, ...CACHE_FLAGS, ...JSON_FLAGS },
  async run(given, io, { positionals: [word] }) {
    const { env } = io;
    const action = parseChoice(["ls", "path", "prune", "adopt"], word, "cache");
    const manifest = await loadManifestIfFound(given.manifest, env);
    const root = manifest?.workspace ?? Deno.cwd();
    const dir = await resolveCacheDir(root, { cache: given.cache, env });
    if (action === "path") io.printResult(given.json, { path: dir }, dir);
    if (action === "ls") await printCacheList(dir, given.json, io);
    if (action === "prune") await pruneAndPrint(dir, given, { manifest, io });
    if (action === "adopt") await adoptAndPrint(dir, given.json, io);
    return 0;
  },
});

async function printCacheList(
  dir: string,
  json: boolean | undefined,
  io: CliIo,
) {
  const entries = await listCache(dir, { env: io.env });
  const partials = await listPartialImages(dir, { env: io.env });
  const entryLines = entries.flatMap((entry) => [
    cacheEntryLine(entry),
    ...entry.states.map((state) => `  ${snapshotLine(state)}`),
  ]);
  const lines = [...entryLines, ...partials.map(partialImageLine)];
  io.printResult(json, { cache: dir, entries, partials }, lines.join("\n"));
}

async function pruneAndPrint(
  dir: string,
  given: FlagValues<typeof PRUNE_FLAGS & typeof JSON_FLAGS>,
  { manifest, io }: { manifest?: Manifest; io: CliIo },
) {
  const { keep = 1, olderThanMs = 0, dryRun = false, json } = given;
  const protect = (manifest ? [manifest.image] : [])
    .map(({ name, sha256 }) => ({ cache: dir, image: name, sha256 }));
  const options = { keep, olderThanMs, dryRun, protect, env: io.env };
  const pruned = await pruneCache(dir, options);
  const { removed, states, partials, busy, denied, bytes } = pruned;
  const lines = [
    ...states.map(snapshotLine),
    ...removed.map(cacheEntryLine),
    ...partials.map(partialImageLine),
  ];
  io.printResult(json, { cache: dir, dryRun, ...pruned }, lines.join("\n"));
  if (json) return;
  const notes = [
    ...busy.map(({ path }) => `in use, kept: ${path}\n`),
    ...denied.map(({ path }) => `owned by another user, kept: ${path}\n`),
    `${dryRun ? "would free" : "freed"} ${formatBytes(bytes)} in ${dir}\n`,
  ];
  io.printToStderr(notes.join(""));
}

async function adoptAndPrint(
  dir: string,
  json: boolean | undefined,
  io: CliIo,
) {
  const states = await adoptSnapshots(dir, { env: io.env });
  const text = states.map(snapshotLine).join("\n");
  io.printResult(json, { cache: dir, states }, text);
  if (!json) io.printToStderr(`snapshots adopted: ${states.length}\n`);
}

/** Returns `undefined` if no manifest is named and none is found. */
async function loadManifestIfFound(
  path: string | undefined,
  env: Environment,
): Promise<Manifest | undefined> {
  try {
    return await loadManifest(path, { env });
  } catch (error) {
    const { code } = toToolsmithError(error);
    if (code === "manifest_not_found" && !path) return undefined;
    throw error;
  }
}

function snapshotLine({ key, bytes, used }: CacheEntry["states"][number]) {
  const size = formatBytes(bytes);
  return `snapshot  ${key.slice(0, 12)}  ${size}  ${formatTime(used)}`;
}

function cacheEntryLine(entry: CacheEntry): string {
  const { image, digest, bytes, used, trusted, update } = entry;
  const cells = [image, shortDigest(digest), formatBytes(bytes)];
  cells.push(formatTime(used), trusted ? "verified" : "unverified");
  if (update) {
    const downloaded = formatBytes(update.bytes);
    cells.push(`${downloaded} downloaded, the rest from ${update.from}`);
  }
  return cells.join("  ");
}

function partialImageLine(partial: PartialImage): string {
  const { image, digest, bytes, total, used } = partial;
  const size = `${formatBytes(bytes)} of ${formatBytes(total)}`;
  const time = formatTime(used);
  return `${image}  ${shortDigest(digest)}  ${size}  ${time}  partial`;
}
