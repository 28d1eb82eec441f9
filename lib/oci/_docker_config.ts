/**
 * Reads the credentials that `oras` would use for a registry, from Docker's
 * configuration.
 *
 * Format: Docker's `config.json` (docker/cli, "docker login", "Credential
 * stores" and "Credential helpers"). Like oras 1.3, reads only `DOCKER_CONFIG` or
 * `~/.docker`, not podman's `auth.json`.
 */
import { join, resolve } from "../path.ts";
import {
  type Environment,
  isPermissionGranted,
  processEnvironment,
} from "../environment.ts";
import {
  isJsonObject,
  type JsonObject,
  jsonObjectOrEmpty,
  parseJsonText,
} from "../system/json.ts";
import { currentUid } from "../system/ownership.ts";
import { runProcess } from "../system/process.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import { RangesUnavailableError } from "../transfer/byte_source.ts";
import { readTextIfPermitted } from "./_permission_queries.ts";
import {
  CLEARED_SECRET_VARIABLES,
  ghcrCredentialsFromEnv,
  type Login,
  redactSecrets,
} from "./ghcr_credentials.ts";
import type { RegistryOptions } from "./registry_options.ts";

/** Credentials for a registry or its token service. Must never be printed. */
export interface RegistryCredentials {
  /** User and password, for Basic or to request a token. */
  login?: Login;
  /** A refresh token, which the token service exchanges for access tokens. */
  identityToken?: string;
  /** A bearer token for the registry itself. */
  registryToken?: string;
}

export interface DockerConfigFile {
  path: string;
  text: string;
}

const CREDENTIAL_HELPER_TIMEOUT_MS = 30_000;
const DOCKER_HUB_CONFIG_KEY = "https://index.docker.io/v1/";
/** The user name that a helper returns with an identity token. */
const IDENTITY_TOKEN_USER = "<token>";
/** Printed by every helper that has no credentials. */
const HELPER_NO_CREDENTIALS_OUTPUT = "credentials not found in native keychain";

/**
 * Reads the credentials for a registry: `GHCR_*` for ghcr.io, else from the registry's
 * credential helper, the credential store, or `config.json`. Empty if there are none.
 * Never prompts: an unreadable file counts as missing. Throws
 * {@linkcode RangesUnavailableError} if the configuration or the helper fails.
 */
export async function readRegistryCredentials(
  registry: string,
  { env = processEnvironment, signal }: RegistryOptions = {},
): Promise<RegistryCredentials> {
  const login = ghcrCredentialsFromEnv(registry, env);
  if (login) return { login };
  const { auths, ...config } = await readDockerConfig(env);
  const key = dockerConfigKey(registry);
  const helper = helperInConfig(config, key);
  return helper
    ? await runCredentialHelper(helper, key, signal)
    : credentialsInConfig(jsonObjectOrEmpty(auths), key);
}

/**
 * Returns Docker's configuration directory, which may not exist: `DOCKER_CONFIG`, else
 * in the home directory. Without `HOME`, as in systemd services, reads the home
 * directory from passwd(5), which oras does not; never prompts. `undefined` without a
 * home.
 */
export async function dockerConfigDir(
  env: Environment,
): Promise<string | undefined> {
  const isWindows = Deno.build.os === "windows";
  const named = env.get("DOCKER_CONFIG");
  if (named) return resolve(named);
  const home = env.get(isWindows ? "USERPROFILE" : "HOME") ??
    (isWindows ? undefined : await homeFromPasswd());
  return home && join(home, ".docker");
}

/** Returns `undefined` when the variables may be set but are not permitted. */
async function homeFromPasswd(): Promise<string | undefined> {
  const isPermitted = ["HOME", "DOCKER_CONFIG"]
    .every((variable) => isPermissionGranted({ name: "env", variable }));
  if (!isPermitted) return undefined;
  const users = await readTextIfPermitted("/etc/passwd").catch(() => "") ?? "";
  const uid = `${currentUid()}`;
  const entry = users.split("\n").map((line) => line.split(":"))
    .find((fields) => fields[2] === uid);
  // Debian's home directory of system users.
  return entry?.[5] || "/nonexistent";
}

/**
 * Reads Docker's `config.json`; `undefined` if it is missing or not permitted. Throws
 * {@linkcode RangesUnavailableError} if it cannot be read. Never prompts.
 */
export async function readDockerConfigFile(
  env: Environment,
): Promise<DockerConfigFile | undefined> {
  const dir = await dockerConfigDir(env);
  if (!dir) return undefined;
  const path = join(dir, "config.json");
  try {
    const text = await readTextIfPermitted(path);
    return text === undefined ? undefined : { path, text };
  } catch (cause) {
    throw new RangesUnavailableError(`${path} cannot be read`, { cause });
  }
}

/**
 * Returns `NAME` of the `docker-credential-NAME` that is configured for a registry, if
 * any. Throws {@linkcode RangesUnavailableError} if the file is malformed.
 */
export function credentialHelperFor(
  file: DockerConfigFile,
  registry: string,
): string | undefined {
  return helperInConfig(parseDockerConfig(file), dockerConfigKey(registry));
}

/** Empty if Docker's configuration cannot be read. */
export async function listCredentialHelpers(
  env: Environment,
): Promise<string[]> {
  const config = await readDockerConfig(env).catch((): JsonObject => ({}));
  const { credsStore, credHelpers } = config;
  return [credsStore, ...Object.values(jsonObjectOrEmpty(credHelpers))]
    .filter((name) => typeof name === "string" && name)
    .map((name) => `docker-credential-${name}`);
}

async function readDockerConfig(env: Environment): Promise<JsonObject> {
  const file = await readDockerConfigFile(env);
  return file ? parseDockerConfig(file) : {};
}

/** Like docker, treats an empty file as an empty configuration. */
function parseDockerConfig({ path, text }: DockerConfigFile): JsonObject {
  if (text.trim() === "") return {};
  let config: unknown;
  try {
    config = parseJsonText(text, path);
  } catch (error) {
    throw new RangesUnavailableError((error as Error).message);
  }
  if (isJsonObject(config)) return config;
  throw new RangesUnavailableError(`${path} is not a JSON object`);
}

function dockerConfigKey(registry: string): string {
  return /^(?:registry-1\.)?docker\.io$/.test(registry)
    ? DOCKER_HUB_CONFIG_KEY
    : registry;
}

function helperInConfig({ credHelpers, credsStore }: JsonObject, key: string) {
  const helper = ownProperty(jsonObjectOrEmpty(credHelpers), key) || credsStore;
  return typeof helper === "string" && helper ? helper : undefined;
}

async function runCredentialHelper(
  helper: string,
  key: string,
  signal?: AbortSignal,
): Promise<RegistryCredentials> {
  const command = `docker-credential-${helper}`;
  if (!isPermissionGranted({ name: "run", command })) {
    throw new RangesUnavailableError(`--allow-run=${command} is not granted`);
  }
  const failed = (why: string) =>
    new RangesUnavailableError(
      `${sanitizeLine(command, 60)} failed: ${sanitizeLine(why)}`,
    );
  const { code, stdout, stderr } = await runProcess(command, {
    args: ["get"],
    input: key,
    env: CLEARED_SECRET_VARIABLES,
    timeoutMs: CREDENTIAL_HELPER_TIMEOUT_MS,
    signal,
  }).catch((error) => {
    signal?.throwIfAborted();
    const missing = error instanceof Deno.errors.NotFound;
    throw failed(missing ? "not found on PATH" : error.message);
  });
  if (stdout.trim() === HELPER_NO_CREDENTIALS_OUTPUT) return {};
  if (code !== 0) {
    const printed = redactSecrets(stdout) || redactSecrets(stderr);
    throw failed(printed || `exit status ${code}`);
  }
  try {
    const { Username: user, Secret: secret } = JSON.parse(stdout);
    if (typeof user === "string" && typeof secret === "string") {
      return user === IDENTITY_TOKEN_USER
        ? { identityToken: secret }
        : { login: { user, password: secret } };
    }
  } catch {
    // The output and the parser's message may hold the secret: report neither.
  }
  throw failed("no user name and secret in the output");
}

function credentialsInConfig(
  auths: JsonObject,
  key: string,
): RegistryCredentials {
  // Old files have URLs as keys.
  const hostOf = (name: string) =>
    name.replace(/^https?:\/\//, "").split("/")[0];
  const entry = ownProperty(auths, key) ??
    Object.entries(auths).find(([name]) => hostOf(name) === key)?.[1];
  const fields = jsonObjectOrEmpty(entry);
  const text = (name: string) =>
    typeof fields[name] === "string" ? fields[name] : "";
  const [identityToken, registryToken] = ["identitytoken", "registrytoken"]
    .map(text);
  const [auth, user] = ["auth", "username"].map(text);
  const password = String(fields.password ?? "");
  const login = auth ? decodeBasicLogin(auth, key) : user && { user, password };
  return {
    ...identityToken && { identityToken },
    ...registryToken && { registryToken },
    ...login && { login },
  };
}

function decodeBasicLogin(auth: string, key: string) {
  try {
    const text = new TextDecoder().decode(Uint8Array.fromBase64(auth));
    const colon = text.indexOf(":");
    if (colon >= 0) {
      return { user: text.slice(0, colon), password: text.slice(colon + 1) };
    }
  } catch {
    // The cause may hold the secret: do not report it.
  }
  const why =
    `the credentials for ${key} in Docker's config.json are malformed`;
  throw new RangesUnavailableError(why);
}

/** A registry's name may be that of a method of all objects, such as `constructor`. */
function ownProperty(record: JsonObject, key: string): unknown {
  return Object.hasOwn(record, key) ? record[key] : undefined;
}
