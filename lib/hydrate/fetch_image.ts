/** Fetches an image from a registry, an HTTPS server or a local path. */
import { processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import {
  CONNECTIONS_RANGE_TEXT,
  parseConnectionCount,
} from "../oci/registry_options.ts";
import { retryReporter } from "../system/retry.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import type { FetchedImage, FetchOptions, FetchRequest } from "./_fetch_job.ts";
import { copyLocalImage } from "./_copy_local_image.ts";
import { downloadHttpsImage } from "./_https_download.ts";
import { pullFromRegistry } from "./_registry_pull.ts";

export type { FetchOptions };

const DEFAULT_CONNECTION_COUNT = 4;

/**
 * Fetches an image into a directory. The digest in the result is the computed one,
 * which the caller compares.
 */
export function fetchImage(request: FetchRequest): Promise<FetchedImage> {
  const { image: { name, source }, emit } = request;
  const connections = resolveConnectionCount(request);
  const job = { ...request, connections, onRetry: retryReporter(emit, name) };
  switch (source.kind) {
    case "oci":
      return pullFromRegistry(job, source);
    case "https":
      // A file server for browsers may limit or dislike parallel connections.
      return downloadHttpsImage({ ...job, connections: 1 }, source.url);
    case "file":
      return copyLocalImage(job, source.path);
  }
}

function resolveConnectionCount(
  { connections, env = processEnvironment }: FetchOptions,
): number {
  const variable = env.get("TOOLSMITH_CONNECTIONS");
  const text = `${connections ?? (variable || DEFAULT_CONNECTION_COUNT)}`;
  const count = parseConnectionCount(text);
  if (count !== undefined) return count;
  const shown = sanitizeLine(text, 40);
  const message = connections === undefined
    ? `Cannot use TOOLSMITH_CONNECTIONS=${shown}`
    : `Cannot use ${shown} connections`;
  const hint = `use ${CONNECTIONS_RANGE_TEXT}`;
  throw new ToolsmithError("usage", message, { hint });
}
