/**
 * Asks a registry for what was pushed, as a consumer would, until it serves it.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
import { type Artifact, selectImageLayer, TITLE } from "../oci/artifact.ts";
import { type Oras, oras } from "../oci/oras.ts";
import { pullImage, startTransfer, totalBytes } from "../oci/pull.ts";
import { formatReference, type OciReference } from "../oci/reference.ts";
import type { RegistryOptions } from "../oci/registry.ts";
import { asDigest, type Digest, type Sha256 } from "../system/digest.ts";
import { isTransient } from "../system/retry.ts";
import { BusyError } from "../system/retry_after.ts";
import { sleep, timeLimit } from "../system/time.ts";
import { makeOwnDir } from "./_own_dir.ts";

/** How often and how long the registry is asked. */
export interface PollOptions {
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
  digest: Digest;
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
 * @param options How to reach the registry, how long, and where events go.
 * @returns How many attempts it took.
 * @throws {ToolsmithError} `publish_mismatch` at once when it serves something
 * else, `publish_timeout`, and those of the registry that may not pass.
 */
export async function pollUntilServed(
  published: Published,
  options: PollOptions & { registry: RegistryOptions; emit: Emit },
): Promise<number> {
  const { attempts = 20, intervalMs = 6000, deadlineMs = 600_000 } = options;
  const { registry, emit } = options;
  const reference = formatReference(published.reference);
  using limit = timeLimit(deadlineMs, "The registry", registry.signal);
  const { signal } = limit;
  const client = oras({ ...registry, signal });
  const end = performance.now() + deadlineMs;
  let last = "no answer";
  let late = false;
  try {
    for (let attempt = 1; attempt <= attempts; attempt++) {
      const pull = options.verify === "pull";
      const error = await ask(published, client, { pull, signal, emit });
      const askedMs = error instanceof BusyError ? error.pauseMs : 0;
      late = performance.now() + askedMs > end;
      const delayMs = !error || attempt === attempts || late
        ? 0
        : Math.max(pollDelayMs(attempt, intervalMs), askedMs);
      emit({
        type: "publish_poll",
        image: published.image,
        reference,
        attempt,
        attempts,
        outcome: error ? "waiting" : "served",
        ...(error ? { message: error.message } : {}),
        delayMs,
      });
      if (!error) return attempt;
      last = error.message;
      if (late) break;
      await sleep(delayMs, signal);
    }
  } catch (error) {
    registry.signal?.throwIfAborted();
    if (!signal.aborted) throw error;
  }
  const patience = signal.aborted || late
    ? `${deadlineMs / 1000} s`
    : `${attempts} attempt${attempts === 1 ? "" : "s"}`;
  throw new ToolsmithError(
    "publish_timeout",
    `Pushed ${reference}, but the registry did not serve it within ${patience}: ${last}`,
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
  client: Oras,
  { pull, signal, emit }: { pull: boolean; signal: AbortSignal; emit: Emit },
): Promise<ToolsmithError | undefined> {
  try {
    const artifact = await client.fetchManifest(published.reference);
    compare(published, artifact);
    if (pull) await pullBack(published, artifact, { client, emit });
    return undefined;
  } catch (error) {
    signal.throwIfAborted();
    if (isTransient(error)) return error;
    if (!(error instanceof ToolsmithError)) throw error;
    if (error.code === "not_found" || error.code === "dns_failed") return error;
    if (error.code === "checksum_mismatch") {
      throw mismatch(published, error.message, error);
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
  if (artifact.digest !== digest) {
    throw mismatch(
      published,
      `pushed the manifest ${digest}, it serves ${artifact.digest}`,
    );
  }
  const layer = artifact.layers.find((layer) =>
    layer.annotations?.[TITLE] === title
  );
  const expected = asDigest(published.sha256);
  if (layer?.digest === expected) return;
  throw new ToolsmithError(
    "publish_mismatch",
    `${path} changed while it was being published: it was ${expected}, pushed was ${
      layer?.digest ?? "nothing of that name"
    }`,
    {
      hint: `publish it again: ${
        formatReference(reference)
      } names the changed file now`,
    },
  );
}

/** Pulls the very manifest that was compared, as a consumer would. */
async function pullBack(
  published: Published,
  artifact: Artifact,
  { client, emit }: { client: Oras; emit: Emit },
) {
  const layer = selectImageLayer(artifact, published.sha256);
  await using dir = await makeOwnDir("verify");
  const progress = startTransfer(emit, {
    image: published.image,
    source: `oci://${formatReference(artifact.reference)}`,
    total: totalBytes(artifact),
  });
  const options = { layer, dir: dir.path, progress };
  const pulled = await pullImage(client, artifact, options);
  if (pulled.sha256 === published.sha256) return;
  throw mismatch(
    published,
    `pushed ${asDigest(published.sha256)}, pulled ${asDigest(pulled.sha256)}`,
  );
}

function mismatch(
  { reference }: Published,
  what: string,
  cause?: unknown,
): ToolsmithError {
  const name = formatReference(reference);
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
