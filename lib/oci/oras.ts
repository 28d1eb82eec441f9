/**
 * The `oras` program: its arguments and its output.
 *
 * Written for oras 1.3; docs/architecture.md says why the program and not a
 * client of our own.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { asDigest, type Digest, isDigest, sha256 } from "../system/digest.ts";
import { timeLimit } from "../system/time.ts";
import type { Artifact } from "./artifact.ts";
import { redactSecrets } from "./credentials.ts";
import { busyGuard } from "./_busy_registry.ts";
import { explainRefusal, fetchDirectly } from "./_direct_manifest.ts";
import { readManifest } from "./_manifest_reader.ts";
import { parseDigest } from "./_oras_output.ts";
import { type OrasProcess, orasProcess } from "./_oras_process.ts";
import { formatReference, type OciReference } from "./reference.ts";
import type { RegistryOptions } from "./registry.ts";
import {
  bytesReadBy,
  directoryBytes,
  stallError,
  watchGrowth,
} from "./_stall_watch.ts";

/** A file to push as a layer. */
export interface PushFile {
  /** Its path, relative to {@linkcode PushOptions.cwd}. */
  path: string;
  /** Its media type. */
  mediaType: string;
}

/** What {@linkcode Oras.push} takes. */
export interface PushOptions {
  /** The files to push. */
  files: PushFile[];
  /** The directory that the paths of the files start from. */
  cwd: string;
  /** Type of the artifact. */
  artifactType: string;
  /** Annotations of the manifest. */
  annotations: Record<string, string>;
  /** Size of all the files, in bytes. */
  bytes: number;
}

/** What {@linkcode Oras.pull} takes. */
export interface PullOptions {
  /** The directory to fill. */
  dir: string;
  /** The most that may be written, in bytes. */
  maxBytes: number;
  /** Called with the count of bytes in it whenever that has changed. */
  onBytes?: (bytes: number) => void;
}

/** The `oras` program, ready for one registry. */
export interface Oras {
  /** Its version, such as `1.3.0`. */
  version(): Promise<string>;
  /**
   * Reads the manifest that a reference names; without the program, where the
   * registry offers a scheme first that the program does not know, or is busy.
   */
  fetchManifest(reference: OciReference): Promise<Artifact>;
  /**
   * Reads which processor an image's configuration names, as OCI names it.
   * Where there is none, or it cannot be read, that is not known; nor where
   * `check` rejects the configuration's digest.
   */
  fetchArchitecture(
    artifact: Artifact,
    check?: (digest: Digest) => Promise<void>,
  ): Promise<string | undefined>;
  /** Pulls every titled layer into a directory. */
  pull(reference: OciReference, options: PullOptions): Promise<void>;
  /** Pushes files as an artifact; returns the manifest's digest. */
  push(reference: OciReference, options: PushOptions): Promise<Digest>;
}

const IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json";
const MAX_CONFIG = 64 * 1024;
const MAX_CONFIG_MS = 10_000;
/** The slowest push that is waited for, in bytes a millisecond. */
const SLOWEST = 16;
/** What a process reads for itself is no progress. */
const FRAME = 64 * 1024;

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
  const program = orasProcess(options);
  const guard = busyGuard(options);
  const explained = <T>(reference: OciReference, work: Promise<T>) =>
    work.catch(async (error) => {
      throw await explainRefusal(error, reference, options);
    });
  return {
    version: () => version(program),
    fetchManifest: (reference) =>
      guard(reference, () => fetchManifest(program, reference), (it) => it)
        .catch((error) => fetchDirectly(error, reference, options)),
    fetchArchitecture: (artifact, check) =>
      fetchArchitecture(program, artifact, check),
    pull: (reference, rest) =>
      explained(reference, pull(program, reference, rest)),
    push: (reference, rest) =>
      explained(
        reference,
        guard(reference, () => push(program, reference, rest)),
      ),
  };
}

async function version(program: OrasProcess): Promise<string> {
  const output = await program.run(["version"], { timeoutMs: 10_000 });
  const version = /^Version:\s*(\S+)/m.exec(output.stdout)?.[1];
  if (output.code === 0 && version) return version.replace(/\+.*/, "");
  const said = redactSecrets(output.stdout + output.stderr).slice(0, 200);
  throw new ToolsmithError(
    "oras_failed",
    `Cannot read the version of ${program.program}: it printed ${
      JSON.stringify(said)
    }`,
    { hint: "TOOLSMITH_ORAS must name oras, https://oras.land/" },
  );
}

/** The bytes whose digest names the artifact are those that are read. */
async function fetchManifest(
  program: OrasProcess,
  reference: OciReference,
): Promise<Artifact> {
  const name = formatReference(reference);
  using limit = timeLimit(program.stallMs, "oras manifest fetch");
  let bytes: Uint8Array<ArrayBuffer>;
  try {
    const command = ["manifest", "fetch"];
    const call = { command, args: [name], signal: limit.signal };
    bytes = (await program.call(reference, call)).stdoutBytes;
  } catch (error) {
    throw error === limit.signal.reason
      ? stallError(`read ${name}`, program.stallMs)
      : error;
  }
  const digest = asDigest(await sha256(ReadableStream.from([bytes])));
  if (reference.digest === undefined || reference.digest === digest) {
    return readManifest(bytes, reference, digest);
  }
  throw new ToolsmithError(
    "checksum_mismatch",
    `Cannot read ${name}: what oras printed has the digest ${digest}`,
    { hint: "try again, and check what TOOLSMITH_ORAS names" },
  );
}

/** OCI Image Specification 1.1, "Image Configuration". */
async function fetchArchitecture(
  program: OrasProcess,
  { reference: { registry, repository }, config }: Artifact,
  check?: (digest: Digest) => Promise<void>,
): Promise<string | undefined> {
  if (config?.mediaType !== IMAGE_CONFIG || config.size > MAX_CONFIG) return;
  if (!isDigest(config.digest)) return;
  const { digest } = config;
  const reference: OciReference = { kind: "oci", registry, repository, digest };
  // The image may have come from a mirror, and the registry be out of reach.
  const limitMs = Math.min(program.stallMs, MAX_CONFIG_MS);
  using limit = timeLimit(limitMs, "oras blob fetch");
  try {
    await check?.(digest);
    const { stdout } = await program.call(reference, {
      command: ["blob", "fetch"],
      args: ["--output", "-", formatReference(reference)],
      signal: limit.signal,
    });
    const { architecture } = JSON.parse(stdout);
    return typeof architecture === "string" ? architecture : undefined;
  } catch {
    return undefined;
  }
}

async function pull(
  program: OrasProcess,
  reference: OciReference,
  { dir, maxBytes, onBytes }: PullOptions,
): Promise<void> {
  const name = formatReference(reference);
  await using growth = watchGrowth(() => directoryBytes(dir), {
    what: `pull ${name}`,
    stallMs: program.stallMs,
    maxBytes,
    onBytes,
  });
  await program.call(reference, {
    command: ["pull"],
    args: ["--no-tty", "--output", dir, name],
    signal: growth.signal,
  });
  await growth.look();
  growth.signal.throwIfAborted();
}

async function push(
  program: OrasProcess,
  reference: OciReference,
  { files, cwd, artifactType, annotations, bytes }: PushOptions,
): Promise<Digest> {
  const name = formatReference(reference);
  const args = ["--no-tty", "--format", "json"];
  args.push("--artifact-type", artifactType);
  for (const [key, value] of Object.entries(annotations)) {
    args.push("--annotation", `${key}=${value}`);
  }
  // What follows is no option, also where a file's name begins with a dash.
  args.push("--", name);
  args.push(...files.map((file) => `${file.path}:${file.mediaType}`));
  const begun = performance.now();
  let pid = 0;
  // Where oras's reading cannot be seen, a slow network gets its time.
  const slow = () =>
    Math.floor(Math.min(performance.now() - begun, bytes / SLOWEST));
  await using growth = watchGrowth(async () => {
    const read = await bytesReadBy(pid);
    return read === undefined ? slow() : Math.floor(read / FRAME);
  }, { what: `push ${name}`, stallMs: program.stallMs });
  const output = await program.call(reference, {
    command: ["push"],
    args,
    cwd,
    onStart: (started) => pid = started,
    signal: growth.signal,
  });
  return parseDigest(output.stdout, "push");
}
