/**
 * Looks at an image before it is published: is it one, does it stand alone, and
 * would it be much smaller if it were compressed.
 *
 * @module
 */
import { basename, dirname, join, shellWord } from "../path.ts";
import { systemError, ToolsmithError } from "../errors.ts";
import {
  assertSelfContained,
  inspectQcow2,
  type Qcow2Clusters,
  type Qcow2Info,
  sampleClusters,
} from "./qcow2.ts";

/** What {@linkcode inspectImage} found. */
export interface ImageInspection {
  /** Size of the file, in bytes. */
  bytes: number;
  /** Size of the disk that the guest sees, in bytes. */
  virtualSize: number;
  /** Whether most of its clusters are compressed, as far as they were seen. */
  compressed: boolean;
  /** How much of the file is holes, in bytes; `null` where the system does not say. */
  sparseBytes: number | null;
  /** The part of the file that compression would save, from 0 to 1. */
  savings: number;
  /** When the file was last written. */
  modified: Date | null;
  /** What a person should know before it is published. */
  warnings: string[];
}

const SAMPLES = 64;
const SAMPLE = 64 * 1024;
const WORTH_IT = 0.1;
// GitHub documents 10 GB a layer; larger ones are reported to work.
const LARGE = 10 * 1000 ** 3;

/**
 * Inspects a QCOW2 image that is to be published.
 *
 * Needs `--allow-read` for the file.
 *
 * @param path The file.
 * @returns What it is, and what to warn of.
 * @throws {ToolsmithError} `source_not_found`, `file_unreadable`,
 * `image_invalid` when it is no QCOW2 or is encrypted, `image_unsafe` when it
 * refers to another file.
 */
export async function inspectImage(path: string): Promise<ImageInspection> {
  const stat = await statFile(path, "image");
  const info = await inspectQcow2(path).catch((error) => {
    throw asFileError(error, path, "image");
  });
  assertSelfContained(info, path);
  if (info.encryption) {
    throw new ToolsmithError(
      "image_invalid",
      `${path} is encrypted (${info.encryption}): nobody else could boot it`,
      { hint: "publish a decrypted copy: qemu-img convert -O qcow2" },
    );
  }
  const clusters = await sampleClusters(path);
  const compressed = clusters.compressed > clusters.plain.length;
  const savings = await estimateSavings(path, info, clusters);
  const warnings: string[] = [];
  if (savings > WORTH_IT) {
    const percent = Math.round(savings * 100);
    warnings.push(
      `${path} would shrink by about ${percent} % if it were compressed: ` +
        shrinkCommand(path),
    );
  }
  if (stat.size > LARGE) {
    const size = (stat.size / 1000 ** 3).toFixed(1);
    warnings.push(
      `${path} has ${size} GB: ghcr.io documents a limit of 10 GB a layer, and of 10 minutes an upload`,
    );
  }
  return {
    bytes: stat.size,
    virtualSize: info.virtualSize,
    compressed,
    sparseBytes: stat.blocks === null
      ? null
      : Math.max(0, stat.size - stat.blocks * 512),
    savings,
    modified: stat.mtime,
    warnings,
  };
}

/**
 * Asks for a file that a person named.
 *
 * Needs `--allow-read` for the file.
 *
 * @param path The file.
 * @param what What it is to be, for the message.
 * @returns Its size and times; symbolic links are followed.
 * @throws {ToolsmithError} `source_not_found`, or `file_unreadable` when it is
 * a directory or may not be read.
 */
export async function statFile(
  path: string,
  what: string,
): Promise<Deno.FileInfo> {
  let stat: Deno.FileInfo;
  try {
    stat = await Deno.stat(path);
    // Opened as well: a file may be seen and yet not read.
    if (stat.isFile) (await Deno.open(path)).close();
  } catch (error) {
    throw asFileError(error, path, what);
  }
  if (stat.isFile) return stat;
  throw new ToolsmithError(
    "file_unreadable",
    `Cannot read ${what} ${path}: it is ${
      stat.isDirectory ? "a directory" : "not a regular file"
    }`,
    { hint: "name a file" },
  );
}

/** What to run to get a smaller image. */
function shrinkCommand(path: string): string {
  const name = basename(path).replace(/\.[^.]+$/, "");
  const smaller = join(dirname(path), `${name}.compressed.qcow2`);
  return `qemu-img convert -c -O qcow2 ${shellWord(path)} ${
    shellWord(smaller)
  }`;
}

/**
 * Estimates what `qemu-img convert -c` would save: it compresses clusters, which
 * is tried on some that are spread over the image, and leaves out what nothing
 * refers to. Tables stay as they are.
 */
async function estimateSavings(
  path: string,
  info: Qcow2Info,
  { plain, seen, compressedBytes, tableBytes }: Qcow2Clusters,
): Promise<number> {
  const { clusterSize, fileSize } = info;
  using file = await Deno.open(path);
  const buffer = new Uint8Array(Math.min(clusterSize, SAMPLE));
  const count = Math.min(plain.length, SAMPLES);
  let before = 0;
  let after = 0;
  for (let i = 0; i < count; i++) {
    // One of each stretch, not always the first: images are periodic.
    const within = count === plain.length ? 0 : (i * 0.618) % 1;
    const at = plain[Math.floor((i + within) * plain.length / count)];
    await file.seek(at, Deno.SeekMode.Start);
    const read = await file.read(buffer) ?? 0;
    before += read;
    after += Math.min(read, await compressedSize(buffer.subarray(0, read)));
  }
  const plainBytes = Math.min(fileSize, plain.length * clusterSize / seen);
  const squeezed = before === 0 ? 0 : plainBytes * (1 - after / before);
  // Snapshots have tables of their own, and so has what was not looked at.
  const known = seen === 1 && info.snapshots === 0;
  const clusters = fileSize / clusterSize;
  const counts = Math.ceil(clusters / (clusterSize / 2)) + 3;
  const unused = fileSize - plainBytes - compressedBytes - tableBytes -
    counts * clusterSize;
  return (squeezed + (known ? Math.max(0, unused) : 0)) / fileSize;
}

async function compressedSize(bytes: Uint8Array<ArrayBuffer>): Promise<number> {
  if (bytes.every((byte) => byte === 0)) return 0;
  const stream = new Blob([bytes]).stream()
    .pipeThrough(new CompressionStream("deflate-raw"));
  let size = 0;
  for await (const chunk of stream) size += chunk.length;
  return size;
}

function asFileError(error: unknown, path: string, what: string): unknown {
  if (error instanceof Deno.errors.NotFound) {
    return new ToolsmithError(
      "source_not_found",
      `Cannot read ${what} ${path}: no such file`,
      { hint: "check the path; it starts from the current directory" },
    );
  }
  return systemError(error, { what: `Cannot read ${what} ${path}` });
}
