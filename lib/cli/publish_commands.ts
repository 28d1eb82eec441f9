/**
 * The commands of who makes images: publish and init.
 *
 * @module
 */
import { publishFields, reportToActions } from "../publish/github_actions.ts";
import { formatManifest } from "../manifest/format.ts";
import { init } from "../manifest/init.ts";
import { assertUpdatable, writeManifest } from "../manifest/write.ts";
import { publish, type PublishResult } from "../publish/publish.ts";
import type { CommandOf } from "./parse.ts";
import type { Io } from "./io.ts";
import { bytesText } from "./format.ts";

/** Publishes an image, and prints what consumers need. */
export async function publishCommand(
  command: CommandOf<"publish">,
  io: Io,
): Promise<number> {
  const { path, reference, options, manifest, output } = command;
  const { onEvent, close } = io.view(output);
  const { signal } = io;
  try {
    if (manifest !== undefined) await assertUpdatable(manifest);
    const result = await publish(path, reference, {
      ...options,
      signal,
      onEvent,
    });
    close();
    if (manifest !== undefined) {
      const { name, qcow2: source } = result.manifest.image;
      const { sha256 } = result;
      const rename = options.name !== undefined;
      const outcome = await writeManifest(
        manifest,
        { name, source, sha256 },
        { rename },
      );
      if (!output.json && !output.quiet) io.say(`${outcome} ${manifest}\n`);
    }
    await reportToActions(result, io.env);
    const fields = { ...publishFields(result), manifest: result.manifest };
    io.result(output.json, fields, publishText(result));
    return 0;
  } finally {
    close();
  }
}

/** Writes a manifest, and prints its path. */
export async function initCommand(
  command: CommandOf<"init">,
  io: Io,
): Promise<number> {
  const { options, output } = command;
  const { onEvent, close } = io.view(output);
  const { signal } = io;
  try {
    const done = await init({ ...options, signal, onEvent });
    const { path, outcome, manifest: { image: { name, sha256 } } } = done;
    close();
    const { json, quiet } = output;
    if (!json && !quiet) io.say(`${outcome}: ${name}, sha256 ${sha256}\n`);
    const digest = `sha256:${sha256}`;
    io.result(json, { outcome, path, name, digest }, path);
    return 0;
  } finally {
    close();
  }
}

function publishText(result: PublishResult): string {
  return `Reference  ${result.reference}
Manifest   ${result.digest}
QCOW2      ${result.file}, ${bytesText(result.bytes)}
SHA-256    ${result.sha256}

For .toolsmith/tools.json:

${formatManifest(result.manifest).trimEnd()}`;
}
