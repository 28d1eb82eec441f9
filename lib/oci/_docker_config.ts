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
import { run } from "../system/process.ts";
import { RangesUnavailable } from "./_ranges_unavailable.ts";
import { ghcrCredentials, NO_SECRETS } from "./credentials.ts";

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

/** What `config.json` holds that matters here. */
interface DockerConfig {
  auths?: Record<string, unknown>;
  credHelpers?: Record<string, string>;
  credsStore?: string;
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
  const config = await readConfig(env);
  const key = /^(?:registry-1\.)?docker\.io$/.test(registry)
    ? DOCKER_HUB
    : registry;
  const helper = own(config.credHelpers, key) || config.credsStore;
  return helper
    ? await askHelper(helper, key, options.signal)
    : storedCredentials(config.auths ?? {}, key);
}

/**
 * Names Docker's directory.
 *
 * @param env Read for `DOCKER_CONFIG` and `HOME`.
 * @returns The directory, which need not exist; `undefined` without a home.
 */
export function dockerDir(env: Environment): string | undefined {
  const home = env.get(Deno.build.os === "windows" ? "USERPROFILE" : "HOME");
  return env.get("DOCKER_CONFIG") || (home && join(home, ".docker"));
}

/**
 * Names the credential helpers of Docker's configuration.
 *
 * @param env Read for `DOCKER_CONFIG` and `HOME`.
 * @returns The programs; none where the configuration cannot be read.
 */
export async function credentialHelpers(env: Environment): Promise<string[]> {
  const { credsStore, credHelpers } = await readConfig(env).catch(
    (): DockerConfig => ({}),
  );
  return [credsStore, ...Object.values(credHelpers ?? {})]
    .filter(Boolean).map((name) => `docker-credential-${name}`);
}

async function readConfig(env: Environment): Promise<DockerConfig> {
  const dir = dockerDir(env);
  if (!dir) return {};
  const path = join(dir, "config.json");
  const { state } = await Deno.permissions.query({ name: "read", path });
  if (state !== "granted") return {};
  try {
    const config = JSON.parse(await Deno.readTextFile(path));
    if (typeof config === "object" && config !== null) return config;
  } catch (cause) {
    if (cause instanceof Deno.errors.NotFound) return {};
    throw new RangesUnavailable(`${path} cannot be read`, { cause });
  }
  throw new RangesUnavailable(`${path} is not an object`);
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
  try {
    const { code, stdout } = await run(command, {
      args: ["get"],
      input: key,
      timeoutMs: HELPER_MS,
      env: NO_SECRETS,
      signal,
    });
    if (stdout.trim() === NO_CREDENTIALS) return {};
    if (code !== 0) throw new Error(`it exited with ${code}`);
    const { Username: user, Secret: secret } = JSON.parse(stdout);
    if (typeof user !== "string" || typeof secret !== "string") {
      throw new Error("it printed no credentials");
    }
    return user === TOKEN_USER
      ? { identityToken: secret }
      : { login: { user, password: secret } };
  } catch (cause) {
    signal?.throwIfAborted();
    // Neither its output nor a parser's message: they may hold the secret.
    throw new RangesUnavailable(`${command} failed`, { cause });
  }
}

function storedCredentials(
  auths: Record<string, unknown>,
  key: string,
): RegistryCredentials {
  // Old files have addresses as keys.
  const entry = own(auths, key) ??
    Object.entries(auths).find(([name]) => hostOf(name) === key)?.[1];
  if (typeof entry !== "object" || entry === null) return {};
  const { auth, username, password, identitytoken, registrytoken } =
    entry as Record<string, unknown>;
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
