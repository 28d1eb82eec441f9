/**
 * Pulls, pushes and fetches manifests with the `oras` program.
 *
 * Written for oras 1.3; docs/architecture.md explains why Toolsmith has no registry
 * client of its own for this.
 */
import { ToolsmithError } from "../errors.ts";
import {
  type Digest,
  isSha256Digest,
  sha256OfBytes,
  sha256ToDigest,
} from "../system/digest.ts";
import type { ProcessResult } from "../system/process.ts";
import {
  startStallTimer,
  withOptionalRequestTimeout,
} from "../system/stall_timer.ts";
import type { Artifact } from "./artifact.ts";
import { redactSecrets } from "./ghcr_credentials.ts";
import {
  bytesReadByProcess,
  directorySize,
  watchOrasTransfer,
} from "./_oras_transfer_watch.ts";
import { parseArtifactManifest } from "./_artifact_manifest.ts";
import { orasPath, runOras, runOrasForRegistry } from "./_oras_program.ts";
import {
  busyRegistryGuard,
  fetchManifestWithoutOras,
  throwUnauthorized,
} from "./_http_fallback.ts";
import { formatReference, type OciReference } from "./reference.ts";
import type { RegistryOptions } from "./registry_options.ts";

export interface PushOptions {
  files: { path: string; mediaType: string }[];
  /** Working directory of oras: the paths of the files are relative to it. */
  cwd: string;
  artifactType: string;
  annotations: Record<string, string>;
  totalBytes: number;
  /** Attach the files to the artifact that the reference names. @default {false} */
  attach?: boolean;
}

export interface PullOptions {
  dir: string;
  /** Highest number of bytes that oras may write. */
  maxBytes: number;
  onBytes?: (bytes: number) => void;
}

export type OrasClient = ReturnType<typeof orasClient>;

const OCI_IMAGE_CONFIG_MEDIA_TYPE = "application/vnd.oci.image.config.v1+json";
const MAX_IMAGE_CONFIG_BYTES = 64 * 1024;
/** A slower push counts as stalled if oras's read count is unknown. */
const MIN_PUSH_BYTES_PER_MS = 16;
/** Smaller reads are those of the program itself, such as shared libraries. */
const PUSH_PROGRESS_STEP_BYTES = 64 * 1024;

/**
 * Creates a client that runs `oras`. Credentials for ghcr.io are passed on standard
 * input with every call, so that no file holds them; for other registries, oras reads
 * its Docker configuration.
 */
export function orasClient(options: RegistryOptions = {}) {
  const guard = busyRegistryGuard(options);
  const explained = <T>(reference: OciReference, work: Promise<T>) =>
    work.catch((error) => throwUnauthorized(error, reference, options));
  return {
    version: () => readOrasVersion(options),
    /**
     * Fetches a manifest; without oras if the registry is busy or offers an
     * authentication scheme first that oras does not support.
     */
    fetchManifest(reference: OciReference): Promise<Artifact> {
      const work = () => fetchManifestWithOras(reference, options);
      return guard(reference, work, (it) => it)
        .catch((error) => fetchManifestWithoutOras(error, reference, options));
    },
    /**
     * Fetches the architecture from an image's config, in OCI's terms. Returns
     * `undefined` if there is no config, if it cannot be fetched, or if `check` rejects
     * its digest.
     */
    async fetchArchitecture(
      { reference, config }: Artifact,
      check?: (digest: Digest) => Promise<void>,
    ): Promise<string | undefined> {
      const { mediaType, digest = "", size = 0 } = config ?? {};
      const isReadable = mediaType === OCI_IMAGE_CONFIG_MEDIA_TYPE &&
        size <= MAX_IMAGE_CONFIG_BYTES;
      if (!isReadable || !isSha256Digest(digest)) return undefined;
      const blob = { ...reference, digest };
      try {
        await check?.(digest);
        // After a download from a mirror, the registry may be offline.
        const limited = withOptionalRequestTimeout(options);
        const fetch = ["blob", "fetch", "--output", "-"];
        const { stdout } = await readWithOras(fetch, blob, limited);
        const { architecture } = JSON.parse(stdout);
        return typeof architecture === "string" ? architecture : undefined;
      } catch {
        return undefined;
      }
    },
    pull: (reference: OciReference, pull: PullOptions) =>
      explained(reference, pullWithOras(reference, options, pull)),
    push(reference: OciReference, push: PushOptions): Promise<Digest> {
      const work = () => pushWithOras(reference, options, push);
      return explained(reference, guard(reference, work));
    },
  };
}

async function readOrasVersion(options: RegistryOptions): Promise<string> {
  const call = { args: ["version"], timeoutMs: 10_000 };
  const { code, stdout, stderr } = await runOras(options, call);
  const version = /^Version:\s*(\S+)/m.exec(stdout)?.[1];
  if (code === 0 && version) return version.replace(/\+.*/, "");
  const printed = redactSecrets(stdout + stderr).slice(0, 200);
  const message = `Cannot read the version of ${
    orasPath(options)
  }: unexpected output ${JSON.stringify(printed)}`;
  const hint = "set TOOLSMITH_ORAS to the path of oras (https://oras.land/)";
  throw new ToolsmithError("oras_failed", message, { hint });
}

/** Prints what a reference names, in no more time than a stall may take. */
async function readWithOras(
  subcommand: string[],
  reference: OciReference,
  options: RegistryOptions,
): Promise<ProcessResult> {
  const name = formatReference(reference);
  using timer = startStallTimer(`read ${name}`, options);
  const call = { subcommand, args: [name], signal: timer.signal };
  return await runOrasForRegistry(reference, options, call);
}

/** Hashes the very bytes that it parses. */
async function fetchManifestWithOras(
  reference: OciReference,
  options: RegistryOptions,
): Promise<Artifact> {
  const fetch = ["manifest", "fetch"];
  const { stdoutBytes } = await readWithOras(fetch, reference, options);
  const digest = sha256ToDigest(await sha256OfBytes(stdoutBytes));
  if (reference.digest === undefined || reference.digest === digest) {
    return parseArtifactManifest(stdoutBytes, reference, digest);
  }
  const name = formatReference(reference);
  const message =
    `Cannot read ${name}: oras printed a manifest with the digest ${digest}`;
  const hint = "try again, and check that TOOLSMITH_ORAS is the path of oras";
  throw new ToolsmithError("checksum_mismatch", message, { hint });
}

async function pullWithOras(
  reference: OciReference,
  options: RegistryOptions,
  { dir, maxBytes, onBytes }: PullOptions,
): Promise<void> {
  const name = formatReference(reference);
  const measure = () => directorySize(dir);
  const limits = { stallTimeoutMs: options.stallTimeoutMs, maxBytes, onBytes };
  await using watch = watchOrasTransfer(`pull ${name}`, measure, limits);
  await runOrasForRegistry(reference, options, {
    subcommand: ["pull"],
    args: ["--no-tty", "--output", dir, name],
    signal: watch.signal,
  });
  await watch.measureNow();
  watch.signal.throwIfAborted();
}

async function pushWithOras(
  reference: OciReference,
  options: RegistryOptions,
  { files, cwd, artifactType, annotations, totalBytes, attach }: PushOptions,
): Promise<Digest> {
  const name = formatReference(reference);
  const subcommand = attach ? "attach" : "push";
  const args = ["--no-tty", "--format", "json"];
  args.push("--artifact-type", artifactType);
  for (const [key, value] of Object.entries(annotations)) {
    args.push("--annotation", `${key}=${value}`);
  }
  // A file name may begin with a dash.
  args.push("--", name);
  args.push(...files.map((file) => `${file.path}:${file.mediaType}`));
  const startedAt = performance.now();
  let pid = 0;
  const measure = async () => {
    const read = await bytesReadByProcess(pid);
    if (read !== undefined) return Math.floor(read / PUSH_PROGRESS_STEP_BYTES);
    // Assume progress for a time that fits the size.
    const passedMs = performance.now() - startedAt;
    return Math.floor(Math.min(passedMs, totalBytes / MIN_PUSH_BYTES_PER_MS));
  };
  const title = `${subcommand} ${name}`;
  const { stallTimeoutMs } = options;
  await using watch = watchOrasTransfer(title, measure, { stallTimeoutMs });
  const { stdout } = await runOrasForRegistry(reference, options, {
    subcommand: [subcommand],
    args,
    cwd,
    onStart: (started) => pid = started,
    signal: watch.signal,
  });
  return parsePushedDigest(stdout);
}

function parsePushedDigest(text: string): Digest {
  try {
    const { digest } = JSON.parse(text);
    if (typeof digest === "string" && isSha256Digest(digest)) return digest;
  } catch {
    // Not JSON, as from an older oras.
  }
  const printed = JSON.stringify(redactSecrets(text).slice(0, 200));
  const message = `oras push printed no digest: ${printed}`;
  const hint = "install oras 1.3.0 or newer, then check: toolsmith doctor";
  throw new ToolsmithError("oras_failed", message, { hint });
}
