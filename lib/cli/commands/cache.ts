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
import { loadManifest, type Manifest } from "../../manifest/manifest.ts";
import { defineSubcommand } from "../subcommand.ts";
import { defineFlags, type FlagValues } from "../flag.ts";
import { parseChoice } from "../usage_error.ts";
import * as shared from "../shared_flags.ts";
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
  flags: {
    ...PRUNE_FLAGS,
    ...shared.MANIFEST,
    ...shared.CACHE,
    ...shared.JSON,
  },
  async run(given, io, { positionals: [word] }) {
    const { env } = io;
    const action = parseChoice(["ls", "path", "prune", "adopt"], word, "cache");
    const manifest = await loadManifest(given.manifest, { env })
      .catch((error) => {
        if (error.code !== "manifest_not_found" || given.manifest) throw error;
        return undefined;
      });
    const root = manifest?.workspace ?? Deno.cwd();
    const dir = await resolveCacheDir(root, { cache: given.cache, env });
    if (action === "path") io.printResult({ path: dir }, dir);
    if (action === "ls") await printCacheList(dir, io);
    if (action === "prune") await pruneAndPrint(dir, given, manifest, io);
    if (action === "adopt") await adoptAndPrint(dir, io);
  },
});

async function printCacheList(dir: string, io: CliIo) {
  const entries = await listCache(dir, { env: io.env });
  const partials = await listPartialImages(dir, { env: io.env });
  const entryLines = entries.flatMap((entry) => [
    cacheEntryLine(entry),
    ...entry.states.map((state) => `  ${snapshotLine(state)}`),
  ]);
  const lines = [...entryLines, ...partials.map(partialImageLine)];
  io.printResult({ cache: dir, entries, partials }, lines.join("\n"));
}

async function pruneAndPrint(
  dir: string,
  { dryRun = false, ...given }: FlagValues<typeof PRUNE_FLAGS>,
  manifest: Manifest | undefined,
  io: CliIo,
) {
  const protect = (manifest ? [manifest.image] : [])
    .map(({ name, sha256 }) => ({ cache: dir, image: name, sha256 }));
  const options = { ...given, dryRun, protect, env: io.env };
  const pruned = await pruneCache(dir, options);
  const { removed, states, partials, busy, denied, bytes } = pruned;
  const lines = [
    ...states.map(snapshotLine),
    ...removed.map(cacheEntryLine),
    ...partials.map(partialImageLine),
  ];
  io.printResult({ cache: dir, dryRun, ...pruned }, lines.join("\n"));
  for (const { path } of busy) io.printNote(`in use, kept: ${path}`);
  for (const { path } of denied) {
    io.printNote(`owned by another user, kept: ${path}`);
  }
  const verb = dryRun ? "would free" : "freed";
  io.printNote(`${verb} ${formatBytes(bytes)} in ${dir}`);
}

async function adoptAndPrint(dir: string, io: CliIo) {
  const states = await adoptSnapshots(dir, { env: io.env });
  const text = states.map(snapshotLine).join("\n");
  io.printResult({ cache: dir, states }, text);
  io.printNote(`snapshots adopted: ${states.length}`);
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
