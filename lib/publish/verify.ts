/** Polls a registry until it serves what was pushed. */
import { ToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
import {
  type Artifact,
  selectImageLayer,
  TITLE_ANNOTATION,
} from "../oci/artifact.ts";
import { type OrasClient, orasClient } from "../oci/oras_client.ts";
import { pullImage, reportDownloadStart, totalPullBytes } from "../oci/pull.ts";
import { formatReference, type OciReference } from "../oci/reference.ts";
import type { RegistryOptions } from "../oci/registry_options.ts";
import { type Digest, type Sha256, sha256ToDigest } from "../system/digest.ts";
import { isTransientError, RetryAfterError } from "../system/retry.ts";
import { sleep, startDeadline } from "../system/time.ts";
import {
  fullTemporaryDirError,
  makeLockedTemporaryDir,
} from "./_temporary_dir.ts";

/** How the registry is polled after a push. */
export interface PollOptions {
  /**
   * `"manifest"` compares the digests of manifest and layer; `"pull"` also downloads
   * the image into the system's temporary directory and hashes it.
   *
   * @default {"manifest"}
   */
  verify?: "manifest" | "pull";
  /** Maximum number of polls. @default {20} */
  attempts?: number;
  /**
   * Pause after the first poll, in milliseconds. Each further pause is 1.5 times as
   * long, up to five times the first.
   *
   * @default {6000}
   */
  intervalMs?: number;
  /** Time limit for all polls, in milliseconds. @default {600_000} */
  deadlineMs?: number;
}

export interface PushedArtifact {
  /** The tag that was pushed to. */
  reference: OciReference;
  /** The manifest's digest, as `oras push` reported it. */
  digest: Digest;
  /** The pushed file, for messages. */
  path: string;
  title: string;
  /** SHA-256 of the file before the push. */
  sha256: Sha256;
  /** The image's name in events. */
  image: string;
}

const MAX_POLL_DELAY_FACTOR = 5;

/**
 * Polls until the registry serves what was pushed; returns how many polls it took.
 * Throws `publish_mismatch` at once when the registry serves something else.
 */
export async function pollUntilServed(
  published: PushedArtifact,
  options: PollOptions & RegistryOptions & { emit: Emit },
): Promise<number> {
  const { attempts = 20, intervalMs = 6000, deadlineMs = 600_000 } = options;
  const reference = formatReference(published.reference);
  let last = "no answer";
  const notServedError = (limit: string) => {
    const message =
      `Pushed ${reference}, but the registry did not serve it within ${limit}: ${last}`;
    const hint =
      "wait longer with --attempts N, --interval SECONDS or --deadline SECONDS";
    return new ToolsmithError("publish_timeout", message, { hint });
  };
  const lateError = () => notServedError(`${deadlineMs / 1000} s`);
  using deadline = startDeadline(deadlineMs, lateError, options.signal);
  const how = { ...options, signal: deadline.signal };
  const client = orasClient(how);
  const end = performance.now() + deadlineMs;
  for (let attempt = 1; attempt <= attempts; attempt++) {
    const error = await pollOnce(published, client, how);
    const askedMs = error instanceof RetryAfterError ? error.retryAfterMs : 0;
    const isLate = performance.now() + askedMs > end;
    const delayMs = !error || attempt === attempts || isLate
      ? 0
      : Math.max(pollDelayMs(attempt, intervalMs), askedMs);
    const poll = { image: published.image, reference, attempt, attempts };
    const outcome = error
      ? { outcome: "waiting" as const, message: error.message }
      : { outcome: "served" as const };
    options.emit({ type: "publish_poll", ...poll, ...outcome, delayMs });
    if (!error) return attempt;
    last = error.message;
    if (isLate) throw lateError();
    await sleep(delayMs, deadline.signal);
  }
  throw notServedError(`${attempts} attempt${attempts === 1 ? "" : "s"}`);
}

export function pollDelayMs(attempt: number, intervalMs: number): number {
  const growth = Math.min(1.5 ** (attempt - 1), MAX_POLL_DELAY_FACTOR);
  return Math.round(intervalMs * growth);
}

/**
 * Polls once; returns the error if polling again may help. Whatever differs from what
 * was pushed is a `publish_mismatch`.
 */
async function pollOnce(
  published: PushedArtifact,
  client: OrasClient,
  { verify, signal, emit }: PollOptions & RegistryOptions & { emit: Emit },
): Promise<ToolsmithError | undefined> {
  try {
    const artifact = await client.fetchManifest(published.reference);
    assertServedDigests(published, artifact);
    if (verify === "pull") {
      await pullAndCompare(published, artifact, client, emit);
    }
    return undefined;
  } catch (error) {
    signal?.throwIfAborted();
    if (isTransientError(error)) return error;
    if (!(error instanceof ToolsmithError)) throw error;
    const { code, message: what } = error;
    if (code === "not_found" || code === "dns_failed") return error;
    if (code === "disk_full") throw fullTemporaryDirError(what, error);
    if (code !== "checksum_mismatch") throw error;
    const name = formatReference(published.reference);
    const message =
      `The registry does not serve what was pushed to ${name}: ${what}`;
    const hint =
      "publish under a new tag: another push or a caching proxy may have replaced what this tag serves";
    const about = { hint, cause: error };
    throw new ToolsmithError("publish_mismatch", message, about);
  }
}

function assertServedDigests(published: PushedArtifact, artifact: Artifact) {
  const { reference, digest, path, title } = published;
  if (artifact.digest !== digest) {
    const what =
      `pushed manifest ${digest}, but the registry serves ${artifact.digest}`;
    throw new ToolsmithError("checksum_mismatch", what);
  }
  const layer = artifact.layers.find((layer) =>
    layer.annotations?.[TITLE_ANNOTATION] === title
  );
  const expected = sha256ToDigest(published.sha256);
  if (layer?.digest === expected) return;
  const found = layer?.digest ?? `no layer titled ${title}`;
  const message =
    `${path} changed while it was published: its digest was ${expected}, the pushed artifact has ${found}`;
  const name = formatReference(reference);
  const hint = `publish again: ${name} now names the changed file`;
  throw new ToolsmithError("publish_mismatch", message, { hint });
}

/** Pulls the manifest by digest, as a consumer would, and compares the image's digest. */
async function pullAndCompare(
  published: PushedArtifact,
  artifact: Artifact,
  client: OrasClient,
  emit: Emit,
) {
  const layer = selectImageLayer(artifact, published.sha256);
  await using dir = await makeLockedTemporaryDir("verify");
  const progress = reportDownloadStart(emit, {
    image: published.image,
    source: `oci://${formatReference(artifact.reference)}`,
    total: totalPullBytes(artifact),
  });
  const options = { layer, dir: dir.path, progress };
  const { sha256 } = await pullImage(client, artifact, options);
  if (sha256 === published.sha256) return;
  const [pushed, pulled] = [published.sha256, sha256].map(sha256ToDigest);
  const what = `pushed ${pushed}, pulled ${pulled}`;
  throw new ToolsmithError("checksum_mismatch", what);
}
