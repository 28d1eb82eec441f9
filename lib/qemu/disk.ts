/** Prepares a VM's disk: the image itself is never written. */
import { dirname, join, resolve } from "../path.ts";
import { systemError, ToolsmithError } from "../errors.ts";
import type { QemuOptions } from "./args.ts";
import { DISK_ID } from "./device_ids.ts";
import type { QmpConnection } from "./qmp.ts";
import { orIfNotFound } from "../system/files.ts";
import { writeOverlay } from "../image/overlay.ts";
import { assertBootableImage, readQcow2Header } from "../image/qcow2_header.ts";

export { writeOverlay };

/** Validates the image before QEMU opens it, and creates the overlay if needed. */
export async function prepareDisk(
  image: string,
  overlay?: string,
): Promise<Pick<QemuOptions, "disk" | "ephemeral">> {
  const path = resolve(image);
  const header = await orIfNotFound(readQcow2Header(path));
  if (!header) {
    throw new ToolsmithError("source_not_found", `Image not found: ${path}`);
  }
  assertBootableImage(header, path);
  if (overlay === undefined) return { disk: path, ephemeral: true };
  const disk = resolve(overlay);
  if (!await Deno.lstat(disk).then(() => true, () => false)) {
    await createOverlay(disk, path);
  }
  await assertOverlayOfImage(disk, path);
  return { disk, ephemeral: false };
}

/**
 * Compares the disk files that QEMU has opened with the disk and its image, both absolute
 * paths. Each file names its backing file, so a file replaced after its validation could
 * expose others.
 */
export async function assertBackingChain(
  qmp: QmpConnection,
  { disk, ephemeral }: Pick<QemuOptions, "disk" | "ephemeral">,
  image: string,
): Promise<void> {
  const [answer] = await qmp.execute(["query-block"]);
  const drives = answer as BlockInfo[];
  const drive = drives.find(({ device }) => device === DISK_ID);
  const top = drive?.inserted?.image;
  const opened: string[] = [];
  // Above an ephemeral disk is QEMU's temporary overlay.
  let layer = ephemeral ? top?.["backing-image"] : top;
  for (; layer; layer = layer["backing-image"]) {
    opened.push(layer.filename);
    const dataFile = layer["format-specific"]?.data?.["data-file"];
    if (dataFile !== undefined) opened.push(dataFile);
  }
  // QEMU does not normalize the path of a backing file.
  const paths = opened.map((path) => resolve(path));
  const files = disk === image ? [image] : [disk, image];
  if (paths.join("\0") === files.join("\0")) return;
  throw new ToolsmithError(
    "image_unsafe",
    `QEMU opened unexpected disk files: ${opened.join(", ")}`,
    { hint: `restore the expected files: ${files.join(", ")}` },
  );
}

/** Part of the answer to `query-block` (QEMU's QMP reference). */
interface BlockInfo {
  device: string;
  inserted?: { image: ImageInfo };
}

interface ImageInfo {
  filename: string;
  "backing-image"?: ImageInfo;
  "format-specific"?: { data?: { "data-file"?: string } };
}

/**
 * Rejects a disk that is not an overlay of the image: QEMU opens whatever backing file
 * it names, and the guest's disk would be corrupt.
 */
export async function assertOverlayOfImage(
  disk: string,
  image: string,
): Promise<void> {
  const { backingFile, dataFile } = await readQcow2Header(disk);
  const isOverlay = backingFile !== undefined && dataFile === undefined &&
    resolve(dirname(disk), backingFile) === image;
  if (isOverlay) return;
  const found = backingFile ?? "none";
  const message =
    `${disk} is not an overlay of ${image}: its backing file is ${found}`;
  const hint = "pass another file with --overlay, or remove the existing file";
  throw new ToolsmithError("image_unsafe", message, { hint });
}

async function createOverlay(disk: string, image: string) {
  // A link appears atomically and never replaces the overlay of a faster process.
  const staging = join(dirname(disk), `.${crypto.randomUUID()}.overlay`);
  try {
    await writeOverlay(staging, image);
    await Deno.link(staging, disk);
  } catch (cause) {
    if (cause instanceof Deno.errors.AlreadyExists) return;
    throw systemError(cause, {
      code: "boot_failed",
      messagePrefix: `Cannot create the overlay ${disk}`,
      hint: "pass --overlay a path in a directory that you can write to",
    });
  } finally {
    await Deno.remove(staging).catch(() => {});
  }
}
