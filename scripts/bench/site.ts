/**
 * What transfers are measured with: an image in a registry, and a workspace.
 *
 * @module
 */
import { run, type RunOptions } from "../../lib/system/process.ts";
import { startRegistry } from "../../tests/support/registry.ts";
import {
  cleanEnvironment,
  makeQcow2,
  orasPush,
  TYPE,
  workspace,
} from "../../tests/support/workspace.ts";
import { BUNDLE, bundle } from "../bundle.ts";

const MIB = 1024 * 1024;

/** An image in a registry, and a workspace to get it into. */
export type Site = Awaited<ReturnType<typeof openSite>>;

/**
 * Publishes an image to a registry of its own.
 *
 * @param mib Its size, in MiB.
 */
export async function openSite(mib: number) {
  if (!await bundle()) throw new Error("the single file cannot be written");
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
    forget: () => remove(`${dir}/.toolsmith/cache`),
    /** What Deno is started with: the single file, as users have it. */
    hydrate: ({ connections = 4 } = {}) => [
      ...["run", "-A", BUNDLE, "hydrate", "--quiet"],
      ...["--connections", `${connections}`],
    ],
    async must(program: string, args: string[], options: RunOptions = {}) {
      const env = cleanEnvironment();
      const output = await run(program, { args, cwd: dir, env, ...options });
      const { code, stderr } = output;
      if (code !== 0) {
        throw new Error(`${program} ${args.join(" ")}: ${stderr}`);
      }
    },
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}

/** Removes what may be there. */
export async function remove(path: string) {
  await Deno.remove(path, { recursive: true }).catch(() => {});
}
