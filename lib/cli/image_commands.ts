/**
 * The commands about images of this host: hydrate, cache, doctor.
 *
 * @module
 */
import { resolve } from "@std/path";
import { cacheDir } from "../cache/entry.ts";
import { type CacheEntry, listCache, pruneCache } from "../cache/prune.ts";
import { doctor } from "../doctor/doctor.ts";
import { toToolsmithError } from "../errors.ts";
import { hydrate } from "../hydrate/hydrate.ts";
import { loadManifest, type Manifest } from "../manifest/manifest.ts";
import type { CommandOf } from "./parse.ts";
import type { Io } from "./io.ts";
import { printable } from "../system/text.ts";
import { bytesText, shortDigest } from "./format.ts";

/** Gets the manifest's image, and prints its path. */
export async function hydrateCommand(
  command: CommandOf<"hydrate">,
  io: Io,
): Promise<number> {
  const { hydrate: { manifest: path, ...flags }, output } = command;
  const { onEvent, close } = io.view(output);
  try {
    const manifest = await loadManifest(path);
    const { signal } = io;
    const result = await hydrate(manifest, { ...flags, signal, onEvent });
    close();
    io.result(output.json, result, result.path);
    return 0;
  } finally {
    close();
  }
}

/** Prints what a check of this host finds. */
export async function doctorCommand(
  command: CommandOf<"doctor">,
  io: Io,
): Promise<number> {
  const { registry, manifest, cache, json } = command;
  const { signal } = io;
  const findings = await doctor({ ...registry, manifest, cache, signal });
  const ok = findings.every(({ level }) => level !== "fail");
  const lines = findings.flatMap(({ check, level, found, hint }) => [
    `${level.padEnd(4)}  ${check.padEnd(11)}  ${found}`,
    ...hint ? [`${" ".repeat(19)}${hint}`] : [],
  ]);
  io.result(json, { ok, findings }, printable(lines.join("\n")));
  return ok ? 0 : 1;
}

/** Lists, locates or clears the cache. */
export async function cacheCommand(
  command: CommandOf<"cache">,
  io: Io,
): Promise<number> {
  const { action, keep, olderThanMs, dryRun, json } = command;
  const manifest = await manifestIfAny(command.manifest);
  const root = manifest?.root ?? Deno.cwd();
  const cache = resolve(command.cache ?? cacheDir(root, io.env));
  if (action === "path") {
    io.result(json, { path: cache }, cache);
    return 0;
  }
  if (action === "ls") {
    const entries = await listCache(cache);
    io.result(json, { cache, entries }, entries.flatMap(entryLines).join("\n"));
    return 0;
  }
  const protect = manifest
    ? [{ cache, image: manifest.image.name, sha256: manifest.image.sha256 }]
    : [];
  const options = { keep, olderThanMs, dryRun, protect };
  const pruned = await pruneCache(cache, options);
  const { removed, states, busy, bytes } = pruned;
  const text = [...states.map(stateLine), ...removed.map(entryLine)].join("\n");
  io.result(json, { cache, dryRun, ...pruned }, text);
  if (!json) {
    for (const { path } of busy) io.say(`in use, kept: ${path}\n`);
    const verb = dryRun ? "would free" : "freed";
    io.say(`${verb} ${bytesText(bytes)} of ${cache}\n`);
  }
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
  return ["saved machine", key.slice(0, 12), bytesText(bytes), minute(used)]
    .join("  ");
}

function minute(time: string): string {
  return time.slice(0, 16).replace("T", " ");
}

function entryLine(entry: CacheEntry): string {
  const { image, digest, bytes, used, trusted } = entry;
  return [
    image,
    shortDigest(digest),
    bytesText(bytes),
    minute(used),
    trusted ? "verified" : "unverified",
  ].join("  ");
}
