/** `toolsmith init`: writes a manifest for an image. */
import { init as initManifest } from "../../hydrate/init.ts";
import { defineSubcommand } from "../subcommand.ts";
import { defineFlags } from "../flag.ts";
import * as shared from "../shared_flags.ts";

export const initCommand = defineSubcommand({
  name: "init",
  usage: "--ref REF | --ref https://… | --file IMAGE.qcow2 [flags]",
  summary: "write the manifest .toolsmith/tools.json for an image",
  flags: {
    ...defineFlags("Flags", {
      ref: "--ref REF  OCI artifact, or https:// URL of an image to download",
      file: "--file PATH  local image file",
      sha256: "--sha256 DIGEST  fail unless the image has this SHA-256",
      sha256sums:
        "--sha256sums URL  read the expected SHA-256 from this list, for https:// images",
      signedBy:
        "--signed-by IDENTITY  fail unless this workflow or e-mail address signed, now and later",
      issuer:
        "--issuer URL  who vouches for IDENTITY (default: GitHub, for its workflows)",
      sourceRepository:
        "--source-repository URL  which repository ran the workflow (default: the workflow's own)",
      signingKey:
        "--signing-key FILE  fail unless the key to this public key signed, now and later",
      name: "--name NAME  the image's name in the manifest",
      update:
        "--update  replace the image in an existing manifest, keeping all else",
    }),
    ...shared.FETCH,
    ...shared.IMAGE_ARCH,
    ...shared.OUTPUT,
  },
  async run(given, io) {
    const { env, signal, onEvent } = io;
    const done = await initManifest({ ...given, env, signal, onEvent });
    const { path, outcome, manifest: { image: { name, sha256 } } } = done;
    const digest = `sha256:${sha256}`;
    io.printResult({ outcome, path, name, digest }, path);
    io.printNote(`${outcome}: ${name}, sha256 ${sha256}`);
  },
});
