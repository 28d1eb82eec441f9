/**
 * What `oras --format json` prints when all is well.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { type Digest, isDigest } from "../system/digest.ts";
import { redactSecrets } from "./credentials.ts";

/**
 * Reads the digest of the manifest that a command was about.
 *
 * @param text Its standard output.
 * @param command The command, for errors.
 * @returns `sha256:` and hex.
 * @throws {ToolsmithError} `oras_failed` when it is not what oras 1.3 prints.
 */
export function parseDigest(text: string, command: string): Digest {
  const output = parseOutput(text, command) as { digest?: unknown } | null;
  const digest = output?.digest;
  if (typeof digest === "string" && isDigest(digest)) return digest;
  throw new ToolsmithError("oras_failed", `oras ${command} printed no digest`);
}

function parseOutput(text: string, command: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new ToolsmithError(
      "oras_failed",
      `oras ${command} printed no JSON: ${
        JSON.stringify(redactSecrets(text).slice(0, 200))
      }`,
      { hint: "Toolsmith needs oras 1.3.0 or newer: toolsmith doctor", cause },
    );
  }
}
