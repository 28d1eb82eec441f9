/** `toolsmith hydrate`: downloads the manifest's image into the cache. */
import { hydrate as hydrateImage } from "../../hydrate/hydrate.ts";
import { loadManifest } from "../../manifest/manifest.ts";
import { defineSubcommand } from "../subcommand.ts";
import * as shared from "../shared_flags.ts";

export const hydrateCommand = defineSubcommand({
  name: "hydrate",
  usage: "[flags]",
  summary: "download the manifest's image into the cache and verify it",
  details:
    "Prints the image's path. Private packages of ghcr.io need GHCR_TOKEN, and\nGHCR_USERNAME or GITHUB_ACTOR; for other registries run oras login.",
  flags: {
    ...shared.HYDRATE,
    ...shared.OUTPUT,
    ...shared.IMAGE_ARCH,
  },
  async run(given, io) {
    const { env, signal, onEvent } = io;
    const manifest = await loadManifest(given.manifest, { env });
    const options = { ...given, env, signal, onEvent };
    const result = await hydrateImage(manifest, options);
    io.printResult(result, result.path);
  },
});
