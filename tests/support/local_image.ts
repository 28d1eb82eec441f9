/** A local image file, for `init --file`. */
import { join } from "@std/path";
import { temporaryDir } from "./directory.ts";
import { makeQcow2 } from "./workspace.ts";

/** Makes a local image, and flags for a manifest and a cache next to it. */
export async function makeLocalImage() {
  const dir = await temporaryDir();
  const image = join(dir.path, "image.qcow2");
  const { sha256 } = await makeQcow2(image, 65536);
  const manifest = join(dir.path, "tools.json");
  const cache = join(dir.path, "cache");
  const named = ["--manifest", manifest, "--cache", cache];
  return { ...dir, image, sha256, manifest, cache, named };
}
