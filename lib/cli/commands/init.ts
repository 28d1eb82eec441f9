/**
 * `toolsmith init`: writes a manifest for an image.
 *
 * @module
 */
import { init as initManifest, type InitOptions } from "../../manifest/init.ts";
import type { Command } from "../command.ts";
import {
  MANIFEST,
  OUTPUT,
  type OutputFlags,
  readOutput,
  readRegistry,
  REGISTRY,
} from "../flags.ts";

interface InitRequest {
  options: InitOptions;
  output: OutputFlags;
}

/** Writes a manifest, and prints its path. */
export const init: Command<InitRequest> = {
  name: "init",
  usage: "--ref REF | --file IMAGE.qcow2 [flags]",
  summary: "write .toolsmith/tools.json for an image",
  flags: [
    {
      name: "ref",
      value: "REF",
      help: "an artifact; its registry is asked for the image's digest",
    },
    { name: "file", value: "PATH", help: "an image of this host" },
    { name: "name", value: "NAME", help: "the image's name" },
    ...MANIFEST,
    {
      name: "update",
      help: "change the image of a manifest that exists, keeping all else",
    },
    ...REGISTRY,
    ...OUTPUT,
  ],
  positionals: [0, 0],
  parse: (given) => ({
    options: {
      ref: given.text("ref"),
      file: given.text("file"),
      name: given.text("name"),
      manifest: given.text("manifest"),
      update: given.has("update"),
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
