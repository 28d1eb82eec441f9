/** A small file system for tests that fill one. */
import { runProcess } from "../../lib/system/process.ts";

/**
 * Mounts a tmpfs on a directory, as root.
 *
 * Disposing it unmounts it lazily: QEMU or its watcher may hold a file there for
 * another moment.
 *
 * @param size As mount(8) takes it, such as `8m`.
 * @throws {Error} When it cannot be mounted.
 */
export async function mountTmpfs(
  path: string,
  size: string,
): Promise<AsyncDisposable> {
  const args = ["-t", "tmpfs", "-o", `size=${size}`, "tmpfs", path];
  await run("mount", args);
  return { [Symbol.asyncDispose]: () => run("umount", ["--lazy", path]) };
}

async function run(command: string, args: string[]) {
  const { code, stderr } = await runProcess(command, { args });
  if (code !== 0) throw new Error(`${command} failed: ${stderr}`);
}
