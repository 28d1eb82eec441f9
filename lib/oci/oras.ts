/**
 * The `oras` program: its arguments, its output, and whose credentials it uses.
 *
 * Written for oras 1.3; docs/architecture.md says why the program and not a
 * client of our own.
 *
 * @module
 */
import type { Artifact } from "./artifact.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import {
  bytesReadBy,
  folderBytes,
  type Growth,
  watchGrowth,
} from "./_stall_watch.ts";
import { orasError, redactSecrets } from "./_oras_errors.ts";
import { parseArtifact, parseDigest } from "./_oras_output.ts";
import { type Output, run, type RunOptions } from "../system/process.ts";
import { formatReference, isLoopback, type OciReference } from "./reference.ts";

/** How a registry is reached. */
export interface RegistryOptions {
  /** Use plain HTTP. @default {undefined} for loopback registries only */
  plainHttp?: boolean;
  /** A PEM file with the certificate authority to trust. @default {undefined} */
  caFile?: string;
  /**
   * Read for `TOOLSMITH_ORAS`, `GHCR_TOKEN`, `GHCR_USERNAME`, `GITHUB_ACTOR`.
   *
   * @default {processEnvironment}
   */
  env?: Environment;
  /** Ends whatever runs. @default {undefined} */
  signal?: AbortSignal;
  /**
   * Time after which a transfer that does not grow, or a request that gets no
   * answer, is given up, in milliseconds.
   *
   * @default {60_000}
   */
  stallTimeoutMs?: number;
}

/** A file to push as a layer. */
export interface PushFile {
  /** Its path, relative to {@linkcode PushOptions.cwd}. */
  path: string;
  /** Its media type. */
  mediaType: string;
}

/** What {@linkcode Oras.push} takes. */
export interface PushOptions {
  /** The directory that the paths of the files start from. */
  cwd: string;
  /** Type of the artifact. */
  artifactType: string;
  /** Annotations of the manifest. */
  annotations: Record<string, string>;
  /** Size of all the files, in bytes. */
  bytes: number;
}

/** The slowest push that is waited for, in bytes a millisecond. */
const SLOWEST = 16;
/** What a process reads for itself is no progress. */
const FRAME = 64 * 1024;

/** The `oras` program, ready for one registry. */
export interface Oras {
  /** Its version, such as `1.3.0`. */
  version(): Promise<string>;
  /** Reads the manifest that a reference names. */
  fetchManifest(reference: OciReference): Promise<Artifact>;
  /** Pulls every titled layer into a directory. */
  pull(
    reference: OciReference,
    dir: string,
    onBytes?: (bytes: number) => void,
  ): Promise<void>;
  /** Pushes files as an artifact; returns the manifest's digest. */
  push(
    reference: OciReference,
    files: PushFile[],
    options: PushOptions,
  ): Promise<string>;
}

/**
 * Binds `oras` to the way a registry is reached. Credentials for ghcr.io go by
 * standard input with every call, so that no file ever holds them; any other
 * registry gets what oras itself finds in its Docker configuration.
 *
 * Needs `--allow-run=oras`, or for the path in `TOOLSMITH_ORAS`.
 *
 * @param options How to reach the registry.
 * @returns The program. Its methods throw {@linkcode ToolsmithError}s:
 * `oras_not_found`, and those of the registry (docs/troubleshooting.md).
 */
export function oras(options: RegistryOptions = {}): Oras {
  const env = options.env ?? processEnvironment;
  const program = orasProgram(env);
  const stallMs = options.stallTimeoutMs ?? 60_000;

  /** Runs a subcommand against a registry; its failures become typed. */
  async function call(
    subcommand: string[],
    reference: OciReference,
    rest: string[],
    extra: Omit<RunOptions, "args" | "input" | "env"> = {},
  ): Promise<Output> {
    const credentials = ghcrCredentials(reference.registry, env);
    const args = [
      ...subcommand,
      ...connectionArgs(reference.registry, options),
      ...(credentials ? ["-u", credentials.user, "--password-stdin"] : []),
      ...rest,
    ];
    const output = await start(program, {
      args,
      input: credentials?.token,
      signal: options.signal,
      ...extra,
    });
    if (output.code === 0) return output;
    throw orasError(
      redactSecrets(output.stderr, credentials),
      reference,
      credentials !== undefined,
    );
  }

  /** Does something that is given up when it stalls. */
  async function moving(
    { stalled: stopped }: Growth,
    what: string,
    work: (signal: AbortSignal) => Promise<Output>,
  ): Promise<Output> {
    const { signal } = options;
    const either = signal ? AbortSignal.any([signal, stopped]) : stopped;
    return await work(either).catch((error) => {
      const hung = stopped.aborted && !signal?.aborted;
      throw hung ? stalled(what, stallMs) : error;
    });
  }

  return {
    async version() {
      const output = await start(program, {
        args: ["version"],
        signal: options.signal,
        timeoutMs: 10_000,
      });
      const version = /^Version:\s*(\S+)/m.exec(output.stdout)?.[1];
      if (output.code === 0 && version) return version.replace(/\+.*/, "");
      throw new ToolsmithError(
        "oras_failed",
        `Cannot read the version of ${program}: it printed ${
          JSON.stringify(
            redactSecrets(output.stdout + output.stderr).slice(0, 200),
          )
        }`,
        { hint: "TOOLSMITH_ORAS must name oras, https://oras.land/" },
      );
    },

    async fetchManifest(reference) {
      const name = formatReference(reference);
      const args = ["--format", "json", name];
      const output = await call(["manifest", "fetch"], reference, args, {
        timeoutMs: stallMs,
      }).catch((error) => {
        throw asStall(error, name, stallMs);
      });
      return parseArtifact(output.stdout, reference);
    },

    async pull(reference, dir, onBytes) {
      const name = formatReference(reference);
      await using growth = watchGrowth(
        () => folderBytes(dir),
        stallMs,
        onBytes,
      );
      const args = ["--no-tty", "--output", dir, name];
      await moving(
        growth,
        `pull ${name}`,
        (signal) => call(["pull"], reference, args, { signal }),
      );
    },

    async push(reference, files, { cwd, artifactType, annotations, bytes }) {
      const args = ["--no-tty", "--format", "json"];
      args.push("--artifact-type", artifactType);
      for (const [key, value] of Object.entries(annotations)) {
        args.push("--annotation", `${key}=${value}`);
      }
      // What follows is no option, also where a file's name begins with a dash.
      args.push("--", formatReference(reference));
      args.push(...files.map((file) => `${file.path}:${file.mediaType}`));
      const begun = Date.now();
      let pid = 0;
      const onStart = (started: number) => pid = started;
      // Where it cannot be told how far it is, a slow network gets its time.
      const slow = () => Math.min(Date.now() - begun, bytes / SLOWEST);
      await using growth = watchGrowth(async () => {
        const read = await bytesReadBy(pid);
        return read === undefined ? slow() : Math.floor(read / FRAME);
      }, stallMs);
      const name = formatReference(reference);
      const output = await moving(
        growth,
        `push ${name}`,
        (signal) => call(["push"], reference, args, { cwd, signal, onStart }),
      );
      return parseDigest(output.stdout, "push");
    },
  };
}

/** The program to run: what `TOOLSMITH_ORAS` names, or `oras`. */
export function orasProgram(env: Environment): string {
  return env.get("TOOLSMITH_ORAS") || "oras";
}

/** A user and a token for a registry. */
export interface Credentials {
  /** User name. */
  user: string;
  /** Token: never to be printed, nor put into an argument. */
  token: string;
}

/**
 * The credentials that the environment holds for a registry.
 *
 * @param registry Its host; only `ghcr.io` gets any.
 * @param env The environment.
 * @returns User and token, or `undefined` where one of both is missing.
 */
export function ghcrCredentials(
  registry: string,
  env: Environment,
): Credentials | undefined {
  if (registry.toLowerCase() !== "ghcr.io") return undefined;
  const user = env.get("GHCR_USERNAME") || env.get("GITHUB_ACTOR");
  // As oras reads it: a line end would keep it from being found in a message.
  const token = env.get("GHCR_TOKEN")?.trim();
  return user && token ? { user, token } : undefined;
}

function connectionArgs(registry: string, options: RegistryOptions): string[] {
  const { caFile } = options;
  const plain = options.plainHttp ?? (!caFile && isLoopback(registry));
  // Said either way: oras takes plain HTTP for granted on localhost.
  const args = [`--plain-http=${plain}`];
  if (caFile) args.push("--ca-file", caFile);
  return args;
}

async function start(
  program: string,
  options: Parameters<typeof run>[1],
): Promise<Output> {
  try {
    // oras needs no token from its environment, nor do its helpers.
    const env = { GHCR_TOKEN: "", GITHUB_TOKEN: "" };
    return await run(program, { ...options, env });
  } catch (cause) {
    if (
      cause instanceof Deno.errors.NotFound ||
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

function asStall(error: unknown, name: string, stallMs: number): unknown {
  return error instanceof ToolsmithError && error.code === "timeout"
    ? stalled(`read ${name}`, stallMs)
    : error;
}

function stalled(what: string, stallMs: number): ToolsmithError {
  return new ToolsmithError(
    "transfer_stalled",
    `Cannot ${what}: nothing moved for ${stallMs / 1000} s`,
    { hint: "try again, or allow more time: --stall-timeout SECONDS" },
  );
}
