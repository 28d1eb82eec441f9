/**
 * Failures of `oras` before it has credentials to show: Docker's configuration,
 * or the credential helper that it names. oras quotes a helper without naming
 * it, and whatever a helper says could be taken for a failure of the network.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { oneLine } from "../system/text.ts";
import { type ConfigFile, credentialHelper } from "./_docker_config.ts";

/** oras-go's errors of `config.json`: of the file, a field, or one entry. */
const CONFIG =
  /^Error: .*?(failed to (?:open|decode|unmarshal) (?:config file |(?:auths?|creds store|cred helpers) field: ).*)/m;

/**
 * oras-go's auth client names the request that it needs credentials for, then
 * says what went wrong with them: a marker goes before that for Basic alone.
 */
const REQUEST =
  /^(.*)Error: .*?[A-Z]{3,6} "https?:[^"\s]*": (failed to resolve credential: )?(.+)/s;
/** What else follows there: the registry's answer, or its token service. */
const ANSWER =
  /^(?:Get "[^"]*\?|Post "|GET "|POST "|(?:invalid |mismatch |unknown )?response |mismatch Content-Length|request body is|failed to (?:decode response|read response|get request body|parse bearer realm)|bearer realm )/;

/**
 * Recognizes a failure of Docker's configuration or of a credential helper.
 *
 * @param said What oras printed, without secrets.
 * @param registry The registry that it was to ask.
 * @param file The configuration that it has read.
 * @returns The error, which is never transient; `undefined` for other failures.
 */
export function credentialError(
  said: string,
  registry: string,
  file: ConfigFile,
): ToolsmithError | undefined {
  const { helper, malformed } = helperIn(file, registry);
  const login = `log in again: oras login ${registry}`;
  const words = helper && helperWords(said);
  if (words) {
    const command = oneLine(`docker-credential-${helper}`, 60);
    return new ToolsmithError(
      "credentials_failed",
      `Cannot get credentials for ${registry}: ${command} failed: ${words}`,
      {
        hint:
          `try the helper: echo ${registry} | ${command} get; or remove it from ${file.path} and ${login}`,
      },
    );
  }
  const [, why] = CONFIG.exec(said) ?? [];
  if (!why) return undefined;
  return new ToolsmithError(
    "file_unreadable",
    `Cannot read Docker's configuration: ${
      malformed ?? `${file.path} (oras: ${oneLine(why)})`
    }`,
    { hint: `fix ${file.path}, or remove it and ${login}` },
  );
}

function helperIn(file: ConfigFile, registry: string) {
  try {
    return { helper: credentialHelper(file, registry) };
  } catch (error) {
    return { malformed: (error as Error).message };
  }
}

function helperWords(said: string): string | undefined {
  // The registry could say anything.
  if (said.includes("Error response from registry")) return undefined;
  const [, before, resolving, words] = REQUEST.exec(said) ?? [];
  if (!words || !resolving && ANSWER.test(words)) return undefined;
  // What a helper prints on its standard error stands before oras's own words.
  const silent = /^exit status \d+$/.test(words) && before.trim() !== "";
  return oneLine(silent ? before : words);
}
