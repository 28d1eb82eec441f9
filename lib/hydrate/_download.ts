/**
 * Brings an image from an `https://` address, going on with what an earlier run
 * has left.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { HEAD_BYTES, notQcow2, otherFormat } from "../image/other_formats.ts";
import { formatSource } from "../manifest/source.ts";
import { asDigest, transferEngine } from "../system/digest.ts";
import { requireSpace } from "../system/free_space.ts";
import { openPart, type PartFile } from "../system/part_file.ts";
import { readPartRecord } from "../system/part_record.ts";
import { writeAll } from "../system/streams.ts";
import {
  begin,
  cachedName,
  type FetchContext,
  type FetchedImage,
} from "./_context.ts";
import { type HttpsFile, openHttps } from "./_https.ts";
import { spool } from "./_spool.ts";

/**
 * Downloads an image into the context's directory. Where the server says how
 * long it is, what has arrived is kept for the next run, unless nobody knows
 * which digest it should have: the server may have another image by then.
 *
 * @param context The image, the directory, and how to reach the server.
 * @param url The address.
 * @returns The file, and the digest that it has.
 */
export async function downloadImage(
  context: FetchContext,
  url: URL,
): Promise<FetchedImage> {
  const { dir, image, pinned, retries, registry } = context;
  const { caFile, stallTimeoutMs } = registry;
  const digest = asDigest(image.sha256);
  const record = pinned ? await readPartRecord(dir) : undefined;
  const name = cachedName(url.pathname.split("/").at(-1) ?? "");
  const prefix = record?.extents[0];
  const resume = prefix?.[0] === 0 && record?.digest === digest
    // All of it may be there: something must be asked for.
    ? { from: Math.min(prefix[1], record.size - 1), size: record.size }
    : undefined;
  using file = await openHttps(url, {
    ...{ caFile, stallTimeoutMs, resume },
    ...retries,
  });
  const { bytes: size } = file;
  const chunks = file.from === 0
    ? await refuseOther(file.chunks, formatSource(image.source))
    : file.chunks;
  if (size !== null) await requireSpace(dir, size - file.from);
  if (size === null || !pinned) {
    return await spool(context, chunks, { name, total: size, write: writeAll });
  }
  const engine = transferEngine(size, registry.env);
  await using part = await openPart(dir, { size, digest }, { engine });
  const actual = await fill(context, part, { ...file, chunks });
  if (actual !== image.sha256 && part.kept > 0) {
    // What was kept may be wrong: once more, without it.
    await part.clear();
    using again = await openHttps(url, { caFile, stallTimeoutMs, ...retries });
    return await finished(part, name, await fill(context, part, again));
  }
  return await finished(part, name, actual);
}

/** Refuses what is not an image by its first bytes: the rest may take hours. */
async function refuseOther(
  chunks: HttpsFile["chunks"],
  shown: string,
): Promise<HttpsFile["chunks"]> {
  const rest = chunks[Symbol.asyncIterator]();
  let head = new Uint8Array();
  while (head.length < HEAD_BYTES) {
    const { done, value } = await rest.next();
    if (done) break;
    const longer = new Uint8Array(head.length + value.length);
    longer.set(head);
    longer.set(value, head.length);
    head = longer;
  }
  if (otherFormat(head)) throw notQcow2(head, shown);
  return (async function* () {
    yield head;
    yield* { [Symbol.asyncIterator]: () => rest };
  })();
}

/** Writes what the part file lacks, and computes its digest. */
async function fill(
  context: FetchContext,
  part: PartFile,
  { bytes, from, chunks }: Pick<HttpsFile, "bytes" | "from" | "chunks">,
) {
  const { bytes: resumed, size: total } = part;
  if (bytes !== total) throw changed(context);
  const progress = begin(context, { total, resumed });
  const stop = new AbortController();
  const { signal = stop.signal } = context.retries;
  const digest = part.sha256(AbortSignal.any([signal, stop.signal]));
  digest.catch(() => {});
  try {
    using writer = await part.openWriter();
    let position = from;
    for await (const chunk of chunks) {
      const end = position + chunk.length;
      for (const [at, to] of part.gaps([position, end])) {
        writer.write(at, chunk.subarray(at - position, to - position));
      }
      position = end;
      progress.at(part.bytes);
    }
    // The digest would wait for them.
    if (part.gaps().length > 0) throw changed(context);
    progress.end(total - resumed);
    return await digest;
  } finally {
    stop.abort();
  }
}

/** The next attempt goes on with what is there by now. */
function changed({ image: { source } }: FetchContext): ToolsmithError {
  return new ToolsmithError(
    "transfer_interrupted",
    `Cannot go on with ${
      formatSource(source)
    }: it is not what it was when the transfer began`,
    { hint: "try again" },
  );
}

async function finished(part: PartFile, name: string, actual: string) {
  const hashed = await part.finish();
  return { path: part.path, name, bytes: part.size, actual, hashed };
}
