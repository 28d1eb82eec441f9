/**
 * An image that is a file of this host, for a manifest beside it.
 *
 * @module
 */
import { join } from "@std/path";
import { temporaryDir } from "./directory.ts";
import { makeQcow2 } from "./workspace.ts";

/** An image, and the flags that name a manifest and a cache beside it. */
export async function localImage() {
  const dir = await temporaryDir();
  const image = join(dir.path, "image.qcow2");
  const { sha256 } = await makeQcow2(image, 65536);
  const manifest = join(dir.path, "tools.json");
  const cache = join(dir.path, "cache");
  const named = ["--manifest", manifest, "--cache", cache];
  return { ...dir, image, sha256, manifest, cache, named };
}
