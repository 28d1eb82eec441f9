/**
 * Asks a registry for what was pushed, as a consumer would, until it serves it.
 *
 * @module
 */
import { join } from "@std/path";
import { type Artifact, TITLE } from "../oci/artifact.ts";
import { fileChunks, type Sha256, sha256 } from "../system/digest.ts";
import { ToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
import { oras, type RegistryOptions } from "../oci/oras.ts";
import { formatReference, type OciReference } from "../oci/reference.ts";
import { isTransient } from "../system/retry.ts";
import { sleep } from "../system/time.ts";

/** How patiently the registry is asked. */
export interface PollOptions extends RegistryOptions {
  /**
   * What is compared: `"manifest"` the digests of manifest and layer, `"pull"`
   * also the bytes, which are pulled into the system's temporary directory.
   *
   * @default {"manifest"}
   */
  verify?: "manifest" | "pull";
  /** How often the registry is asked, at most. @default {20} */
  attempts?: number;
  /**
   * Pause after the first attempt, in milliseconds. Each further pause is half
   * as long again, up to five times the first.
   *
   * @default {6000}
   */
  intervalMs?: number;
  /** Time that all attempts may take, in milliseconds. @default {600_000} */
  deadlineMs?: number;
}

/** What the registry should serve. */
export interface Published {
  /** The tag that was pushed to. */
  reference: OciReference;
  /** The manifest's digest, as `oras push` reported it. */
  digest: string;
  /** The file that was pushed, for messages. */
  path: string;
  /** Its title in the artifact. */
  title: string;
  /** SHA-256 of the file, as it was before the push. */
  sha256: Sha256;
  /** The name in events. */
  image: string;
}

/** The last pause is this many times the first, at most. */
const MAX_GROWTH = 5;

/**
 * Polls until the registry serves what was pushed.
 *
 * Needs `--allow-run` for oras; to pull, also to write the temporary directory.
 *
 * @param published What was pushed.
 * @param options How to reach the registry, how patiently, and `emit`.
 * @returns How many attempts it took.
 * @throws {ToolsmithError} `publish_mismatch` at once when it serves something
 * else, `publish_timeout`, and those of the registry that waiting does not mend.
 */
export async function pollUntilServed(
  published: Published,
  options: PollOptions & { emit: Emit },
): Promise<number> {
  const { attempts = 20, intervalMs = 6000, deadlineMs = 600_000 } = options;
  const name = formatReference(published.reference);
  const late = new AbortController();
  const timer = setTimeout(() => late.abort(), deadlineMs);
  const signal = options.signal
    ? AbortSignal.any([options.signal, late.signal])
    : late.signal;
  let last = "no answer";
  let attempt = 0;
  try {
    while (++attempt <= attempts) {
      const waiting = await ask(published, { ...options, signal });
      const served = waiting === undefined;
      const delayMs = served || attempt === attempts
        ? 0
        : pollDelayMs(attempt, intervalMs);
      options.emit({
        type: "publish_poll",
        image: published.image,
        reference: name,
        attempt,
        attempts,
        outcome: served ? "served" : "waiting",
        ...(waiting ? { message: waiting.message } : {}),
        delayMs,
      });
      if (served) return attempt;
      last = waiting.message;
      await sleep(delayMs, signal);
    }
  } catch (error) {
    options.signal?.throwIfAborted();
    if (!late.signal.aborted) throw error;
  } finally {
    clearTimeout(timer);
  }
  const patience = late.signal.aborted
    ? `${deadlineMs / 1000} s`
    : `${attempts} attempt${attempts === 1 ? "" : "s"}`;
  throw new ToolsmithError(
    "publish_timeout",
    `Pushed ${name}, but the registry did not serve it within ${patience}: ${last}`,
    {
      hint:
        "it may still appear; to wait longer: --attempts N, --interval SECONDS, --deadline SECONDS",
    },
  );
}

/**
 * The pause after an attempt that did not find what was pushed.
 *
 * @param attempt The attempt, from 1.
 * @param intervalMs The first pause, in milliseconds.
 * @returns The pause, in milliseconds.
 */
export function pollDelayMs(attempt: number, intervalMs: number): number {
  const growth = Math.min(1.5 ** (attempt - 1), MAX_GROWTH);
  return Math.round(intervalMs * growth);
}

/** Asks once; returns why it has to be asked again, if it has to. */
async function ask(
  published: Published,
  options: PollOptions & { emit: Emit },
): Promise<ToolsmithError | undefined> {
  const name = formatReference(published.reference);
  try {
    const artifact = await oras(options).fetchManifest(published.reference);
    compare(published, artifact);
    if (options.verify === "pull") await pull(published, artifact, options);
    return undefined;
  } catch (error) {
    options.signal?.throwIfAborted();
    if (isTransient(error)) return error;
    if (!(error instanceof ToolsmithError)) throw error;
    if (error.code === "not_found" || error.code === "dns_failed") return error;
    if (error.code === "checksum_mismatch") {
      throw mismatch(name, error.message, error);
    }
    if (error.code === "disk_full") {
      throw new ToolsmithError("disk_full", error.message, {
        hint: "name a roomier temporary directory: TMPDIR=DIR",
        cause: error,
      });
    }
    throw error;
  }
}

function compare(published: Published, artifact: Artifact) {
  const { reference, digest, path, title } = published;
  const name = formatReference(reference);
  if (artifact.digest !== digest) {
    throw mismatch(
      name,
      `pushed the manifest ${digest}, it serves ${artifact.digest}`,
    );
  }
  const layer = artifact.layers.find((layer) =>
    layer.annotations?.[TITLE] === title
  );
  const expected = `sha256:${published.sha256}`;
  if (layer?.digest === expected) return;
  throw new ToolsmithError(
    "publish_mismatch",
    `${path} changed while it was being published: it was ${expected}, pushed was ${
      layer?.digest ?? "nothing of that name"
    }`,
    { hint: `publish it again: ${name} names the changed file now` },
  );
}

/** Pulls the very manifest that was compared, and hashes what arrives. */
async function pull(
  published: Published,
  artifact: Artifact,
  options: PollOptions & { emit: Emit },
) {
  const { image, title } = published;
  const source = `oci://${formatReference(artifact.reference)}`;
  const total = artifact.layers.reduce((sum, layer) => sum + layer.size, 0);
  const dir = await Deno.makeTempDir({ prefix: "toolsmith-verify-" });
  const started = Date.now();
  try {
    options.emit({ type: "download_start", image, source, bytes: total });
    await oras(options).pull(artifact.reference, dir, (bytes) => {
      options.emit({ type: "download_progress", image, bytes, total });
    });
    const elapsedMs = Date.now() - started;
    options.emit({
      type: "download_end",
      image,
      source,
      bytes: total,
      elapsedMs,
    });
    const path = join(dir, title);
    const { signal } = options;
    const pulled = await sha256(fileChunks(path, { signal }));
    if (pulled === published.sha256) return;
    throw mismatch(
      formatReference(published.reference),
      `pushed sha256:${published.sha256}, pulled sha256:${pulled}`,
    );
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

function mismatch(name: string, what: string, cause?: unknown) {
  return new ToolsmithError(
    "publish_mismatch",
    `The registry does not serve what was pushed to ${name}: ${what}`,
    {
      hint:
        "someone else may have pushed to that tag, or a proxy may serve an old one: publish under a tag of its own",
      cause,
    },
  );
}
