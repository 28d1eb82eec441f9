/**
 * `toolsmith hydrate`: gets the manifest's image into the cache.
 *
 * @module
 */
import {
  hydrate as hydrateImage,
  type HydrateOptions,
} from "../../hydrate/hydrate.ts";
import { loadManifest } from "../../manifest/manifest.ts";
import type { Command } from "../command.ts";
import {
  HYDRATE,
  IMAGE_ARCH,
  type OutputFlags,
  readArch,
  readHydrate,
  readOutput,
} from "../flags.ts";

interface HydrateRequest {
  manifest?: string;
  options: HydrateOptions;
  output: OutputFlags;
}

/** Gets the manifest's image, and prints its path. */
export const hydrate: Command<HydrateRequest> = {
  name: "hydrate",
  usage: "[flags]",
  summary: "get the manifest's image into the cache, verified",
  details:
    "Prints the image's path. Private packages of ghcr.io need GHCR_TOKEN, and\nGHCR_USERNAME or GITHUB_ACTOR; other registries: oras login.",
  flags: [...HYDRATE, ...IMAGE_ARCH],
  positionals: [0, 0],
  parse: (given) => ({
    manifest: given.text("manifest"),
    options: { ...readHydrate(given), arch: readArch(given) },
    output: readOutput(given),
  }),
  async run({ manifest: path, options, output }, io) {
    const { onEvent, close } = io.view(output);
    const { signal } = io;
    try {
      const manifest = await loadManifest(path);
      const result = await hydrateImage(manifest, {
        ...options,
        signal,
        onEvent,
      });
      close();
      io.result(output.json, result, result.path);
      return 0;
    } finally {
      close();
    }
  },
};
