/**
 * Prepares the disk of a machine, so that the image itself is never written.
 *
 * @module
 */
import { dirname, join, resolve } from "@std/path";
import { ToolsmithError } from "../errors.ts";
import { run } from "../system/process.ts";
import { assertSelfContained, inspectQcow2 } from "../image/qcow2.ts";

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
 * Needs `--allow-read` for both, and for an overlay `--allow-write` and
 * `--allow-run=qemu-img`.
 *
 * @param image The image.
 * @param overlay Keeps what the guest writes. Without it nothing is kept.
 * @returns What QEMU opens.
 * @throws {ToolsmithError} `image_invalid`, `image_unsafe`, `source_not_found`.
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
  if (await Deno.lstat(disk).then(() => true, () => false)) {
    await checkOverlay(disk, path);
  } else await makeOverlay(disk, path);
  return { disk, ephemeral: false };
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

/** An overlay of another image would show the guest a broken disk. */
async function checkOverlay(disk: string, image: string) {
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

async function makeOverlay(disk: string, image: string) {
  // Renamed into place, so that a half-written overlay is never taken for one.
  const staging = join(dirname(disk), `.${crypto.randomUUID()}.overlay`);
  try {
    const { code, stderr } = await run("qemu-img", {
      args: [
        ...["create", "-q", "-f", "qcow2", "-b", image, "-F", "qcow2"],
        staging,
      ],
      timeoutMs: 60_000,
    });
    if (code === 0) return await Deno.rename(staging, disk);
    throw new ToolsmithError(
      "boot_failed",
      `Cannot make the overlay ${disk}: ${stderr.trim()}`,
    );
  } catch (cause) {
    if (!(cause instanceof Deno.errors.NotFound)) throw cause;
    throw new ToolsmithError("qemu_not_found", "qemu-img not found", {
      hint: "an overlay needs it (Debian, Ubuntu: apt install qemu-utils)",
      cause,
    });
  } finally {
    await Deno.remove(staging).catch(() => {});
  }
}
