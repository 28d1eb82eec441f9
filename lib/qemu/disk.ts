/**
 * Prepares the disk of a machine, so that the image itself is never written.
 *
 * @module
 */
import { dirname, join, resolve } from "../path.ts";
import { systemError, ToolsmithError } from "../errors.ts";
import { DISK } from "./devices.ts";
import type { Qmp } from "./qmp.ts";
import { writeOverlay } from "../image/overlay.ts";
import { assertSelfContained, inspectQcow2 } from "../image/qcow2.ts";

export { writeOverlay };

/** The disk of a machine. */
export interface BootDisk {
  /** Absolute path of the file that QEMU opens. */
  disk: string;
  /** Throw away what the guest writes. */
  ephemeral: boolean;
}

/**
 * Looks at the image before QEMU does, and makes the overlay if one is wanted.
 *
 * Needs `--allow-read` for both, and `--allow-write` for an overlay.
 *
 * @param image The image.
 * @param overlay Keeps what the guest writes. Without it nothing is kept.
 * @returns What QEMU opens.
 * @throws {ToolsmithError} `image_invalid`, `image_unsafe`, `source_not_found`,
 * `usage`.
 */
export async function prepareDisk(
  image: string,
  overlay?: string,
): Promise<BootDisk> {
  const path = resolve(image);
  const info = await inspect(path);
  assertSelfContained(info, path);
  if (info.encryption) {
    throw new ToolsmithError("image_invalid", `${path} is encrypted`, {
      hint: "decrypt it with qemu-img convert before it is published",
    });
  }
  if (overlay === undefined) return { disk: path, ephemeral: true };
  const disk = resolve(overlay);
  if (!await Deno.lstat(disk).then(() => true, () => false)) {
    await makeOverlay(disk, path);
  }
  await checkOverlay(disk, path);
  return { disk, ephemeral: false };
}

/**
 * Compares the files that QEMU has opened for the disk with those that it should
 * have: an image file names the one below it, and may have been replaced since
 * it was looked at.
 *
 * @param qmp The connection to QEMU, which has not run the guest yet.
 * @param files Absolute paths, the image last.
 * @param disk Whether QEMU has put a temporary file above them.
 * @throws {ToolsmithError} `image_unsafe` when QEMU has opened others.
 */
export async function assertDiskChain(
  qmp: Qmp,
  files: string[],
  disk: { ephemeral: boolean },
): Promise<void> {
  const [answer] = await qmp.send(["query-block"]);
  const drive = (answer as Drive[]).find(({ device }) => device === DISK);
  const layers: ImageInfo[] = [];
  for (let at = drive?.inserted?.image; at; at = at["backing-image"]) {
    layers.push(at);
  }
  if (disk.ephemeral) layers.shift();
  const opened = layers.flatMap((layer) =>
    [
      layer.filename,
      layer["format-specific"]?.data?.["data-file"] ?? [],
    ].flat()
  );
  // QEMU does not normalise the name of a file that another one names.
  const paths = opened.map((path) => resolve(path));
  if (paths.join("\0") === files.join("\0")) return;
  throw new ToolsmithError(
    "image_unsafe",
    `The disk is not what it was: QEMU has opened ${opened.join(", ")}`,
    { hint: `only these belong to it: ${files.join(", ")}` },
  );
}

/** Of the answer to `query-block` (QEMU's QMP reference, BlockInfo). */
interface Drive {
  device: string;
  inserted?: { image: ImageInfo };
}

interface ImageInfo {
  filename: string;
  "backing-image"?: ImageInfo;
  "format-specific"?: { data?: { "data-file"?: string } };
}

async function inspect(path: string) {
  try {
    return await inspectQcow2(path);
  } catch (cause) {
    if (!(cause instanceof Deno.errors.NotFound)) throw cause;
    throw new ToolsmithError("source_not_found", `No such image: ${path}`, {
      cause,
    });
  }
}

/**
 * Refuses a disk that is no overlay of the image: with another below it, the guest
 * would have a broken disk, and QEMU opens whatever it names.
 *
 * Needs `--allow-read` for it.
 *
 * @param disk The disk.
 * @param image Absolute path of the image.
 * @throws {ToolsmithError} `image_unsafe`, `image_invalid`.
 */
export async function checkOverlay(disk: string, image: string): Promise<void> {
  const { backingFile, dataFile } = await inspectQcow2(disk);
  const base = resolve(dirname(disk), backingFile ?? "");
  if (backingFile !== undefined && base === image && dataFile === undefined) {
    return;
  }
  throw new ToolsmithError(
    "image_unsafe",
    `${disk} is not an overlay of ${image}: it is based on ${
      backingFile ?? "nothing"
    }`,
    { hint: "name another file for --overlay, or remove this one" },
  );
}

async function linkNew(from: string, to: string) {
  try {
    await Deno.link(from, to);
  } catch (error) {
    if (!(error instanceof Deno.errors.AlreadyExists)) throw error;
  }
}

async function makeOverlay(disk: string, image: string) {
  // Linked into place: a half-written overlay is never taken for one, and that
  // of a process that was faster is never replaced.
  const staging = join(dirname(disk), `.${crypto.randomUUID()}.overlay`);
  try {
    await writeOverlay(staging, image);
    await linkNew(staging, disk);
  } catch (cause) {
    throw systemError(cause, {
      code: "boot_failed",
      what: `Cannot make the overlay ${disk}`,
      hint: "name a place in a directory that you can write",
    });
  } finally {
    await Deno.remove(staging).catch(() => {});
  }
}
