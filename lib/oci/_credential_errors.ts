/**
 * Recognizes failures of Docker's configuration and of credential helpers in the
 * output of `oras`. oras quotes a helper without its name, and a helper's message
 * could be mistaken for a network error.
 */
import { ToolsmithError } from "../errors.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import {
  credentialHelperFor,
  type DockerConfigFile,
} from "./_docker_config.ts";

/** oras-go's errors about `config.json`: the file, a field, or an entry. */
const DOCKER_CONFIG_ERROR_PATTERN =
  /^Error: .*?(failed to (?:open|decode|unmarshal) (?:config file |(?:auths?|creds store|cred helpers) field: ).*)/m;

/**
 * oras-go's auth client prints the request that needs credentials, then the error;
 * only for Basic with `failed to resolve credential` in between.
 */
const ORAS_CREDENTIAL_ERROR_PATTERN =
  /^(.*)Error: .*?[A-Z]{3,6} "https?:[^"\s]*": (failed to resolve credential: )?(.+)/s;
/** Errors of the registry or its token service, printed at the same place. */
const REGISTRY_RESPONSE_ERROR_PATTERN =
  /^(?:Get "[^"]*\?|Post "|GET "|POST "|(?:invalid |mismatch |unknown )?response |mismatch Content-Length|request body is|failed to (?:decode response|read response|get request body|parse bearer realm)|bearer realm )/;

/**
 * Recognizes a failure of Docker's configuration or of a credential helper in the
 * standard error of oras, without secrets. The error is not transient; `undefined` for
 * other failures.
 */
export function parseCredentialError(
  orasOutput: string,
  registry: string,
  file: DockerConfigFile,
): ToolsmithError | undefined {
  const { helper, malformed } = configuredHelperOrError(file, registry);
  const login = `log in again: oras login ${registry}`;
  const helperError = helper && helperErrorText(orasOutput);
  if (helperError) {
    const command = sanitizeLine(`docker-credential-${helper}`, 60);
    const hint =
      `run the helper to see why: echo ${registry} | ${command} get; or remove the helper from ${file.path} and ${login}`;
    const message =
      `Cannot get credentials for ${registry}: ${command} failed: ${helperError}`;
    return new ToolsmithError("credentials_failed", message, { hint });
  }
  const [, why] = DOCKER_CONFIG_ERROR_PATTERN.exec(orasOutput) ?? [];
  if (!why) return undefined;
  const problem = malformed ?? `${file.path} (oras: ${sanitizeLine(why)})`;
  const message = `Cannot read Docker's configuration: ${problem}`;
  const hint = `fix or delete ${file.path}, then ${login}`;
  return new ToolsmithError("file_unreadable", message, { hint });
}

function configuredHelperOrError(file: DockerConfigFile, registry: string) {
  try {
    return { helper: credentialHelperFor(file, registry) };
  } catch (error) {
    return { malformed: (error as Error).message };
  }
}

function helperErrorText(orasOutput: string): string | undefined {
  // The text of a registry's response is untrusted.
  if (orasOutput.includes("Error response from registry")) return undefined;
  const [, before, resolving, words] =
    ORAS_CREDENTIAL_ERROR_PATTERN.exec(orasOutput) ?? [];
  if (!words || !resolving && REGISTRY_RESPONSE_ERROR_PATTERN.test(words)) {
    return undefined;
  }
  // A helper's standard error precedes oras's own output.
  const silent = /^exit status \d+$/.test(words) && before.trim() !== "";
  return sanitizeLine(silent ? before : words);
}
