/**
 * The setup for measuring transfers: an image in a registry, and a workspace.
 */
import {
  runProcess,
  type RunProcessOptions,
} from "../../lib/system/process.ts";
import { startRegistry } from "../../tests/support/registry.ts";
import {
  cleanEnvironment,
  makeQcow2,
  orasPush,
  TYPE,
  workspace,
} from "../../tests/support/workspace.ts";
import { BUNDLE_PATH, writeBundle } from "../bundle.ts";

const MIB = 1024 * 1024;

export type TransferBench = Awaited<ReturnType<typeof openTransferBench>>;

/**
 * Starts a registry and publishes an image to it.
 *
 * @param mib Its size, in MiB.
 */
export async function openTransferBench(mib: number) {
  if (!await writeBundle()) {
    throw new Error("dist/toolsmith.js cannot be written");
  }
  await using undo = new AsyncDisposableStack();
  const registry = undo.use(await startRegistry());
  const work = undo.use(await workspace());
  const { dir } = work;
  const path = `${dir}/image.qcow2`;
  const { sha256 } = await makeQcow2(path, mib * MIB);
  const reference = `${registry.host}/o/i:1`;
  await orasPush(reference, [`image.qcow2:${TYPE}`], { cwd: dir });
  const name = (host: string) =>
    work.manifest({ qcow2: `oci://${host}/o/i:1`, qcow2_sha256: sha256 });
  await name(registry.host);
  const { size: bytes } = await Deno.stat(path);
  const all = undo.move();
  return {
    ...{ dir, mib, bytes, sha256, reference, host: registry.host, name },
    /** Empties the cache. */
    forget: () => removeIfExists(`${dir}/.toolsmith/cache`),
    /** Arguments to start hydrate from the bundle. */
    hydrate: ({ connections = 4 } = {}) => [
      ...["run", "-A", BUNDLE_PATH, "hydrate", "--quiet"],
      ...["--connections", `${connections}`],
    ],
    async must(
      program: string,
      args: string[],
      options: RunProcessOptions = {},
    ) {
      const env = cleanEnvironment();
      const output = await runProcess(program, {
        args,
        cwd: dir,
        env,
        ...options,
      });
      const { code, stderr } = output;
      if (code !== 0) {
        throw new Error(`${program} ${args.join(" ")}: ${stderr}`);
      }
    },
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

export async function removeIfExists(path: string) {
  await Deno.remove(path, { recursive: true }).catch(() => {});
}
