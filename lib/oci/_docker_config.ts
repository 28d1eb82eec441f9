/**
 * The credentials that `oras` itself would use for a registry.
 *
 * Format: Docker's `config.json` (docker/cli, "docker login", "Credential
 * stores" and "Credential helpers"). oras 1.3 reads it in `DOCKER_CONFIG` or
 * `~/.docker` alone, and not podman's `auth.json`.
 *
 * @module
 */
import { join } from "../path.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { absentAs } from "../system/files.ts";
import { isObject, type JsonObject, parseJson } from "../system/json.ts";
import { run } from "../system/process.ts";
import { oneLine } from "../system/text.ts";
import { RangesUnavailable } from "./_ranges_unavailable.ts";
import { ghcrCredentials, NO_SECRETS, redactSecrets } from "./credentials.ts";

/** What a registry, or its token service, is shown. Never to be printed. */
export interface RegistryCredentials {
  /** User and password: Basic, or what a token is asked for with. */
  login?: { user: string; password: string };
  /** A refresh token, which the token service changes for others. */
  identityToken?: string;
  /** A bearer token for the registry itself. */
  registryToken?: string;
}

/** What {@linkcode readCredentials} takes. */
export interface CredentialOptions {
  /** Read for `GHCR_*`, `DOCKER_CONFIG`, `HOME`. @default {processEnvironment} */
  env?: Environment;
  /** Ends a credential helper when aborted. @default {undefined} */
  signal?: AbortSignal;
}

/** Docker's `config.json`. */
export interface ConfigFile {
  /** Its path. */
  path: string;
  /** What is in it. */
  text: string;
}

const HELPER_MS = 30_000;
const DOCKER_HUB = "https://index.docker.io/v1/";
/** A helper's user name for a secret that is an identity token. */
const TOKEN_USER = "<token>";
/** What helpers print, by agreement, where they have nothing. */
const NO_CREDENTIALS = "credentials not found in native keychain";

/**
 * Finds the credentials for a registry: `GHCR_*` for ghcr.io, else its
 * credential helper, the common credential store, or Docker's file.
 *
 * Needs `--allow-read` for Docker's `config.json`, and `--allow-run` for the
 * credential helper that it names. Nothing is asked for: what is not permitted
 * is not there.
 *
 * @param registry Host, and port if any, as a reference names it.
 * @param options The environment, and cancelling.
 * @returns The credentials; empty where there are none.
 * @throws {RangesUnavailable} When they cannot be read.
 */
export async function readCredentials(
  registry: string,
  options: CredentialOptions = {},
): Promise<RegistryCredentials> {
  const env = options.env ?? processEnvironment;
  const ghcr = ghcrCredentials(registry, env);
  if (ghcr) return { login: { user: ghcr.user, password: ghcr.token } };
  const { auths, ...config } = await readConfig(env);
  const key = serverKey(registry);
  const helper = helperOf(config, key);
  return helper
    ? await askHelper(helper, key, options.signal)
    : storedCredentials(isObject(auths) ? auths : {}, key);
}

/**
 * Names Docker's directory.
 *
 * @param env Read for `DOCKER_CONFIG`, `HOME`, on Windows `USERPROFILE`.
 * @returns The directory, which need not exist; `undefined` without a home.
 */
export function dockerDir(env: Environment): string | undefined {
  const home = env.get(Deno.build.os === "windows" ? "USERPROFILE" : "HOME");
  return env.get("DOCKER_CONFIG") || (home && join(home, ".docker"));
}

/**
 * Reads Docker's `config.json`.
 *
 * Needs `--allow-read` for it. Nothing is asked for.
 *
 * @param env As for {@linkcode dockerDir}.
 * @returns The file; `undefined` where there is none, or it may not be read.
 * @throws {RangesUnavailable} When it exists and cannot be read.
 */
export async function readConfigFile(
  env: Environment,
): Promise<ConfigFile | undefined> {
  const dir = dockerDir(env);
  if (!dir) return undefined;
  const path = join(dir, "config.json");
  const { state } = await Deno.permissions.query({ name: "read", path });
  if (state !== "granted") return undefined;
  try {
    const text = await absentAs(undefined, Deno.readTextFile(path));
    return text === undefined ? undefined : { path, text };
  } catch (cause) {
    throw new RangesUnavailable(`${path} cannot be read`, { cause });
  }
}

/**
 * Finds the credential helper of a registry.
 *
 * @param file Docker's configuration.
 * @param registry Host, and port if any, as a reference names it.
 * @returns `NAME` of `docker-credential-NAME`; `undefined` where there is none.
 * @throws {RangesUnavailable} When the file is malformed; says where.
 */
export function credentialHelper(
  file: ConfigFile,
  registry: string,
): string | undefined {
  return helperOf(parseConfig(file), serverKey(registry));
}

/**
 * Names the credential helpers of Docker's configuration.
 *
 * @param env As for {@linkcode dockerDir}.
 * @returns The programs; none where the configuration cannot be read.
 */
export async function credentialHelpers(env: Environment): Promise<string[]> {
  const { credsStore, credHelpers } = await readConfig(env).catch(
    (): JsonObject => ({}),
  );
  const named = isObject(credHelpers) ? Object.values(credHelpers) : [];
  return [credsStore, ...named]
    .filter((name) => typeof name === "string" && name)
    .map((name) => `docker-credential-${name}`);
}

async function readConfig(env: Environment): Promise<JsonObject> {
  const file = await readConfigFile(env);
  return file ? parseConfig(file) : {};
}

/** As docker does, takes an empty file for none. */
function parseConfig({ path, text }: ConfigFile): JsonObject {
  if (text.trim() === "") return {};
  let config: unknown;
  try {
    config = parseJson(text, path);
  } catch (error) {
    throw new RangesUnavailable((error as Error).message);
  }
  if (isObject(config)) return config;
  throw new RangesUnavailable(`${path} is not an object`);
}

/** What a registry's entry in the configuration is called. */
function serverKey(registry: string): string {
  return /^(?:registry-1\.)?docker\.io$/.test(registry) ? DOCKER_HUB : registry;
}

function helperOf(
  { credHelpers, credsStore }: JsonObject,
  key: string,
): string | undefined {
  const helper = isObject(credHelpers) && own(credHelpers, key) || credsStore;
  return typeof helper === "string" && helper ? helper : undefined;
}

/** Asks `docker-credential-HELPER get`, with the host on standard input. */
async function askHelper(
  helper: string,
  key: string,
  signal?: AbortSignal,
): Promise<RegistryCredentials> {
  const command = `docker-credential-${helper}`;
  const { state } = await Deno.permissions.query({ name: "run", command });
  if (state !== "granted") {
    throw new RangesUnavailable(`--allow-run=${command} is not granted`);
  }
  const failed = (why: string) =>
    new RangesUnavailable(`${oneLine(command, 60)} failed: ${oneLine(why)}`);
  const options = { args: ["get"], input: key, timeoutMs: HELPER_MS, signal };
  const output = await run(command, { ...options, env: NO_SECRETS })
    .catch((error) => {
      signal?.throwIfAborted();
      const missing = error instanceof Deno.errors.NotFound;
      throw failed(missing ? "it is not on PATH" : error.message);
    });
  const { code, stdout, stderr } = output;
  if (stdout.trim() === NO_CREDENTIALS) return {};
  if (code !== 0) {
    const said = redactSecrets(stdout) || redactSecrets(stderr);
    throw failed(said || `exit status ${code}`);
  }
  try {
    const { Username: user, Secret: secret } = JSON.parse(stdout);
    if (typeof user === "string" && typeof secret === "string") {
      return user === TOKEN_USER
        ? { identityToken: secret }
        : { login: { user, password: secret } };
    }
  } catch {
    // Neither its output nor the parser's message: they may hold the secret.
  }
  throw failed("it printed no credentials");
}

function storedCredentials(
  auths: JsonObject,
  key: string,
): RegistryCredentials {
  // Old files have addresses as keys.
  const entry = own(auths, key) ??
    Object.entries(auths).find(([name]) => hostOf(name) === key)?.[1];
  if (typeof entry !== "object" || entry === null) return {};
  const { auth, username, password, identitytoken, registrytoken } =
    entry as JsonObject;
  const credentials: RegistryCredentials = {};
  if (typeof identitytoken === "string" && identitytoken) {
    credentials.identityToken = identitytoken;
  }
  if (typeof registrytoken === "string" && registrytoken) {
    credentials.registryToken = registrytoken;
  }
  if (typeof auth === "string" && auth) {
    credentials.login = decodeLogin(auth, key);
  } else if (typeof username === "string" && username) {
    credentials.login = { user: username, password: String(password ?? "") };
  }
  return credentials;
}

/** Reads base64 of `user:password`. */
function decodeLogin(auth: string, key: string) {
  try {
    const text = new TextDecoder().decode(Uint8Array.fromBase64(auth));
    const colon = text.indexOf(":");
    if (colon >= 0) {
      return { user: text.slice(0, colon), password: text.slice(colon + 1) };
    }
  } catch {
    // The cause would show the secret.
  }
  throw new RangesUnavailable(`Docker's credentials for ${key} are malformed`);
}

function hostOf(address: string): string {
  return address.replace(/^https?:\/\//, "").split("/")[0];
}

function own<T>(record: Record<string, T> | undefined, key: string) {
  return record && Object.hasOwn(record, key) ? record[key] : undefined;
}
