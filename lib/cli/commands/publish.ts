/**
 * `toolsmith publish`: pushes an image to a registry, and waits until it is
 * served back.
 *
 * @module
 */
import { formatManifest } from "../../manifest/format.ts";
import { assertUpdatable, writeManifest } from "../../manifest/write.ts";
import {
  publishFields,
  reportToActions,
} from "../../publish/github_actions.ts";
import { parseExtra } from "../../publish/layers.ts";
import {
  publish as publishImage,
  type PublishOptions,
  type PublishResult,
} from "../../publish/publish.ts";
import type { Command } from "../command.ts";
import type { ParsedFlags } from "../flag_values.ts";
import {
  OUTPUT,
  type OutputFlags,
  readArch,
  readOutput,
  readRegistry,
  readTransfer,
  REGISTRY,
  TRANSFER,
} from "../flags.ts";
import { bytesText } from "../format.ts";

interface PublishRequest {
  path: string;
  reference: string;
  options: PublishOptions;
  /** The manifest to name the image in. */
  manifest?: string;
  output: OutputFlags;
}

/** Publishes an image, and prints what consumers need. */
export const publish: Command<PublishRequest> = {
  name: "publish",
  usage: "IMAGE.qcow2 REGISTRY/OWNER/REPO:VERSION [flags]",
  summary: "push an image to a registry, and wait until it is served back",
  details:
    "ghcr.io needs GHCR_TOKEN with the scope write:packages, and GHCR_USERNAME or\nGITHUB_ACTOR; in GitHub Actions GITHUB_TOKEN serves too.",
  takes: ["FILE", "REF"],
  flags: [
    {
      name: "extra",
      value: "PATH:TYPE",
      many: true,
      help: "publish this file too, with this media type",
    },
    {
      name: "annotation",
      value: "KEY=VALUE",
      many: true,
      help: "annotate the artifact's manifest",
    },
    {
      name: "arch",
      value: "amd64|arm64",
      help: "record the processor that the image is for",
    },
    {
      name: "created",
      value: "TIME",
      help: "time of creation; else SOURCE_DATE_EPOCH, else the file's time",
    },
    {
      name: "verify",
      value: "manifest|pull",
      help: "compare digests (the default), or the bytes too",
    },
    {
      name: "attempts",
      value: "N",
      help: "how often to ask the registry for it (default 20)",
    },
    {
      name: "interval",
      value: "SECONDS",
      help: "pause between attempts; it grows up to fivefold (default 6)",
    },
    {
      name: "deadline",
      value: "SECONDS",
      help: "stop asking after SECONDS (default 600)",
    },
    {
      name: "write-manifest",
      value: "PATH",
      help: "name the image in this tools.json, keeping all else in it",
    },
    {
      name: "name",
      value: "NAME",
      help: "the image's name for consumers; else the repository's last part",
    },
    ...TRANSFER,
    ...REGISTRY,
    ...OUTPUT,
  ],
  positionals: [2, 2],
  parse: (given) => ({
    path: given.positionals[0],
    reference: given.positionals[1],
    options: readOptions(given),
    manifest: given.text("write-manifest"),
    output: readOutput(given),
  }),
  async run({ path, reference, options, manifest, output }, io) {
    const { onEvent, close } = io.view(output);
    const { signal } = io;
    try {
      const rename = options.name !== undefined;
      if (manifest !== undefined) await assertUpdatable(manifest, { rename });
      const result = await publishImage(path, reference, {
        ...options,
        signal,
        onEvent,
      });
      close();
      await reportToActions(result, { env: io.env, onEvent });
      const fields = { ...publishFields(result), manifest: result.manifest };
      const print = () => io.result(output.json, fields, publishText(result));
      // What was published is not lost if the rest fails.
      if (!output.json) print();
      if (manifest !== undefined) {
        const { name, qcow2: source } = result.manifest.image;
        const { sha256 } = result;
        const outcome = await writeManifest(
          manifest,
          { name, source, sha256 },
          { rename },
        );
        if (!output.json && !output.quiet) io.say(`${outcome} ${manifest}\n`);
      }
      // JSON Lines end in one result or error.
      if (output.json) print();
      return 0;
    } finally {
      close();
    }
  },
};

function readOptions(given: ParsedFlags): PublishOptions {
  const verify = given.text("verify") ?? "manifest";
  return {
    extras: given.texts("extra").map(parseExtra),
    annotations: given.pairs("annotation"),
    arch: readArch(given),
    created: given.time("created"),
    verify: given.oneOf(["manifest", "pull"], verify),
    attempts: given.count("attempts"),
    intervalMs: given.duration("interval"),
    deadlineMs: given.duration("deadline"),
    name: given.text("name"),
    ...readTransfer(given),
    ...readRegistry(given),
  };
}

function publishText(result: PublishResult): string {
  return `Reference  ${result.reference}
Manifest   ${result.digest}
QCOW2      ${result.file}, ${bytesText(result.bytes)}
SHA-256    ${result.sha256}

For .toolsmith/tools.json:

${formatManifest(result.manifest).trimEnd()}`;
}
