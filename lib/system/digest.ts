/**
 * SHA-256: reading digests, and computing them over streams of any length in
 * constant memory.
 *
 * @module
 */
import { type Environment, processEnvironment } from "../environment.ts";
import { systemError, ToolsmithError } from "../errors.ts";
import { oneLine } from "./text.ts";
import { settlesWithin } from "./time.ts";

const CHUNK = 1024 * 1024;
const POLL_MS = 40;
/** From this size on a transfer waits for its digest. */
const LARGE_BYTES = 64 * 1024 * 1024;

/** A SHA-256 in 64 digits of lower-case hex. */
export type Sha256 = string;

/** A SHA-256 as OCI writes it (image-spec, "Digests"). */
export type Digest = `sha256:${Sha256}`;

/**
 * Writes a SHA-256 as OCI does.
 *
 * @param hex The digits.
 * @returns `sha256:` and the digits.
 */
export function asDigest(hex: Sha256): Digest {
  return `sha256:${hex}`;
}

/**
 * The digits of a digest.
 *
 * @param digest `sha256:` and the digits.
 * @returns The digits.
 */
export function sha256Hex(digest: Digest): Sha256 {
  return digest.slice("sha256:".length);
}

/**
 * Tells a digest in OCI's form, which has lower case alone, from other texts.
 *
 * @param text The text.
 */
export function isDigest(text: string): text is Digest {
  return /^sha256:[0-9a-f]{64}$/.test(text);
}

/**
 * Reads a SHA-256.
 *
 * @param text 64 digits of hex in either case, with or without `sha256:`.
 * @returns The digits in lower case, or `undefined` if it is none.
 *
 * @example
 * ```ts
 * import { parseSha256 } from "./digest.ts";
 *
 * if (parseSha256("sha256:" + "AB".repeat(32)) !== "ab".repeat(32)) throw "";
 * ```
 */
export function parseSha256(text: string): Sha256 | undefined {
  const hex = text.trim().replace(/^sha256:/i, "").toLowerCase();
  return /^[0-9a-f]{64}$/.test(hex) ? hex : undefined;
}

/**
 * Who computes a digest: `@std/crypto`, in WebAssembly, or the runtime's own
 * implementation, which is several times as fast.
 */
export type DigestEngine = "std" | "runtime";

/**
 * Chooses who computes the digest of an image that is transferred, or read
 * again: the runtime from 64 MiB on, unless `TOOLSMITH_DIGEST` is `std`.
 *
 * @param bytes Size of the image, in bytes.
 * @param env Read for `TOOLSMITH_DIGEST`.
 * @returns The engine.
 * @throws {ToolsmithError} `usage`: the variable has another value.
 */
export function transferEngine(
  bytes: number,
  env: Environment = processEnvironment,
): DigestEngine {
  const named = env.get("TOOLSMITH_DIGEST");
  if (named === "std") return named;
  if (!named) return bytes < LARGE_BYTES ? "std" : "runtime";
  throw new ToolsmithError(
    "usage",
    `Cannot use TOOLSMITH_DIGEST=${oneLine(named, 40)}`,
    { hint: "set TOOLSMITH_DIGEST to std, or unset it" },
  );
}

/**
 * Computes the SHA-256 of a stream, holding one chunk at a time.
 *
 * @param chunks The bytes; a chunk is used before the next is asked for.
 * @param engine Who computes it. Where the runtime cannot, `@std/crypto` does.
 * @returns The digest.
 */
export async function sha256(
  chunks: AsyncIterable<Uint8Array<ArrayBuffer>>,
  engine: DigestEngine = "std",
): Promise<Sha256> {
  const hash = engine === "runtime" ? await runtimeHash() : undefined;
  if (hash) {
    for await (const chunk of chunks) hash.update(chunk);
    return hash.digest("hex");
  }
  // Its WebAssembly takes milliseconds of every start: it waits its turn.
  const { crypto } = await import("@std/crypto/crypto");
  const digest = await crypto.subtle.digest("SHA-256", chunks);
  return new Uint8Array(digest).toHex();
}

/** The runtime's hash; `undefined` where a runtime has none. */
async function runtimeHash() {
  try {
    const { createHash } = await import("node:crypto");
    return createHash("sha256");
  } catch {
    return undefined;
  }
}

/**
 * Computes the SHA-256 of a text in UTF-8.
 *
 * @param text The text.
 * @returns The digest.
 */
export async function sha256OfText(text: string): Promise<Sha256> {
  const bytes = new TextEncoder().encode(text);
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  return new Uint8Array(digest).toHex();
}

/** What {@linkcode fileChunks} takes. */
export interface FileChunksOptions {
  /** Called with the count of bytes read so far. */
  onBytes?: (bytes: number) => void;
  /** Ends the reading when aborted. */
  signal?: AbortSignal;
  /**
   * The file is still being written until this settles: its end is waited for,
   * and a file that is not there yet is awaited.
   */
  growingUntil?: Promise<unknown>;
  /** Called at the end with what the system says of the file that was read. */
  onEnd?: (stat: Deno.FileInfo) => void;
}

/**
 * Reads a file in chunks of 1 MiB, all in the same buffer. A file that another
 * program is still writing can be followed, so that a digest is ready when the
 * writer is.
 *
 * Needs `--allow-read` for the file.
 *
 * @param path The file.
 * @param options Progress, cancelling, following a growing file.
 * @returns The chunks; each is overwritten by the next.
 * @throws {Deno.errors.NotFound} When the file is not there (by the end).
 * @throws The signal's reason when it is aborted.
 */
export async function* fileChunks(
  path: string,
  options: FileChunksOptions = {},
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const { onBytes, signal, growingUntil, onEnd } = options;
  let growing = growingUntil !== undefined;
  growingUntil?.then(() => growing = false, () => growing = false);
  let file: Deno.FsFile | undefined;
  while (!file) {
    signal?.throwIfAborted();
    const last = !growing;
    try {
      file = await Deno.open(path);
    } catch (error) {
      if (last || !(error instanceof Deno.errors.NotFound)) throw error;
      await settlesWithin(growingUntil!, POLL_MS);
    }
  }
  using reading = file;
  const buffer = new Uint8Array(CHUNK);
  let bytes = 0;
  while (true) {
    signal?.throwIfAborted();
    // Asked before the read: what was written before the end is still read.
    const last = !growing;
    const count = await reading.read(buffer).catch((cause) => {
      throw systemError(cause, { what: `Cannot read ${path}` });
    });
    if (count !== null) {
      bytes += count;
      onBytes?.(bytes);
      yield buffer.subarray(0, count);
    } else if (last) return onEnd?.(await reading.stat());
    else await settlesWithin(growingUntil!, POLL_MS);
  }
}
