/** Moves a fetched image into the cache. */
import {
  cacheEntryHandle,
  type ImageStaging,
  resolveCacheDir,
} from "../cache/entry.ts";
import type { Emit } from "../events.ts";
import { findBootLoader } from "../image/boot_loader.ts";
import { formatImageSource } from "../manifest/image_source.ts";
import { type Sha256, sha256OfText, sha256ToDigest } from "../system/digest.ts";
import type { FetchedImage, FetchOptions, ImageToFetch } from "./_fetch_job.ts";
import { fetchImage } from "./fetch_image.ts";

/**
 * Detects the image's boot loader and commits the image to the cache, together with a
 * verification record that holds the boot loader for later runs. A file that was
 * replaced after it was hashed is a `checksum_mismatch`.
 */
export async function addToCache(
  { name: image, source }: ImageToFetch,
  fetched: FetchedImage,
  staging: ImageStaging,
  { emit, signal }: { emit: Emit; signal?: AbortSignal },
) {
  const { arch, bytes, sha256, ...file } = fetched;
  const digest = sha256ToDigest(sha256);
  const displayName = formatImageSource(source);
  const found = await findBootLoader(file.path, { displayName, signal });
  // The publisher's statement counts more than what the disk suggests.
  if (arch) found.arch = arch;
  const boot = found.arch || found.firmware ? found : undefined;
  emit({ type: "checksum_verified", image, digest, bytes });
  const path = await staging.commit({ ...file, source: displayName, boot });
  emit({ type: "cache_placed", image, path, digest, bytes });
  return { path, boot };
}

/**
 * Downloads an image without a known digest into the cache under its computed digest,
 * so that `init` can pin it.
 */
export async function downloadUnpinnedImage(
  image: ImageToFetch,
  workspace: string,
  options: FetchOptions & { cache?: string; emit: Emit },
): Promise<Sha256> {
  const cache = await resolveCacheDir(workspace, options);
  const entryOf = (sha256: Sha256) =>
    cacheEntryHandle({ cache, image: image.name, sha256 }, options);
  // Until the image's digest is known, that of its source names the staging.
  const source = entryOf(await sha256OfText(formatImageSource(image.source)));
  using lockedSource = await source.lock(options);
  await using download = await lockedSource.createOrResumeStaging();
  const fetched = await fetchImage({ ...options, image, dir: download.dir });
  const entry = entryOf(fetched.sha256);
  using locked = await entry.lock(options);
  if (!(await entry.lookUpImage())?.trusted) {
    await using staging = await locked.createOrResumeStaging();
    await addToCache(image, fetched, staging, options);
  }
  return fetched.sha256;
}
