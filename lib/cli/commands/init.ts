/**
 * `toolsmith init`: writes a manifest for an image.
 *
 * @module
 */
import { init as initManifest, type InitOptions } from "../../hydrate/init.ts";
import type { Command } from "../command.ts";
import {
  CACHE,
  IMAGE_ARCH,
  MANIFEST,
  OUTPUT,
  type OutputFlags,
  readArch,
  readOutput,
  readRegistry,
  readTransfer,
  REGISTRY,
  TRANSFER,
} from "../flags.ts";

interface InitRequest {
  options: InitOptions;
  output: OutputFlags;
}

/** Writes a manifest, and prints its path. */
export const init: Command<InitRequest> = {
  name: "init",
  usage: "--ref REF | --ref https://… | --file IMAGE.qcow2 [flags]",
  summary: "write .toolsmith/tools.json for an image",
  flags: [
    {
      name: "ref",
      value: "REF",
      help: "an artifact, or an image at https://, which is downloaded",
    },
    { name: "file", value: "PATH", help: "an image of this host" },
    {
      name: "sha256",
      value: "DIGEST",
      help: "refuse an image of another SHA-256",
    },
    {
      name: "sha256sums",
      value: "URL",
      help: "the same, for https://: take it from this list (SHA256SUMS)",
    },
    { name: "name", value: "NAME", help: "the image's name" },
    ...MANIFEST,
    {
      name: "update",
      help: "change the image of a manifest that exists, keeping all else",
    },
    ...CACHE,
    ...IMAGE_ARCH,
    ...TRANSFER,
    ...REGISTRY,
    ...OUTPUT,
  ],
  positionals: [0, 0],
  parse: (given) => ({
    options: {
      ref: given.text("ref"),
      file: given.text("file"),
      sha256: given.text("sha256"),
      sha256sums: given.text("sha256sums"),
      name: given.text("name"),
      manifest: given.text("manifest"),
      update: given.has("update"),
      cache: given.text("cache"),
      arch: readArch(given),
      ...readTransfer(given),
      ...readRegistry(given),
    },
    output: readOutput(given),
  }),
  async run({ options, output: { json, quiet, ...output } }, io) {
    const { onEvent, close } = io.view({ json, quiet, ...output });
    const { signal } = io;
    try {
      const done = await initManifest({ ...options, signal, onEvent });
      const { path, outcome, manifest: { image: { name, sha256 } } } = done;
      close();
      if (!json && !quiet) io.say(`${outcome}: ${name}, sha256 ${sha256}\n`);
      const digest = `sha256:${sha256}`;
      io.result(json, { outcome, path, name, digest }, path);
      return 0;
    } finally {
      close();
    }
  },
};
