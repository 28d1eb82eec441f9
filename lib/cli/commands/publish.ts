/**
 * `toolsmith publish`: pushes an image to a registry and waits until the registry
 * serves it.
 */
import { formatManifestJson } from "../../manifest/manifest_json.ts";
import {
  assertManifestUpdatable,
  writeManifest,
} from "../../manifest/write_manifest.ts";
import {
  publishOutputFields,
  reportToGithubActions,
} from "../../publish/github_actions.ts";
import {
  publish as publishImage,
  type PublishResult,
} from "../../publish/publish.ts";
import { defineSubcommand } from "../subcommand.ts";
import { defineFlags } from "../flag.ts";
import * as shared from "../shared_flags.ts";
import { formatBytes } from "../format.ts";

export const publishCommand = defineSubcommand({
  name: "publish",
  usage: "IMAGE.qcow2 REGISTRY/OWNER/REPO:VERSION [flags]",
  summary: "push an image to a registry and wait until the registry serves it",
  details:
    "ghcr.io needs GHCR_TOKEN with the scope write:packages, and GHCR_USERNAME or\nGITHUB_ACTOR; in GitHub Actions GITHUB_TOKEN works too.",
  positionals: ["FILE", "REF"],
  flags: {
    ...defineFlags("Flags", {
      extras:
        "--extra PATH:TYPE  also publish the file at PATH, with media type TYPE",
      annotations: "--annotation KEY=VALUE  annotate the artifact's manifest",
      arch:
        "--arch amd64|arm64  processor architecture to record (default: none; consumers detect it)",
      created:
        "--created TIME  creation time (default: SOURCE_DATE_EPOCH, then the file's time)",
      verify:
        "--verify manifest|pull  compare digests (default), or also pull and hash the image",
      attempts: "--attempts N  maximum number of polls (default 20)",
      intervalMs:
        "--interval SECONDS  pause after the first poll, later up to 5 times as long (default 6)",
      deadlineMs:
        "--deadline SECONDS  stop polling after SECONDS (default 600)",
      compress:
        "--compress  publish a compressed copy of the image, made with qemu-img",
      index:
        "--no-index  attach no chunk index, which lets hosts download only what changed",
      previous:
        "--previous FILE|REF  predict what hosts with this earlier version will download",
      name:
        "--name NAME  image name for consumers (default: the repository's last part)",
      manifest:
        "--write-manifest PATH  set the image in this existing tools.json, keeping all else",
    }),
    ...shared.TRANSFER,
    ...shared.REGISTRY,
    ...shared.OUTPUT,
  },
  async run(given, io, { positionals: [path, reference] }) {
    const { env, signal, onEvent } = io;
    const { manifest, json } = given;
    const setName = given.name !== undefined;
    if (manifest !== undefined) {
      await assertManifestUpdatable(manifest, { setName });
    }
    const options = { ...given, env, signal, onEvent };
    const result = await publishImage(path, reference, options);
    await reportToGithubActions(result, { env, onEvent });
    const fields = {
      ...publishOutputFields(result),
      manifest: result.manifest,
    };
    const print = () => io.printResult(fields, publishResultText(result));
    // Print first: the rest may fail, and the image is already published.
    if (!json) print();
    if (manifest !== undefined) {
      const { name, qcow2: source } = result.manifest.image;
      const image = { name, source, sha256: result.sha256 };
      const outcome = await writeManifest(manifest, image, { setName });
      io.printNote(`${outcome} ${manifest}`);
    }
    // JSON Lines end in exactly one result or error.
    if (json) print();
  },
});

function publishResultText(result: PublishResult): string {
  return `Reference  ${result.reference}
Manifest   ${result.digest}
QCOW2      ${result.file}, ${formatBytes(result.bytes)}
SHA-256    ${result.sha256}

For consumers, once it is signed (cosign sign ${result.reference}@${result.digest}):

  toolsmith init --ref ${result.reference} --signed-by IDENTITY

For .toolsmith/tools.json:

${formatManifestJson(result.manifest).trimEnd()}`;
}
