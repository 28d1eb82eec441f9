/**
 * Gets one blob by ranges from a registry or its mirrors, where that is
 * possible: `oras pull` is there where it is not.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import type { Sha256 } from "../system/digest.ts";
import { statusError } from "../system/http_errors.ts";
import { watchStall } from "../system/http_stall.ts";
import type { PartFile } from "../system/part_file.ts";
import { isTransient, type RetryOptions } from "../system/retry.ts";
import { BusyError } from "../system/retry_after.ts";
import { blobSource } from "./_blob_source.ts";
import {
  mirrorPlaces,
  openPlace,
  type Place,
  type Places,
  PROBE_MS,
  registryPlace,
  STALL_MS,
} from "./_places.ts";
import { RangesUnavailable } from "./_ranges_unavailable.ts";
import { readBlob } from "./_read_blob.ts";
import { isPermitted } from "./_registry_get.ts";
import type { ImageLayer } from "./artifact.ts";

export type { Places };

/** What {@linkcode pullBlob} takes. */
export interface PullBlobOptions {
  /** The file to fill; what it has is not asked for again. */
  part: PartFile;
  /** How many connections there are at most. */
  connections: number;
  /** Retries after a transient failure; where bytes arrive, they start anew. */
  retries: RetryOptions;
  /** Called whenever bytes have been written. */
  onBytes: () => void;
  /** Called when a mirror is given up, with its host and the reason. */
  onMirrorFailed: (mirror: string, reason: string) => void;
}

/** The digest that the bytes have, or why they cannot be read by ranges. */
export type BlobResult = { sha256: Sha256 } | NoRanges;

/** Why a blob cannot be read by ranges. */
export interface NoRanges {
  /** The reason, to follow a colon. */
  unavailable: string;
  /** Where the registry could not be reached at all: what happened. */
  unreachable?: ToolsmithError;
}

/**
 * Gets a blob by ranges, and computes its digest in the same pass, from the
 * bytes on the disk. A mirror that fails, in the middle too, costs nothing but
 * what it has sent: the next one, or the registry, goes on.
 *
 * Needs `--allow-net` for the hosts that are asked, `--allow-write` for the
 * file; what {@linkcode readCredentials} needs for a private repository.
 *
 * @param places Where it may come from.
 * @param layer The blob.
 * @param options The file, retries, and who is notified.
 * @returns Its digest, which the caller compares; or why there is none.
 * @throws {ToolsmithError} Those of a network, when retries are used up;
 * `redirect_refused`.
 */
export async function pullBlob(
  places: Places,
  layer: ImageLayer,
  options: PullBlobOptions,
): Promise<BlobResult> {
  const { part, retries, connections, onBytes, onMirrorFailed } = options;
  const stop = new AbortController();
  const { signal = stop.signal } = retries;
  const digest = part.sha256(AbortSignal.any([signal, stop.signal]));
  digest.catch(() => {});
  const blob = { digest: layer.digest, size: layer.size };
  const read = async (place: Place) => {
    using registry = await openPlace(place, connections);
    const stallMs = places.registry.stallTimeoutMs ?? STALL_MS;
    const rest = { ...retries, connections, stallMs, onBytes };
    await readBlob(blobSource(registry, blob), part, rest);
  };
  try {
    for (const place of mirrorPlaces(places)) {
      try {
        await read(place);
        return { sha256: await digest };
      } catch (error) {
        if (!isOfPlace(error)) throw error;
        onMirrorFailed(new URL(place.base).host, error.message);
      }
    }
    await read(registryPlace(places));
    return { sha256: await digest };
  } catch (error) {
    if (!(error instanceof RangesUnavailable)) throw error;
    const { message: unavailable, cause } = error;
    return cause instanceof ToolsmithError
      ? { unavailable, unreachable: cause }
      : { unavailable };
  } finally {
    stop.abort();
  }
}

/**
 * Asks for the head of a blob before `oras` asks for the blob. oras would follow
 * a redirect anywhere: the registry may answer it differently, so this stops the
 * careless and not the malicious. And it would ask a busy registry six times.
 *
 * Needs `--allow-net` for the registry. What cannot be found out is no failure.
 *
 * @param places The registry; mirrors are none of oras's business.
 * @param digest The blob.
 * @param again Whether oras has failed before: an error of the server counts
 * then, though it does not say how long to wait.
 * @throws {ToolsmithError} `redirect_refused`, `rate_limited`,
 * `registry_unavailable`.
 */
export async function probeBlob(
  places: Places,
  digest: string,
  again = false,
): Promise<void> {
  const { stallTimeoutMs = STALL_MS, signal: given } = places.registry;
  const { host } = registryPlace(places);
  using watch = watchStall(host, Math.min(stallTimeoutMs, PROBE_MS), given);
  const { signal } = watch;
  const registry = { ...places.registry, signal };
  let answer: Response;
  try {
    using place = await openPlace(registryPlace({ ...places, registry }), 1);
    const options = { method: "HEAD", headers: {}, signal } as const;
    [answer] = await place.get(`blobs/${digest}`, options);
    await answer.body?.cancel();
  } catch (error) {
    given?.throwIfAborted();
    const refused = (error as { code?: string }).code === "redirect_refused";
    if (refused || error instanceof BusyError) throw error;
    return;
  }
  const error = statusError(answer, host);
  if (error instanceof BusyError || again && isTransient(error)) throw error;
}

/**
 * Tells whether any of the places may be asked: it is not worth to keep bytes
 * that cannot be gone on with.
 *
 * @param places The registry and its mirrors.
 * @returns `true` where one of their hosts is permitted. Nobody is asked.
 */
export async function mayAsk(places: Places): Promise<boolean> {
  const all = [...mirrorPlaces(places), registryPlace(places)];
  for (const { base } of all) {
    if (await isPermitted(new URL(base))) return true;
  }
  return false;
}

/**
 * Tells whether another place may do better: a full disk is no mirror's fault.
 *
 * @param error What a place has failed with.
 */
export function isOfPlace(error: unknown): error is Error {
  const { code } = error as { code?: string };
  return error instanceof RangesUnavailable || isTransient(error) ||
    code === "dns_failed" || code === "tls_failed" ||
    code === "redirect_refused" || code === "file_unreadable";
}
