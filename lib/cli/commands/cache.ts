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
import {
  type FlagValues,
  parseAgeToMs,
  parseChoice,
  parseCount,
  switchFlag,
  valueFlag,
} from "../flag.ts";
import { CACHE_FLAGS, JSON_FLAGS, MANIFEST_FLAGS } from "../shared_flags.ts";
import { formatBytes, formatTime, shortDigest } from "../format.ts";
import type { CliIo } from "../io.ts";

const PRUNE_FLAGS = {
  keep: valueFlag(
    "keep N",
    "prune: keep the N newest entries of each image (default 1)",
    parseCount,
  ),
  olderThanMs: valueFlag(
    "older-than AGE",
    "prune: only entries unused for that long, such as 12h or 30d",
    parseAgeToMs,
  ),
  dryRun: switchFlag(
    "dry-run",
    "prune: list what would be removed, remove nothing",
  ),
};

export const cacheCommand = defineSubcommand({
  name: "cache",
  usage: "ls | path | prune | adopt [flags]",
  summary: "list, locate, prune or adopt cached images and snapshots",
  details:
    `prune removes all snapshots; it keeps the manifest's image and images in use. adopt trusts
snapshots that rsync -a or actions/cache copied here with their modification times.`,
  argumentPlaceholders: ["ls|path|prune|adopt"],
  flags: { ...MANIFEST_FLAGS, ...CACHE_FLAGS, ...PRUNE_FLAGS, ...JSON_FLAGS },
  positionalCount: [1, 1],
  async run(given, io, { positionals: [word] }) {
    const { env } = io;
    const action = parseChoice(["ls", "path", "prune", "adopt"], word, "cache");
    const manifest = await loadManifestIfFound(given.manifest, env);
    const root = manifest?.workspace ?? Deno.cwd();
    const dir = await resolveCacheDir(root, { cache: given.cache, env });
    switch (action) {
      case "path":
        io.printResult(given.json, { path: dir }, dir);
        break;
      case "ls":
        await printCacheList(dir, given.json, io);
        break;
      case "prune":
        await pruneAndPrint(dir, given, { manifest, io });
        break;
      case "adopt":
        await adoptAndPrint(dir, given.json, io);
    }
    return 0;
  },
});

async function printCacheList(dir: string, json: boolean, io: CliIo) {
  const entries = await listCache(dir, { env: io.env });
  const partials = await listPartialImages(dir, { env: io.env });
  const lines = [
    ...entries.flatMap(cacheEntryLines),
    ...partials.map(partialImageLine),
  ];
  io.printResult(json, { cache: dir, entries, partials }, lines.join("\n"));
}

async function pruneAndPrint(
  dir: string,
  { keep = 1, olderThanMs = 0, dryRun, json }: FlagValues<
    typeof PRUNE_FLAGS & typeof JSON_FLAGS
  >,
  { manifest, io }: { manifest?: Manifest; io: CliIo },
) {
  const protect = manifest
    ? [{
      cache: dir,
      image: manifest.image.name,
      sha256: manifest.image.sha256,
    }]
    : [];
  const options = { keep, olderThanMs, dryRun, protect, env: io.env };
  const pruned = await pruneCache(dir, options);
  const { removed, states, partials, busy, denied, bytes } = pruned;
  const lines = [
    ...states.map(snapshotLine),
    ...removed.map(cacheEntryLine),
    ...partials.map(partialImageLine),
  ];
  io.printResult(json, { cache: dir, dryRun, ...pruned }, lines.join("\n"));
  if (!json) {
    for (const { path } of busy) io.printToStderr(`in use, kept: ${path}\n`);
    for (const { path } of denied) {
      io.printToStderr(`owned by another user, kept: ${path}\n`);
    }
    const verb = dryRun ? "would free" : "freed";
    io.printToStderr(`${verb} ${formatBytes(bytes)} in ${dir}\n`);
  }
}

async function adoptAndPrint(dir: string, json: boolean, io: CliIo) {
  const states = await adoptSnapshots(dir, { env: io.env });
  io.printResult(
    json,
    { cache: dir, states },
    states.map(snapshotLine).join("\n"),
  );
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

function cacheEntryLines(entry: CacheEntry): string[] {
  return [
    cacheEntryLine(entry),
    ...entry.states.map((state) => `  ${snapshotLine(state)}`),
  ];
}

function snapshotLine(
  { key, bytes, used }: CacheEntry["states"][number],
): string {
  return joinCells(
    "snapshot",
    key.slice(0, 12),
    formatBytes(bytes),
    formatTime(used),
  );
}

function cacheEntryLine(entry: CacheEntry): string {
  const { image, digest, bytes, used, trusted, update } = entry;
  const state = trusted ? "verified" : "unverified";
  const shown = shortDigest(digest);
  const size = formatBytes(bytes);
  const origin = update
    ? [`${formatBytes(update.bytes)} downloaded, the rest from ${update.from}`]
    : [];
  return joinCells(image, shown, size, formatTime(used), state, ...origin);
}

function partialImageLine(partial: PartialImage): string {
  const { image, digest, bytes, total, used } = partial;
  const size = `${formatBytes(bytes)} of ${formatBytes(total)}`;
  return joinCells(
    image,
    shortDigest(digest),
    size,
    formatTime(used),
    "partial",
  );
}

function joinCells(...cells: string[]): string {
  return cells.join("  ");
}
