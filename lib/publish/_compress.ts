/** Compresses an image to publish. */
import { processEnvironment } from "../environment.ts";
import { systemError, ToolsmithError } from "../errors.ts";
import { inspectImage } from "../image/inspect_image.ts";
import { readQcow2Header } from "../image/qcow2_header.ts";
import type { RegistryOptions } from "../oci/registry_options.ts";
import { basename, dirname, join, resolve } from "../path.ts";
import { runProcess } from "../system/process.ts";
import { fullTemporaryDirError } from "./_temporary_dir.ts";

/**
 * Makes a copy in `dir` with the image's name and time, and with Zstandard clusters, in
 * order and without unused ones, and compares it with the image. `qemu-img` is in the
 * directory of `TOOLSMITH_QEMU`.
 */
export async function compressImage(
  image: string,
  dir: string,
  { env = processEnvironment, signal }: RegistryOptions,
): Promise<string> {
  const { modified } = await inspectImage(image);
  const { clusterSize } = await readQcow2Header(image);
  const path = join(dir, basename(image));
  const qemu = env.get("TOOLSMITH_QEMU");
  const program = qemu ? join(dirname(qemu), "qemu-img") : "qemu-img";
  const run = async (...args: string[]) => {
    const command = { args: [...args, resolve(image), path], signal };
    const running = runProcess(program, command);
    const { code, stderr, stdout } = await running.catch((cause) => {
      const hint = "install qemu-img (Debian, Ubuntu: apt install qemu-utils)";
      throw systemError(cause, { code: "qemu_not_found", hint });
    });
    signal?.throwIfAborted();
    if (code === 0) return;
    const message = `Cannot compress ${image}: ${(stderr || stdout).trim()}`;
    if (/No space left|quota exceeded/i.test(message)) {
      throw fullTemporaryDirError(message);
    }
    const hint = `check the image: qemu-img check ${image}`;
    throw new ToolsmithError("image_invalid", message, { hint });
  };
  const format = `compression_type=zstd,cluster_size=${clusterSize}`;
  await run("convert", "-c", "-f", "qcow2", "-O", "qcow2", "-o", format);
  await run("compare", "-f", "qcow2", "-F", "qcow2");
  if (modified) await Deno.utime(path, modified, modified);
  return path;
}
