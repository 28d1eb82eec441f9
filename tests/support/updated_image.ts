/** Two versions of an image in a real registry, with chunk indexes. */
import { join } from "@std/path";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import { attemptPublish } from "./publication.ts";
import { type Registry, startRegistry } from "./registry.ts";
import { makeQcow2, type Workspace, workspace } from "./workspace.ts";

const MIB = 1024 * 1024;

/** One version of the image. */
export interface ImageVersion {
  path: string;
  sha256: string;
  /** Digest of the manifest. */
  digest: string;
}

/** The versions `owner/image:1.0` and `owner/image:2.0`. */
export interface UpdatedImage extends AsyncDisposable {
  registry: Registry;
  dir: string;
  older: ImageVersion;
  newer: ImageVersion;
  /** Size of each version, in bytes. */
  size: number;
  /** Bytes that differ, in three places. */
  changedBytes: number;
  /** Makes a workspace whose manifest names a version at a host. */
  workspace(host?: string): Promise<Workspace>;
  /** Sets the version in the workspace's manifest. */
  select(work: Workspace, version: "1.0" | "2.0", host?: string): Promise<void>;
}

/** Makes and publishes both versions: 64 MiB of random data each. */
export async function publishUpdatedImage(): Promise<UpdatedImage> {
  await using undo = new AsyncDisposableStack();
  const registry = undo.use(await startRegistry());
  const { dir } = undo.use(await workspace());
  const older = join(dir, "1", "image.qcow2");
  const newer = join(dir, "2", "image.qcow2");
  await makeQcow2(older, 64 * MIB);
  await Deno.mkdir(join(dir, "2"));
  await Deno.copyFile(older, newer);
  const changed = new Uint8Array(100_000).fill(7);
  {
    using file = await Deno.open(newer, { write: true });
    for (const at of [10, 30, 50]) {
      await file.seek(at * MIB, Deno.SeekMode.Start);
      await file.write(changed);
    }
  }
  const push = async (path: string, tag: string): Promise<ImageVersion> => {
    const sha256 = await sha256OfChunks(readFileChunks(path));
    const reference = `${registry.host}/owner/image:${tag}`;
    const { result, error } = await attemptPublish(path, reference);
    if (error) throw error;
    return { path, sha256, digest: result.digest };
  };
  const versions = {
    "1.0": await push(older, "1.0"),
    "2.0": await push(newer, "2.0"),
  };
  const select: UpdatedImage["select"] = (work, tag, host = registry.host) =>
    work.manifest({
      qcow2: `oci://${host}/owner/image:${tag}`,
      qcow2_sha256: versions[tag].sha256,
    });
  const all = undo.move();
  return {
    ...{ registry, dir, select },
    older: versions["1.0"],
    newer: versions["2.0"],
    size: (await Deno.stat(newer)).size,
    changedBytes: 3 * changed.length,
    async workspace(host) {
      const work = await workspace();
      await select(work, "2.0", host);
      return work;
    },
    [Symbol.asyncDispose]: () => all.disposeAsync(),
  };
}
