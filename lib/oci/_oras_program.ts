/** Runs the `oras` program against a registry, and throws typed errors. */
import { isPermissionGranted, processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import { resolve, SEPARATOR } from "../path.ts";
import { isLoopbackHost } from "../system/ip_address.ts";
import {
  type ProcessResult,
  runProcess,
  type RunProcessOptions,
} from "../system/process.ts";
import { anySignal } from "../system/time.ts";
import { dockerConfigDir, readDockerConfigFile } from "./_docker_config.ts";
import {
  CLEARED_SECRET_VARIABLES,
  ghcrCredentialsFromEnv,
  redactSecrets,
} from "./ghcr_credentials.ts";
import { parseCredentialError, parseOrasError } from "./_oras_errors.ts";
import type { OciReference } from "./reference.ts";
import { type RegistryOptions, usesPlainHttp } from "./registry_options.ts";

/** oras treats a missing file as a configuration without credentials. */
const NONEXISTENT_CONFIG_PATH = "/nonexistent/toolsmith.json";

export function orasPath(
  { env = processEnvironment }: RegistryOptions,
): string {
  const path = env.get("TOOLSMITH_ORAS") || "oras";
  // oras may run in another working directory.
  return path.includes(SEPARATOR) ? resolve(path) : path;
}

/**
 * Runs a subcommand of oras that contacts a registry; the flags for connection and
 * credentials go before `args`.
 */
export async function runOrasForRegistry(
  reference: OciReference,
  options: RegistryOptions,
  { subcommand, args = [], ...rest }: RunProcessOptions & {
    subcommand: string[];
  },
): Promise<ProcessResult> {
  const { env = processEnvironment } = options;
  const { registry } = reference;
  const login = ghcrCredentialsFromEnv(registry, env);
  const plain = usesPlainHttp(registry, options);
  if (plain && login) {
    const message = `Cannot send GHCR_TOKEN to ${registry} over plain HTTP`;
    const hint = "remove --plain-http, or unset GHCR_TOKEN";
    throw new ToolsmithError("usage", message, { hint });
  }
  // Over plain HTTP, Docker's credentials could be read on the network.
  const withheld = plain && !isLoopbackHost(registry);
  // oras reads no configuration if it gets credentials.
  const config = login || withheld
    ? undefined
    // oras itself reports an unreadable configuration.
    : await readDockerConfigFile(env).catch(() => undefined);
  // Always explicit, because oras defaults to plain HTTP on localhost.
  const connection = [`--plain-http=${plain}`];
  if (options.caFile) connection.push("--ca-file", resolve(options.caFile));
  // docker accepts an empty file; oras 1.3.0 fails on it.
  if (withheld || config?.text.trim() === "") {
    connection.push("--registry-config", NONEXISTENT_CONFIG_PATH);
  }
  if (login) connection.push("-u", login.user, "--password-stdin");
  const output = await runOras(options, {
    ...rest,
    args: [...subcommand, ...connection, ...args],
    input: login?.password,
  });
  if (output.code === 0) return output;
  const stderr = redactSecrets(output.stderr, login);
  const error = (config && parseCredentialError(stderr, registry, config)) ??
    parseOrasError(stderr, reference, login !== undefined);
  if (!withheld || error.code !== "unauthorized") throw error;
  const hint =
    "serve the registry over HTTPS; pass --ca-file FILE for a private CA";
  const message =
    `Cannot log in to http://${registry}: credentials are not sent over plain HTTP`;
  throw new ToolsmithError("unauthorized", message, { hint, cause: error });
}

export async function runOras(
  options: RegistryOptions,
  call: RunProcessOptions,
): Promise<ProcessResult> {
  const program = orasPath(options);
  const signal = anySignal(options.signal, call.signal);
  try {
    // oras inherits the variable; set it only if Deno may read it.
    const variable = "DOCKER_CONFIG";
    const dir = isPermissionGranted({ name: "env", variable })
      ? await dockerConfigDir(processEnvironment)
      : undefined;
    const env = { ...CLEARED_SECRET_VARIABLES, ...dir && { [variable]: dir } };
    return await runProcess(program, { ...call, signal, env });
  } catch (cause) {
    const { NotADirectory, NotFound, PermissionDenied } = Deno.errors;
    const isMissing = [NotFound, NotADirectory, PermissionDenied]
      .some((kind) => cause instanceof kind);
    if (!isMissing) throw cause;
    const message = program === "oras"
      ? "oras not found on PATH"
      : `oras not found: ${program} is missing or not executable`;
    const hint =
      "install ORAS (https://oras.land/) or set TOOLSMITH_ORAS to its path";
    throw new ToolsmithError("oras_not_found", message, { hint, cause });
  }
}
