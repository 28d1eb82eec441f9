/** Reports a publication to GitHub Actions: a job summary and step outputs. */
import { formatManifestJson } from "../manifest/manifest_json.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { systemError, toToolsmithError } from "../errors.ts";
import { createEmitter, type OnEvent } from "../events.ts";
import type { PublishResult } from "./publish.ts";

/**
 * Returns the result's fields under the stable names of the step outputs and of the
 * last line of `--json`.
 */
export function publishOutputFields(
  { reference, digest, layerDigest, sha256, bytes, file }: PublishResult,
): Record<string, string | number> {
  return {
    reference,
    digest,
    layer_digest: layerDigest,
    qcow2_sha256: sha256,
    bytes,
    file,
  };
}

export function jobSummaryMarkdown(result: PublishResult): string {
  const rows = {
    "Reference": result.reference,
    "File": result.file,
    "Size": `${result.bytes} bytes`,
    "QCOW2 SHA-256": result.sha256,
    "Manifest digest": result.digest,
    "Verified": result.verified === "pull"
      ? "image pulled and hashed"
      : "registry serves the same digests",
  };
  const lines = Object.entries(rows)
    .map(([name, value]) => `| ${name} | ${quoteTableCell(value)} |\n`);
  return `## Published a VM image

| | |
|---|---|
${lines.join("")}
To use the image, put this into \`.toolsmith/tools.json\`:

\`\`\`json
${formatManifestJson(result.manifest)}\`\`\`
`;
}

/**
 * Formats step outputs, to append to the file in `GITHUB_OUTPUT`, with random
 * delimiters, so that no value can add another output.
 */
export function stepOutputsText(
  outputs: Record<string, string | number>,
): string {
  const texts = Object.entries(outputs).map(([name, value]) => {
    const end = `end-${crypto.randomUUID()}`;
    return `${name}<<${end}\n${value}\n${end}\n`;
  });
  return texts.join("");
}

/** Options of {@linkcode reportToGithubActions}. */
export interface ActionsReportOptions {
  /** Read for `GITHUB_STEP_SUMMARY` and `GITHUB_OUTPUT`. @default {processEnvironment} */
  env?: Environment;
  /** Receives a warning if a file cannot be written. @default {undefined} */
  onEvent?: OnEvent;
}

/**
 * Writes job summary and step outputs; does nothing outside of GitHub Actions. A
 * failure is only a warning, as the image is already published.
 *
 * Needs `--allow-write` for the files that the environment names.
 *
 * @param result The result of `publish()`.
 * @param options Environment and event listener.
 */
export async function reportToGithubActions(
  result: PublishResult,
  options: ActionsReportOptions = {},
): Promise<void> {
  const { env = processEnvironment, onEvent } = options;
  const append = async (variable: string, text: string) => {
    const path = env.get(variable);
    if (!path) return;
    const messagePrefix = `Cannot write to ${path}, which ${variable} names`;
    await Deno.writeTextFile(path, text, { append: true }).catch((error) => {
      const known = systemError(error, { messagePrefix });
      const hint = `unset ${variable}, or set it to a writable file`;
      const message = `${toToolsmithError(known).message}; ${hint}`;
      createEmitter(onEvent)({ type: "warning", message });
    });
  };
  await append("GITHUB_STEP_SUMMARY", jobSummaryMarkdown(result));
  await append("GITHUB_OUTPUT", stepOutputsText(publishOutputFields(result)));
}

/** Quotes a value as inline code that stays in its table cell. */
function quoteTableCell(value: string): string {
  const text = value.replace(/[\r\n]+/g, " ").replaceAll("|", "\\|");
  const ticks = "`".repeat(
    Math.max(0, ...(text.match(/`+/g) ?? []).map((run) => run.length)) + 1,
  );
  return ticks.length === 1 ? `\`${text}\`` : `${ticks} ${text} ${ticks}`;
}
