/** `toolsmith hydrate`: downloads the manifest's image into the cache. */
import { hydrate as hydrateImage } from "../../hydrate/hydrate.ts";
import { loadManifest } from "../../manifest/manifest.ts";
import { defineSubcommand } from "../subcommand.ts";
import {
  HYDRATE_FLAGS,
  IMAGE_ARCH_FLAGS,
  MANIFEST_FLAGS,
  OUTPUT_FLAGS,
} from "../shared_flags.ts";

export const hydrateCommand = defineSubcommand({
  name: "hydrate",
  usage: "[flags]",
  summary: "download the manifest's image into the cache and verify it",
  details:
    "Prints the image's path. Private packages of ghcr.io need GHCR_TOKEN, and\nGHCR_USERNAME or GITHUB_ACTOR; for other registries run oras login.",
  flags: {
    ...MANIFEST_FLAGS,
    ...HYDRATE_FLAGS,
    ...OUTPUT_FLAGS,
    ...IMAGE_ARCH_FLAGS,
  },
  async run(given, io) {
    const { env, signal } = io;
    using view = io.openEventView(given);
    const manifest = await loadManifest(given.manifest, { env });
    const result = await hydrateImage(manifest, {
      ...given,
      ...{ env, signal, onEvent: view.onEvent },
    });
    view.close();
    io.printResult(given.json, result, result.path);
    return 0;
  },
});
