/**
 * `toolsmith cache`: lists, locates or clears what is cached.
 *
 * @module
 */
import { findCache } from "../../cache/entry.ts";
import {
  adoptSnapshots,
  type CacheEntry,
  listCache,
  listPartialImages,
  type PartialImage,
  pruneCache,
  type PruneOptions,
} from "../../cache/prune.ts";
import { toToolsmithError } from "../../errors.ts";
import { loadManifest, type Manifest } from "../../manifest/manifest.ts";
import type { Command } from "../command.ts";
import { CACHE, JSON_OUTPUT, MANIFEST } from "../flags.ts";
import { bytesText, shortDigest, timeText } from "../format.ts";
import type { Io } from "../io.ts";

const ACTIONS = ["ls", "path", "prune", "adopt"] as const;

interface CacheRequest {
  action: typeof ACTIONS[number];
  manifest?: string;
  cache?: string;
  options: PruneOptions;
  json: boolean;
}

/** Lists, locates or clears the cache. */
export const cache: Command<CacheRequest> = {
  name: "cache",
  usage: "ls | path | prune | adopt [flags]",
  summary: "list, locate or clear what is cached",
  details:
    `prune never removes what the manifest names, nor what another process is getting. adopt
accepts snapshots that were copied here with their times, as rsync -a and actions/cache do.`,
  takes: ["ls|path|prune|adopt"],
  flags: [
    ...MANIFEST,
    ...CACHE,
    {
      name: "keep",
      value: "N",
      help: "prune: keep the N newest entries of each image (default 1)",
    },
    {
      name: "older-than",
      value: "AGE",
      help: "prune: only entries unused for that long, such as 12h or 30d",
    },
    { name: "dry-run", help: "prune: list what would go, remove nothing" },
    ...JSON_OUTPUT,
  ],
  positionals: [1, 1],
  parse: (given) => ({
    action: given.oneOf(ACTIONS, given.positionals[0]),
    manifest: given.text("manifest"),
    cache: given.text("cache"),
    options: {
      keep: given.count("keep") ?? 1,
      olderThanMs: given.age("older-than") ?? 0,
      dryRun: given.has("dry-run"),
    },
    json: given.has("json"),
  }),
  async run(request, io) {
    const manifest = await manifestIfAny(request.manifest);
    const root = manifest?.root ?? Deno.cwd();
    const dir = await findCache(root, { cache: request.cache, env: io.env });
    switch (request.action) {
      case "path":
        io.result(request.json, { path: dir }, dir);
        return 0;
      case "ls":
        return await list(dir, request.json, io);
      case "prune":
        return await prune(dir, { request, manifest, io });
      case "adopt":
        return await adopt(dir, request.json, io);
    }
  },
};

async function list(dir: string, json: boolean, io: Io): Promise<number> {
  const entries = await listCache(dir, { env: io.env });
  const partials = await listPartialImages(dir, { env: io.env });
  const lines = [...entries.flatMap(entryLines), ...partials.map(partialLine)];
  io.result(json, { cache: dir, entries, partials }, lines.join("\n"));
  return 0;
}

async function prune(
  dir: string,
  { request, manifest, io }: {
    request: CacheRequest;
    manifest?: Manifest;
    io: Io;
  },
): Promise<number> {
  const { options, json } = request;
  const { dryRun } = options;
  const protect = manifest
    ? [{
      cache: dir,
      image: manifest.image.name,
      sha256: manifest.image.sha256,
    }]
    : [];
  const pruned = await pruneCache(dir, { ...options, protect, env: io.env });
  const { removed, states, partials, busy, denied, bytes } = pruned;
  const lines = [
    ...states.map(stateLine),
    ...removed.map(entryLine),
    ...partials.map(partialLine),
  ];
  io.result(json, { cache: dir, dryRun, ...pruned }, lines.join("\n"));
  if (!json) {
    for (const { path } of busy) io.say(`in use, kept: ${path}\n`);
    for (const { path } of denied) io.say(`not yours, kept: ${path}\n`);
    const verb = dryRun ? "would free" : "freed";
    io.say(`${verb} ${bytesText(bytes)} of ${dir}\n`);
  }
  return 0;
}

async function adopt(dir: string, json: boolean, io: Io): Promise<number> {
  const states = await adoptSnapshots(dir, { env: io.env });
  io.result(json, { cache: dir, states }, states.map(stateLine).join("\n"));
  if (!json) io.say(`snapshots accepted: ${states.length}\n`);
  return 0;
}

/** The manifest, unless none is named and none is there. */
async function manifestIfAny(path?: string): Promise<Manifest | undefined> {
  try {
    return await loadManifest(path);
  } catch (error) {
    const { code } = toToolsmithError(error);
    if (code === "manifest_not_found" && !path) return undefined;
    throw error;
  }
}

function entryLines(entry: CacheEntry): string[] {
  return [
    entryLine(entry),
    ...entry.states.map((state) => `  ${stateLine(state)}`),
  ];
}

function stateLine({ key, bytes, used }: CacheEntry["states"][number]): string {
  return ["snapshot", key.slice(0, 12), bytesText(bytes), timeText(used)]
    .join("  ");
}

function entryLine(entry: CacheEntry): string {
  const { image, digest, bytes, used, trusted } = entry;
  return [
    image,
    shortDigest(digest),
    bytesText(bytes),
    timeText(used),
    trusted ? "verified" : "unverified",
  ].join("  ");
}

function partialLine(partial: PartialImage): string {
  const { image, digest, bytes, total, used } = partial;
  return [
    image,
    shortDigest(digest),
    `${bytesText(bytes)} of ${bytesText(total)}`,
    timeText(used),
    "partial",
  ].join("  ");
}
