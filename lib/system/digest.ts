/**
 * Parses SHA-256 digests, and computes them over streams in constant memory.
 */
import { type Environment, processEnvironment } from "../environment.ts";
import { systemError, ToolsmithError } from "../errors.ts";
import { orIfNotFound } from "./files.ts";
import { sanitizeLine } from "./sanitize_text.ts";

const CHUNK_BYTES = 1024 * 1024;
/** From this size on, hashing with `@std/crypto` would slow down a transfer. */
const RUNTIME_ENGINE_MIN_BYTES = 64 * 1024 * 1024;

/** A SHA-256 as 64 lower-case hex digits. */
export type Sha256 = string;

/** A SHA-256 in OCI form (image-spec, "Digests"). */
export type Digest = `sha256:${Sha256}`;

export function sha256ToDigest(hex: Sha256): Digest {
  return `sha256:${hex}`;
}

export function digestToSha256(digest: Digest): Sha256 {
  return digest.slice("sha256:".length);
}

/** Whether a text is a digest in OCI form, which is lower case only. */
export function isSha256Digest(text: string): text is Digest {
  return /^sha256:[0-9a-f]{64}$/.test(text);
}

/** Parses 64 hex digits in either case, with or without `sha256:`. */
export function parseSha256(text: string): Sha256 | undefined {
  const hex = text.trim().replace(/^sha256:/i, "").toLowerCase();
  return /^[0-9a-f]{64}$/.test(hex) ? hex : undefined;
}

/**
 * Implementation of SHA-256: `@std/crypto` in WebAssembly, or the runtime's own
 * (`node:crypto`), which is several times as fast.
 */
export type DigestEngineName = "std" | "runtime";

/**
 * Selects the engine for an image that is transferred or read again: the runtime from
 * 64 MiB on, unless `TOOLSMITH_DIGEST` is `std`; any other value is an error.
 */
export function selectDigestEngine(
  bytes: number,
  env: Environment = processEnvironment,
): DigestEngineName {
  const named = env.get("TOOLSMITH_DIGEST");
  if (named === "std") return named;
  if (!named) return bytes < RUNTIME_ENGINE_MIN_BYTES ? "std" : "runtime";
  const message = `Cannot use TOOLSMITH_DIGEST=${sanitizeLine(named, 40)}`;
  const hint = "set TOOLSMITH_DIGEST=std, or unset TOOLSMITH_DIGEST";
  throw new ToolsmithError("usage", message, { hint });
}

/**
 * Computes the SHA-256 of a stream, one chunk at a time. Falls back to
 * `@std/crypto` when the runtime has no implementation.
 */
export async function sha256OfChunks(
  chunks: AsyncIterable<Uint8Array<ArrayBuffer>>,
  engine: DigestEngineName = "std",
): Promise<Sha256> {
  const hash = engine === "runtime"
    ? await import("node:crypto")
      .then(({ createHash }) => createHash("sha256"), () => undefined)
    : undefined;
  if (hash) {
    for await (const chunk of chunks) hash.update(chunk);
    return hash.digest("hex");
  }
  // Imported late: its WebAssembly would add milliseconds to every start.
  const { crypto } = await import("@std/crypto/crypto");
  const digest = await crypto.subtle.digest("SHA-256", chunks);
  return new Uint8Array(digest).toHex();
}

export function sha256OfText(text: string): Promise<Sha256> {
  return sha256OfBytes(new TextEncoder().encode(text));
}

export async function sha256OfBytes(bytes: Uint8Array<ArrayBuffer>) {
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  return new Uint8Array(digest).toHex();
}

export interface ReadFileChunksOptions {
  /** Called after each chunk with the number of bytes read so far. */
  onBytesRead?: (totalBytes: number) => void;
  signal?: AbortSignal;
  /**
   * Up to which offsets to read, in order, while the file grows; `Infinity` is the
   * file's current end.
   *
   * @default {[Infinity]}
   */
  byteCounts?: Iterable<number> | AsyncIterable<number>;
  /** Called with the open file's stat after the last byte, not after an error. */
  onEndOfFile?: (stat: Deno.FileInfo) => void;
}

/**
 * Reads a file in chunks of 1 MiB that share one buffer: each overwrites the previous
 * one. Can follow a file that another program is writing, so that the digest is ready
 * when the writer is. Throws `Deno.errors.NotFound` if the file never appears, and
 * `file_unreadable` if it is truncated meanwhile.
 */
export async function* readFileChunks(
  path: string,
  options: ReadFileChunksOptions = {},
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  const { onBytesRead, signal, byteCounts = [Infinity] } = options;
  using opened = new DisposableStack();
  let file: Deno.FsFile | undefined;
  const buffer = new Uint8Array(CHUNK_BYTES);
  let position = 0;
  for await (const end of byteCounts) {
    signal?.throwIfAborted();
    file ??= opened.use(await orIfNotFound(Deno.open(path)));
    while (file && position < end) {
      signal?.throwIfAborted();
      const count = await file.read(buffer.subarray(0, end - position))
        .catch((cause) => {
          throw systemError(cause, { messagePrefix: `Cannot read ${path}` });
        });
      if (count === null && end === Infinity) break;
      if (count === null) throw truncatedFileError(path);
      position += count;
      onBytesRead?.(position);
      yield buffer.subarray(0, count);
    }
  }
  file ??= opened.use(await Deno.open(path));
  options.onEndOfFile?.(await file.stat());
}

function truncatedFileError(path: string): ToolsmithError {
  const message =
    `Cannot read ${path}: the file was truncated while being read`;
  const hint = "stop other programs from writing to this file, then try again";
  return new ToolsmithError("file_unreadable", message, { hint });
}
