/** `toolsmith init`: writes a manifest for an image. */
import { init as initManifest } from "../../hydrate/init.ts";
import { defineSubcommand } from "../subcommand.ts";
import { switchFlag, valueFlag } from "../flag.ts";
import {
  CACHE_FLAGS,
  IMAGE_ARCH_FLAGS,
  MANIFEST_FLAGS,
  OUTPUT_FLAGS,
  pickFlagValues,
  REGISTRY_FLAGS,
  TRANSFER_FLAGS,
  TRUST_FLAGS,
} from "../shared_flags.ts";

const INIT_FLAGS = {
  ref: valueFlag(
    "ref REF",
    "OCI artifact, or https:// URL of an image to download",
  ),
  file: valueFlag("file PATH", "local image file"),
  sha256: valueFlag("sha256 DIGEST", "fail unless the image has this SHA-256"),
  sha256sums: valueFlag(
    "sha256sums URL",
    "read the expected SHA-256 from this list, for https:// images",
  ),
  signedBy: valueFlag(
    "signed-by IDENTITY",
    "fail unless this workflow or e-mail address signed, now and later",
  ),
  issuer: valueFlag(
    "issuer URL",
    "who vouches for IDENTITY (default: GitHub, for its workflows)",
  ),
  sourceRepository: valueFlag(
    "source-repository URL",
    "which repository ran the workflow (default: the workflow's own)",
  ),
  signingKey: valueFlag(
    "signing-key FILE",
    "fail unless the key to this public key signed, now and later",
  ),
  name: valueFlag("name NAME", "the image's name in the manifest"),
  ...MANIFEST_FLAGS,
  update: switchFlag(
    "update",
    "replace the image in an existing manifest, keeping all else",
  ),
  ...CACHE_FLAGS,
  ...IMAGE_ARCH_FLAGS,
  ...TRUST_FLAGS,
  ...TRANSFER_FLAGS,
  ...REGISTRY_FLAGS,
};

export const initCommand = defineSubcommand({
  name: "init",
  usage: "--ref REF | --ref https://… | --file IMAGE.qcow2 [flags]",
  summary: "write the manifest .toolsmith/tools.json for an image",
  flags: { ...INIT_FLAGS, ...OUTPUT_FLAGS },
  async run(given, io) {
    const { env, signal } = io;
    const { json, quiet } = given;
    using view = io.openEventView(given);
    const done = await initManifest({
      ...pickFlagValues(INIT_FLAGS, given),
      ...{ env, signal, onEvent: view.onEvent },
    });
    const { path, outcome, manifest: { image: { name, sha256 } } } = done;
    view.close();
    if (!json && !quiet) {
      io.printToStderr(`${outcome}: ${name}, sha256 ${sha256}\n`);
    }
    const digest = `sha256:${sha256}`;
    io.printResult(json, { outcome, path, name, digest }, path);
    return 0;
  },
});
