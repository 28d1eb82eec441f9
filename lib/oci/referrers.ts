/**
 * Fetches small files that are attached to an artifact, such as signatures.
 *
 * Format: OCI Distribution Specification 1.1, "Listing Referrers", and "Referrers Tag
 * Schema" for registries without that API.
 */
import { type Digest, isSha256Digest } from "../system/digest.ts";
import { withOptionalRequestTimeout } from "../system/stall_timer.ts";
import { RangesUnavailableError } from "../transfer/byte_source.ts";
import {
  type Endpoint,
  type Endpoints,
  repositoryClient,
} from "./endpoints.ts";

/** What all files of an artifact and a type may have: 32 files of 1 MiB, or 2 of 16. */
const MAX_TOTAL_BYTES = 32 * 1024 * 1024;
/** The specification's limit of an index. */
const MAX_INDEX_BYTES = 4 * 1024 * 1024;

type Descriptor = { digest: Digest; size: number };

export interface AttachedFileKind {
  /** The artifact type, and the media type of the file. */
  type: string;
  /** Size of the largest file, in bytes. */
  maxBytes: number;
}

/**
 * Fetches files that are attached to an artifact: the first ones, 32 MiB at most. Yields
 * for each file its bytes, or why it was not fetched. `digest` is the manifest's. Throws
 * the errors of the client's `getBytes()`, except for a missing file.
 */
export async function* fetchAttachedFiles(
  endpoint: Endpoint,
  digest: Digest,
  { type, maxBytes }: AttachedFileKind,
): AsyncGenerator<Uint8Array | string> {
  using client = await repositoryClient(endpoint);
  const list = async (path: string, field: string): Promise<Descriptor[]> => {
    try {
      const { bytes } = await client.getBytes(path, MAX_INDEX_BYTES);
      const json = JSON.parse(new TextDecoder().decode(bytes));
      return [json?.[field]].flat().filter((it) =>
        typeof it?.digest === "string" && isSha256Digest(it.digest) &&
        Number.isSafeInteger(it.size) &&
        [it.artifactType, it.mediaType].includes(type)
      );
    } catch (error) {
      const { cause } = error as { cause?: { code?: string } };
      // Registries without the API answer 400, 404 or 405, or with HTML.
      const isMissing = /^(?:not_found|failed)$/.test(cause?.code ?? "");
      if (isMissing || error instanceof SyntaxError) return [];
      throw error;
    }
  };
  // A "+" would stand for a space.
  const query = `artifactType=${encodeURIComponent(type)}`;
  const listed = await list(`referrers/${digest}?${query}`, "manifests");
  if (listed.length === 0) {
    const fallback = `manifests/${digest.replace(":", "-")}`;
    listed.push(...await list(fallback, "manifests"));
  }
  for (const { digest } of listed.slice(0, MAX_TOTAL_BYTES / maxBytes)) {
    try {
      const [file] = await list(`manifests/${digest}`, "layers");
      if (!file) {
        yield `${digest} has no file of the type ${type}`;
      } else if (file.size > maxBytes) {
        yield `${file.size} bytes exceed ${maxBytes / 1024 / 1024} MiB`;
      } else {
        const path = `blobs/${file.digest}`;
        yield (await client.getBytes(path, maxBytes)).bytes;
      }
    } catch (error) {
      if (!(error instanceof RangesUnavailableError)) throw error;
      yield error.message;
    }
  }
}

/**
 * Fetches attached files from the mirrors and the registry, without those that cannot
 * be fetched in a short time. They are untrusted.
 */
export async function* findAttachedFiles(
  { mirrors, registry }: Endpoints,
  digest: Digest,
  kind: AttachedFileKind,
): AsyncGenerator<Uint8Array> {
  for (const endpoint of [...mirrors, registry]) {
    const options = withOptionalRequestTimeout(endpoint.options);
    const impatient = { ...endpoint, options };
    try {
      for await (const file of fetchAttachedFiles(impatient, digest, kind)) {
        if (typeof file !== "string") yield file;
      }
    } catch {
      options.signal?.throwIfAborted();
    }
  }
}
