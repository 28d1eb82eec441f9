/** Checks whether this host can hydrate and run images. */
import { dirname } from "../path.ts";
import { resolveCacheDir } from "../cache/entry.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { type ErrorCode, toToolsmithError } from "../errors.ts";
import { loadManifest, type Manifest } from "../manifest/manifest.ts";
import { formatImageSource } from "../manifest/image_source.ts";
import {
  ghcrCredentialsFromEnv,
  isGhcr,
  unusedGhcrTokenWarning,
} from "../oci/ghcr_credentials.ts";
import { orasClient } from "../oci/oras_client.ts";
import {
  isOlderVersion,
  MIN_ORAS_VERSION,
  MIN_SAFE_ORAS_VERSION,
} from "../oci/oras_version.ts";
import { registryEndpoint } from "../oci/endpoints.ts";
import { fetchArtifactForArch } from "../oci/platform.ts";
import {
  type TrustOptions,
  verifySignature,
} from "../signature/verify_signature.ts";
import {
  acceleratorFromEnv,
  findFastestAccelerator,
} from "../qemu/accelerator.ts";
import { findUefiFirmware } from "../qemu/firmware.ts";
import {
  hasStreamNetworking,
  qemuProgram,
  queryQemuVersion,
  STREAM_NETWORKING_HINT,
} from "../qemu/program.ts";
import type { ImageArch } from "../qemu/target.ts";
import { readFreeDiskBytes } from "../system/free_space.ts";

/** The result of one check. */
export interface Finding {
  /** What was checked. */
  check: string;
  /** `fail` means that hydrate cannot work. */
  level: "ok" | "warn" | "fail";
  /** What was found. */
  found: string;
  /** What to do about it. */
  hint?: string;
}

/** Options of `doctor()`. */
export interface DoctorOptions extends TrustOptions {
  /** The manifest, if named. @default {undefined} */
  manifest?: string;
  /** The cache's directory. @default {undefined} `TOOLSMITH_CACHE`, or the workspace's */
  cache?: string;
  /** Where the search for a manifest starts. @default {Deno.cwd()} */
  cwd?: string;
}

interface CheckedHost extends DoctorOptions {
  env: Environment;
  /** Rejects without a valid manifest. */
  loading: Promise<Manifest>;
  loadedManifest: Manifest | undefined;
}

/** A finding whose level defaults to `ok`. */
type CheckResult = Omit<Finding, "check" | "level"> & Partial<Finding>;

/** In the order of the findings. A check that does not apply returns `undefined`. */
const CHECKS = {
  manifest: checkManifest,
  oras: checkOras,
  credentials: checkCredentials,
  registry: checkRegistry,
  signature: checkSignature,
  cache: checkCacheWritable,
  space: checkFreeSpace,
  qemu: checkQemu,
  accelerator: checkAccelerator,
  "UEFI images": (host: CheckedHost) => checkUefiFirmware("x86_64", host),
  "arm64 images": (host: CheckedHost) => checkUefiFirmware("aarch64", host),
};

/**
 * Checks manifest, oras, credentials, registry, cache, disk space and QEMU. A failed
 * check does not keep the others from running.
 *
 * Needs the permissions of `hydrate` and `boot`.
 *
 * @param options Manifest, cache, registry.
 * @returns The findings, in a fixed order.
 * @throws The signal's reason when it is aborted.
 *
 * @example Check this host
 * ```ts no-run
 * import { doctor } from "@fountain/toolsmith";
 *
 * const findings = await doctor();
 * const fit = findings.every(({ level }) => level !== "fail");
 * console.log(fit, findings);
 * ```
 */
export async function doctor(options: DoctorOptions = {}): Promise<Finding[]> {
  const { manifest, cwd, env = processEnvironment } = options;
  const loading = loadManifest(manifest, { cwd, env });
  const loadedManifest = await loading.catch(() => undefined);
  const host = { ...options, env, loading, loadedManifest };
  const findings: Finding[] = [];
  for (const [check, look] of Object.entries(CHECKS)) {
    try {
      const found: CheckResult | undefined = await look(host);
      if (found) findings.push({ check, level: "ok", ...found });
    } catch (thrown) {
      const { message: found, hint, code } = toToolsmithError(thrown);
      const level = isOptional(check, code, host) ? "warn" : "fail";
      findings.push({ check, level, found, hint });
    }
    host.signal?.throwIfAborted();
  }
  return findings;
}

/** Whether a host can hydrate although a check failed. */
function isOptional(
  check: string,
  code: ErrorCode,
  { manifest, env, loadedManifest }: CheckedHost,
): boolean {
  // A host may be checked before it has a manifest.
  if (code === "manifest_not_found") {
    return !manifest && !env.get("TOOLSMITH_MANIFEST");
  }
  // Only an image in a registry needs oras.
  const { kind = "oci" } = loadedManifest?.image.source ?? {};
  if (check === "oras") return kind !== "oci";
  return check === "qemu" || check === "accelerator";
}

async function checkManifest({ loading }: CheckedHost) {
  const { path, image: { name, source } } = await loading;
  return { found: `${path}: ${name} from ${formatImageSource(source)}` };
}

async function checkOras(host: CheckedHost): Promise<CheckResult> {
  const version = await orasClient(host).version();
  if (isOlderVersion(version, MIN_ORAS_VERSION)) {
    const hint = `install oras >= ${MIN_ORAS_VERSION}: https://oras.land/`;
    return { level: "fail", found: `${version} is too old`, hint };
  }
  if (!isOlderVersion(version, MIN_SAFE_ORAS_VERSION)) {
    return { found: version };
  }
  return {
    level: "warn",
    found: `${version} is vulnerable to path traversal when it unpacks`,
    hint:
      `Toolsmith is not affected, as it rejects layers that oras would unpack; for other uses install oras ${MIN_SAFE_ORAS_VERSION} or newer`,
  };
}

function checkCredentials(
  { env, loadedManifest }: CheckedHost,
): CheckResult | undefined {
  const source = loadedManifest?.image.source;
  if (source?.kind !== "oci") return undefined;
  const { registry } = source;
  const given = ghcrCredentialsFromEnv(registry, env);
  if (given) return { found: `GHCR_TOKEN for ${given.user} at ${registry}` };
  if (!isGhcr(registry)) {
    return { found: `credentials that oras has for ${registry}, if any` };
  }
  const hint =
    "for private packages set GHCR_TOKEN, and GHCR_USERNAME or GITHUB_ACTOR";
  if (unusedGhcrTokenWarning(registry, env) === undefined) {
    const found =
      "none in the environment: public packages and oras's credentials only";
    return { found, hint };
  }
  const found = "GHCR_TOKEN is ignored without GHCR_USERNAME or GITHUB_ACTOR";
  return { level: "warn", found, hint };
}

async function checkRegistry(host: CheckedHost) {
  const source = host.loadedManifest?.image.source;
  if (source?.kind !== "oci") return undefined;
  const stallTimeoutMs = host.stallTimeoutMs ?? 15_000;
  const registry = orasClient({ ...host, stallTimeoutMs });
  const { digest } = await registry.fetchManifest(source);
  return { found: `serves ${digest}` };
}

async function checkSignature(host: CheckedHost) {
  const { source, signature: rule } = host.loadedManifest?.image ?? {};
  if (!rule || source?.kind !== "oci") return undefined;
  const { fetchManifest } = orasClient(host);
  const { arch } = Deno.build;
  const artifact = await fetchArtifactForArch(source, arch, fetchManifest);
  const registry = registryEndpoint(source, host);
  const wanted = { rule, registry, mirrors: [] };
  const { signer } = await verifySignature(artifact, wanted, host);
  return { found: `${artifact.digest} is signed by ${signer}` };
}

async function checkCacheWritable(host: CheckedHost): Promise<CheckResult> {
  const dir = await cacheDirOf(host);
  const existing = await nearestExistingPath(dir);
  try {
    await Deno.mkdir(dir, { recursive: true });
    await Deno.remove(await Deno.makeTempFile({ dir, prefix: ".doctor-" }));
    return { found: `${dir} is writable` };
  } catch (error) {
    const hint = "fix the cache's owner and mode, or set TOOLSMITH_CACHE=DIR";
    return { level: "fail", found: toToolsmithError(error).message, hint };
  } finally {
    await removeEmptyDirsBelow(existing, dir);
  }
}

/** Removes what the probe created; stops at a directory that is in use. */
async function removeEmptyDirsBelow(kept: string, last: string) {
  try {
    for (let at = last; at !== kept; at = dirname(at)) await Deno.remove(at);
  } catch {
    // Not empty, or already removed.
  }
}

async function checkFreeSpace(
  host: CheckedHost,
): Promise<CheckResult | undefined> {
  const cache = await cacheDirOf(host).catch(() => undefined);
  if (cache === undefined) return undefined;
  const dir = await nearestExistingPath(cache);
  const free = await readFreeDiskBytes(dir);
  if (free === undefined) return undefined;
  const found = `${(free / 1024 ** 3).toFixed(1)} GiB free at ${dir}`;
  return free < 1024 ** 3
    ? { level: "warn", found, hint: "remove old images: toolsmith cache prune" }
    : { found };
}

async function checkQemu({ env }: CheckedHost): Promise<CheckResult> {
  const program = qemuProgram(env);
  const version = await queryQemuVersion(program);
  const found = `${version} (${program})`;
  if (hasStreamNetworking(version)) return { found };
  const hint = STREAM_NETWORKING_HINT;
  return { level: "warn", found: `${found}, without --allow-net`, hint };
}

/** Probes the accelerators again instead of using an earlier result. */
async function checkAccelerator({ env }: CheckedHost): Promise<CheckResult> {
  const wanted = acceleratorFromEnv(env);
  if (wanted) return { found: `${wanted}, set by TOOLSMITH_ACCEL` };
  let why = "";
  const onRejected = (reason: string) => why = reason;
  const how = { env, reprobe: true, onRejected };
  const best = await findFastestAccelerator(qemuProgram(env), how);
  if (best !== "tcg") return { found: best };
  const hint = /permission/i.test(why)
    ? "run sudo usermod -aG kvm $USER, then log in again"
    : why
    ? "enable virtualisation in the firmware; in a VM, nested virtualisation"
    : "use a Linux host with KVM, or macOS, to run guests at full speed";
  const found = why
    ? `${why}: guests are emulated`
    : "tcg: guests are emulated and slower";
  return { level: "warn", found, hint };
}

/** UEFI and arm64 images need firmware that other images do not. */
async function checkUefiFirmware(arch: ImageArch, { env }: CheckedHost) {
  const program = qemuProgram(env, arch);
  try {
    const version = await queryQemuVersion(program);
    const { code } = await findUefiFirmware(arch, { program, env });
    return { found: `${version}, firmware ${code}` };
  } catch (error) {
    const { message, hint } = toToolsmithError(error);
    return { found: `not supported on this host: ${message}`, hint };
  }
}

async function cacheDirOf(host: CheckedHost): Promise<string> {
  const { loadedManifest, cwd = Deno.cwd() } = host;
  return await resolveCacheDir(loadedManifest?.workspace ?? cwd, host);
}

async function nearestExistingPath(path: string): Promise<string> {
  const exists = await Deno.stat(path).then(() => true, () => false);
  const parent = dirname(path);
  return exists || parent === path ? path : await nearestExistingPath(parent);
}
