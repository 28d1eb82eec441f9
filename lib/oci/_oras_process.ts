/**
 * Runs the `oras` program against a registry, and makes its failures typed.
 *
 * @module
 */
import { type Environment, processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import { resolve, SEPARATOR } from "../path.ts";
import { isLoopback } from "../system/address_network.ts";
import { type Output, run, type RunOptions } from "../system/process.ts";
import { orasConfigDir } from "./_config_dir.ts";
import { credentialError } from "./_credential_errors.ts";
import { type ConfigFile, readConfigFile } from "./_docker_config.ts";
import { ghcrCredentials, NO_SECRETS, redactSecrets } from "./credentials.ts";
import { orasError } from "./_oras_errors.ts";
import type { OciReference } from "./reference.ts";
import { isPlainHttp, type RegistryOptions } from "./registry.ts";

/** One use of the program. */
export interface OrasCall
  extends Pick<RunOptions, "cwd" | "signal" | "onStart"> {
  /** The subcommand. */
  command: string[];
  /** What follows the flags for connection and credentials. */
  args: string[];
}

/** The program, and how it reaches registries. */
export interface OrasProcess {
  /** Its name or path. */
  program: string;
  /** Time without progress after which a call is aborted, in milliseconds. */
  stallMs: number;
  /** Runs it without a registry. */
  run(args: string[], options?: RunOptions): Promise<Output>;
  /** Runs a subcommand against a registry; its failures become typed. */
  call(reference: OciReference, call: OrasCall): Promise<Output>;
}

/** Missing, which oras takes for a configuration without credentials. */
const NO_CONFIG = "/nonexistent/toolsmith.json";

/**
 * Binds the program to the way a registry is reached.
 *
 * @param options How to reach the registry.
 */
export function orasProcess(options: RegistryOptions): OrasProcess {
  const env = options.env ?? processEnvironment;
  const named = env.get("TOOLSMITH_ORAS") || "oras";
  // It may start in another directory than this process.
  const program = named.includes(SEPARATOR) ? resolve(named) : named;
  const { signal, stallTimeoutMs: stallMs = 60_000 } = options;
  const both = (other?: AbortSignal) =>
    signal && other ? AbortSignal.any([signal, other]) : signal ?? other;
  return {
    program,
    stallMs,
    run: (args, rest) => start(program, { args, signal, ...rest }),
    call: (reference, call) =>
      callRegistry({ program, env, options, reference }, {
        ...call,
        signal: both(call.signal),
      }),
  };
}

async function callRegistry(
  { program, env, options, reference }: {
    program: string;
    env: Environment;
    options: RegistryOptions;
    reference: OciReference;
  },
  { command, args, ...rest }: OrasCall,
): Promise<Output> {
  const credentials = ghcrCredentials(reference.registry, env);
  const plain = isPlainHttp(reference.registry, options);
  if (plain && credentials) {
    throw new ToolsmithError(
      "usage",
      `Cannot send GHCR_TOKEN to ${reference.registry} over plain HTTP`,
      { hint: "leave out --plain-http, or unset GHCR_TOKEN" },
    );
  }
  // Nobody on the way shall read what Docker's configuration holds.
  const withheld = plain && !isLoopback(reference.registry);
  // With credentials at hand oras reads none.
  const config = credentials || withheld ? undefined : await configFile(env);
  // Said either way: oras takes plain HTTP for granted on localhost.
  const connection = [`--plain-http=${plain}`];
  if (options.caFile) connection.push("--ca-file", resolve(options.caFile));
  // Docker takes an empty file for none; oras 1.3.0 fails on it.
  if (withheld || config?.text.trim() === "") {
    connection.push("--registry-config", NO_CONFIG);
  }
  const output = await start(program, {
    args: [
      ...command,
      ...connection,
      ...(credentials ? ["-u", credentials.user, "--password-stdin"] : []),
      ...args,
    ],
    input: credentials?.token,
    ...rest,
  });
  if (output.code === 0) return output;
  const said = redactSecrets(output.stderr, credentials);
  const error = (config && credentialError(said, reference.registry, config)) ??
    orasError(said, reference, credentials !== undefined);
  if (!withheld || error.code !== "unauthorized") throw error;
  throw new ToolsmithError(
    "unauthorized",
    `Cannot log in to http://${reference.registry}: credentials are not sent over plain HTTP`,
    {
      hint:
        "serve the registry over HTTPS; --ca-file FILE trusts a private authority",
      cause: error,
    },
  );
}

/** What cannot be read is oras's to report. */
async function configFile(env: Environment): Promise<ConfigFile | undefined> {
  try {
    return await readConfigFile(env);
  } catch {
    return undefined;
  }
}

async function start(program: string, options: RunOptions): Promise<Output> {
  try {
    const env = { ...NO_SECRETS, ...await orasConfigDir() };
    return await run(program, { ...options, env });
  } catch (cause) {
    if (
      cause instanceof Deno.errors.NotFound ||
      cause instanceof Deno.errors.NotADirectory ||
      cause instanceof Deno.errors.PermissionDenied
    ) {
      throw new ToolsmithError(
        "oras_not_found",
        program === "oras"
          ? "oras not found on PATH"
          : `oras not found: ${program} cannot be run`,
        {
          hint:
            "install ORAS (https://oras.land/) or set TOOLSMITH_ORAS to its path",
          cause,
        },
      );
    }
    throw cause;
  }
}
