/**
 * The command line: from argv to a library call, and from its result to text.
 *
 * @module
 */
import { resolve } from "@std/path";
import { type CacheEntry, listCache, pruneCache } from "./lib/cache_admin.ts";
import { cacheFolder } from "./lib/cache.ts";
import {
  type Command,
  type HydrateFlags,
  type OutputFlags,
  parseCommand,
} from "./lib/cli/args.ts";
import { helpText } from "./lib/cli/flags.ts";
import {
  describeError,
  errorLine,
  humanView,
  resultLine,
  type View,
} from "./lib/cli/render.ts";
import { bytesText, shortDigest } from "./lib/cli/text.ts";
import { doctor } from "./lib/doctor.ts";
import { processEnvironment as env } from "./lib/environment.ts";
import { toToolsmithError } from "./lib/errors.ts";
import { hydrate } from "./lib/hydrate.ts";
import { loadManifest, type Manifest } from "./lib/manifest.ts";
import { VERSION } from "./lib/version.ts";

/**
 * Runs the program.
 *
 * Needs the permissions of the command that it runs.
 *
 * @param args What follows the program's name.
 * @returns The exit status.
 */
export async function main(args: string[]): Promise<number> {
  const interrupt = watchSignals();
  const flags = args.includes("--") ? args.slice(0, args.indexOf("--")) : args;
  try {
    return await execute(parseCommand(args), interrupt.signal);
  } catch (thrown) {
    const error = toToolsmithError(interrupt.reason() ?? thrown);
    if (flags.includes("--json")) print(errorLine(error, Date.now()));
    else say(describeError(error));
    return interrupt.exitStatus() ?? error.exitStatus;
  } finally {
    interrupt.ignore();
  }
}

async function execute(
  command: Command,
  signal: AbortSignal,
): Promise<number> {
  switch (command.kind) {
    case "help":
      print(helpText(command.command).trimEnd());
      return 0;
    case "version":
      print(`toolsmith ${VERSION}`);
      return 0;
    case "hydrate":
      return await runHydrate(command.hydrate, command.output, signal);
    case "doctor":
      return await runDoctor(command, signal);
    case "cache":
      return await runCache(command);
    default:
      return command satisfies never;
  }
}

async function runHydrate(
  flags: HydrateFlags,
  output: OutputFlags,
  signal: AbortSignal,
): Promise<number> {
  const view = viewFor(output);
  try {
    const { manifest: path, ...options } = flags;
    const manifest = await loadManifest(path);
    const onEvent = view.onEvent;
    const result = await hydrate(manifest, { ...options, signal, onEvent });
    view.close();
    print(output.json ? resultLine(result, Date.now()) : result.path);
    return 0;
  } finally {
    view.close();
  }
}

async function runDoctor(
  command: Extract<Command, { kind: "doctor" }>,
  signal: AbortSignal,
): Promise<number> {
  const { registry, manifest, cache } = command;
  const findings = await doctor({ ...registry, manifest, cache, signal });
  const ok = findings.every(({ level }) => level !== "fail");
  if (command.json) print(resultLine({ ok, findings }, Date.now()));
  else {
    for (const { check, level, found, hint } of findings) {
      print(`${level.padEnd(4)}  ${check.padEnd(11)}  ${found}`);
      if (hint) print(`${" ".repeat(19)}${hint}`);
    }
  }
  return ok ? 0 : 1;
}

async function runCache(
  command: Extract<Command, { kind: "cache" }>,
): Promise<number> {
  const { action, keep, olderThanMs, dryRun, json } = command;
  const manifest = await manifestIfAny(command.manifest);
  const cache = resolve(
    command.cache ?? cacheFolder(manifest?.root ?? Deno.cwd(), env),
  );
  if (action === "path") {
    print(json ? resultLine({ path: cache }, Date.now()) : cache);
    return 0;
  }
  if (action === "ls") {
    const entries = await listCache(cache);
    if (json) print(resultLine({ cache, entries }, Date.now()));
    else entries.forEach((entry) => print(entryLine(entry)));
    return 0;
  }
  const protect = manifest
    ? [{ cache, image: manifest.image.name, sha256: manifest.image.sha256 }]
    : [];
  const options = { keep, olderThanMs, dryRun, protect };
  const { removed, busy, bytes } = await pruneCache(cache, options);
  if (json) {
    print(resultLine({ cache, dryRun, removed, busy, bytes }, Date.now()));
    return 0;
  }
  removed.forEach((entry) => print(entryLine(entry)));
  for (const { path } of busy) say(`in use, kept: ${path}\n`);
  const verb = dryRun ? "would free" : "freed";
  say(`${verb} ${bytesText(bytes)} of ${cache}\n`);
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

function entryLine(entry: CacheEntry): string {
  const { image, digest, bytes, used, trusted } = entry;
  return [
    image,
    shortDigest(digest),
    bytesText(bytes),
    used.slice(0, 16).replace("T", " "),
    trusted ? "verified" : "unverified",
  ].join("  ");
}

function viewFor({ json, quiet, progress }: OutputFlags): View {
  if (json) {
    return { onEvent: (event) => print(JSON.stringify(event)), close() {} };
  }
  if (quiet) return { onEvent() {}, close() {} };
  const bar = progress && Deno.stderr.isTerminal() &&
    env.get("TERM") !== "dumb";
  let columns = 80;
  try {
    if (bar) columns = Deno.consoleSize().columns;
  } catch {
    // A terminal that does not tell its size.
  }
  return humanView({ write: say, bar, columns, now: Date.now });
}

/** Ctrl-C and TERM cancel what runs; what was begun is cleaned up. */
function watchSignals() {
  const cancel = new AbortController();
  let status: number | undefined;
  const names: [Deno.Signal, number][] = Deno.build.os === "windows"
    ? [["SIGINT", 130]]
    : [["SIGINT", 130], ["SIGTERM", 143], ["SIGHUP", 129]];
  const listeners = names.map(([name, code]) => {
    const listener = () => {
      status ??= code;
      cancel.abort(new DOMException(`Cancelled by ${name}`, "AbortError"));
    };
    Deno.addSignalListener(name, listener);
    return () => Deno.removeSignalListener(name, listener);
  });
  return {
    signal: cancel.signal,
    reason: () => cancel.signal.reason,
    exitStatus: () => status,
    ignore: () => listeners.forEach((remove) => remove()),
  };
}

function print(line: string) {
  write(Deno.stdout, `${line}\n`);
}

function say(text: string) {
  write(Deno.stderr, text);
}

function write(stream: { writeSync(bytes: Uint8Array): number }, text: string) {
  const bytes = new TextEncoder().encode(text);
  try {
    for (let at = 0; at < bytes.length;) {
      at += stream.writeSync(bytes.subarray(at));
    }
  } catch (error) {
    // Nobody reads any more, as in `toolsmith … | head -1`.
    if (!(error instanceof Deno.errors.BrokenPipe)) throw error;
  }
}

if (import.meta.main) {
  Deno.exitCode = await main(Deno.args);
}
