/**
 * What GitHub Actions shows of a publication: a job summary, and step outputs.
 *
 * @module
 */
import { formatManifest } from "../manifest/format.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { systemError, toToolsmithError } from "../errors.ts";
import { emitter, type OnEvent } from "../events.ts";
import type { PublishResult } from "./publish.ts";

/**
 * What a script wants to know of a publication, by stable names: the step
 * outputs, and the fields of the last line of `--json`.
 *
 * @param result What was published.
 * @returns The fields.
 */
export function publishFields(
  result: PublishResult,
): Record<string, string | number> {
  return {
    reference: result.reference,
    digest: result.digest,
    layer_digest: result.layerDigest,
    qcow2_sha256: result.sha256,
    bytes: result.bytes,
    file: result.file,
  };
}

/**
 * The job summary: a table, and the manifest to paste.
 *
 * @param result What was published.
 * @returns Markdown.
 */
export function jobSummary(result: PublishResult): string {
  const rows = [
    ["Reference", result.reference],
    ["File", result.file],
    ["Size", `${result.bytes} bytes`],
    ["QCOW2 SHA-256", result.sha256],
    ["Manifest digest", result.digest],
    [
      "Verified",
      result.verified === "pull"
        ? "pulled back and hashed"
        : "served with the same digests",
    ],
  ];
  return [
    "## Published a VM image",
    "",
    "| | |",
    "|---|---|",
    ...rows.map(([name, value]) => `| ${name} | ${cell(value)} |`),
    "",
    "To consume it, put this into `.toolsmith/tools.json`:",
    "",
    "```json",
    formatManifest(result.manifest) + "```",
    "",
  ].join("\n");
}

/**
 * Writes outputs of a step as GitHub Actions reads them. No value can add an
 * output of its own, whatever lines it has.
 *
 * @param outputs Names and values.
 * @returns The text to append to the file that `GITHUB_OUTPUT` names.
 */
export function stepOutputs(outputs: Record<string, string | number>): string {
  let text = "";
  for (const [name, value] of Object.entries(outputs)) {
    const end = `end-${crypto.randomUUID()}`;
    text += `${name}<<${end}\n${value}\n${end}\n`;
  }
  return text;
}

/** What {@linkcode reportToActions} takes. */
export interface ReportOptions {
  /** Read for `GITHUB_STEP_SUMMARY` and `GITHUB_OUTPUT`. @default {processEnvironment} */
  env?: Environment;
  /** Gets a warning for a file that cannot be written. @default {undefined} */
  onEvent?: OnEvent;
}

/**
 * Reports a publication to GitHub Actions; elsewhere does nothing. The image is
 * published by then, so that a report that fails is no error.
 *
 * Needs `--allow-write` for the files that the environment names.
 *
 * @param result What was published.
 * @param options The environment, and who is notified.
 */
export async function reportToActions(
  result: PublishResult,
  options: ReportOptions = {},
): Promise<void> {
  const { env = processEnvironment, onEvent } = options;
  const append = async (variable: string, text: string) => {
    const path = env.get(variable);
    if (!path) return;
    const what = `Cannot write to ${path}, which ${variable} names`;
    await Deno.writeTextFile(path, text, { append: true }).catch((error) => {
      const { message } = toToolsmithError(systemError(error, { what }));
      emitter(onEvent)({
        type: "warning",
        message: `${message}; unset ${variable}, or name another file`,
      });
    });
  };
  await append("GITHUB_STEP_SUMMARY", jobSummary(result));
  await append("GITHUB_OUTPUT", stepOutputs(publishFields(result)));
}

/** Keeps a value in its cell, and markdown out of it. */
function cell(value: string): string {
  const text = value.replace(/[\r\n]+/g, " ").replaceAll("|", "\\|");
  const ticks = "`".repeat(
    Math.max(0, ...(text.match(/`+/g) ?? []).map((run) => run.length)) + 1,
  );
  return ticks.length === 1 ? `\`${text}\`` : `${ticks} ${text} ${ticks}`;
}
