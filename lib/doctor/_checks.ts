/**
 * The checks of doctor: each looks at one thing and depends on no other.
 *
 * @module
 */
import { dirname, join } from "../path.ts";
import { findCache } from "../cache/entry.ts";
import type { Environment } from "../environment.ts";
import { ToolsmithError, toToolsmithError } from "../errors.ts";
import type { Manifest } from "../manifest/manifest.ts";
import { formatSource, type ImageSource } from "../manifest/source.ts";
import {
  ghcrCredentials,
  isGhcr,
  unusedTokenWarning,
} from "../oci/credentials.ts";
import { oras } from "../oci/oras.ts";
import {
  isOlder,
  MIN_ORAS_VERSION,
  SAFE_ORAS_VERSION,
} from "../oci/oras_version.ts";
import type { RegistryOptions } from "../oci/registry.ts";
import { accelerators, wantedAccelerator } from "../qemu/accelerator.ts";
import { findUefi } from "../qemu/firmware.ts";
import { qemuProgram, qemuVersion } from "../qemu/program.ts";
import { freeBytes } from "../system/free_space.ts";

/** What a check found. */
export interface Finding {
  /** What was checked. */
  check: string;
  /** `fail` means that hydrating cannot work. */
  level: "ok" | "warn" | "fail";
  /** What was found. */
  found: string;
  /** What to do about it. */
  hint?: string;
}

/** What the checks look at. */
export interface Host extends RegistryOptions {
  /** The manifest, if named. */
  manifest?: string;
  /** The cache's directory, if named. */
  cache?: string;
  /** The directory to look for a manifest from. */
  cwd?: string;
  /** Environment variables. */
  env: Environment;
  /** The manifest as it was read, or why it was not. */
  loaded: Manifest | ToolsmithError;
}

/** Looks at one thing; `undefined` where there is nothing to say. */
export type Check = (host: Host) => Promise<Finding | undefined>;

/** Every check, in the order in which findings are shown. */
export const CHECKS: Check[] = [
  checkManifest,
  checkOras,
  checkCredentials,
  checkRegistry,
  checkCache,
  checkSpace,
  checkQemu,
  checkAccelerator,
  (host) => checkImagesFor(host, "x86_64"),
  (host) => checkImagesFor(host, "aarch64"),
];

/** The manifest is there and as the guide describes. */
function checkManifest(host: Host): Promise<Finding> {
  const check = "manifest";
  const { loaded } = host;
  if (loaded instanceof ToolsmithError) {
    const named = host.manifest ?? host.env.get("TOOLSMITH_MANIFEST");
    const finding = failed(check, loaded);
    // A host may be checked before it has a manifest.
    const early = loaded.code === "manifest_not_found" && !named;
    return Promise.resolve(early ? { ...finding, level: "warn" } : finding);
  }
  const { path, image } = loaded;
  const found = `${path}: ${image.name} from ${formatSource(image.source)}`;
  return Promise.resolve({ check, level: "ok", found });
}

async function checkOras(host: Host): Promise<Finding> {
  const check = "oras";
  try {
    const version = await oras(host).version();
    if (isOlder(version, MIN_ORAS_VERSION)) {
      const hint = `install ${MIN_ORAS_VERSION} or newer: https://oras.land/`;
      return { check, level: "fail", found: `${version} is too old`, hint };
    }
    if (isOlder(version, SAFE_ORAS_VERSION)) {
      return {
        check,
        level: "warn",
        found: `${version} unpacks hostile archives unsafely`,
        hint:
          `Toolsmith refuses such layers; for other uses install ${SAFE_ORAS_VERSION} or newer`,
      };
    }
    return { check, level: "ok", found: version };
  } catch (error) {
    const source = sourceOf(host);
    // It is not needed for an image that comes another way.
    const level = source && source.kind !== "oci" ? "warn" : "fail";
    return { ...failed(check, error), level };
  }
}

function checkCredentials(host: Host): Promise<Finding | undefined> {
  const check = "credentials";
  const { env } = host;
  const source = sourceOf(host);
  if (source?.kind !== "oci") return Promise.resolve(undefined);
  const { registry } = source;
  const given = ghcrCredentials(registry, env);
  if (given) {
    const found = `GHCR_TOKEN for ${given.user} at ${registry}`;
    return Promise.resolve({ check, level: "ok", found });
  }
  if (!isGhcr(registry)) {
    const found = `those of oras for ${registry}, if any`;
    return Promise.resolve({ check, level: "ok", found });
  }
  const half = unusedTokenWarning(registry, env) !== undefined;
  return Promise.resolve({
    check,
    level: half ? "warn" : "ok",
    found: half
      ? "GHCR_TOKEN without GHCR_USERNAME or GITHUB_ACTOR: it is not used"
      : "none in the environment: public packages, and what oras knows",
    hint: "private packages: set GHCR_TOKEN, and GHCR_USERNAME or GITHUB_ACTOR",
  });
}

async function checkRegistry(host: Host): Promise<Finding | undefined> {
  const check = "registry";
  const source = sourceOf(host);
  if (source?.kind !== "oci") return undefined;
  try {
    const stallTimeoutMs = host.stallTimeoutMs ?? 15_000;
    const registry = oras({ ...host, stallTimeoutMs });
    const { digest } = await registry.fetchManifest(source);
    return { check, level: "ok", found: `serves ${digest}` };
  } catch (error) {
    return failed(check, error);
  }
}

async function checkCache(host: Host): Promise<Finding> {
  const check = "cache";
  const dir = await cacheOf(host);
  if (dir instanceof ToolsmithError) return failed(check, dir);
  const probe = join(dir, `.doctor-${crypto.randomUUID().slice(0, 8)}`);
  // What is made for the probe is taken away with it.
  const made = await firstMissing(dir);
  try {
    await Deno.mkdir(dir, { recursive: true });
    await Deno.writeTextFile(probe, "");
    await Deno.remove(probe);
    return { check, level: "ok", found: `${dir} can be written` };
  } catch (error) {
    const hint = "fix its owner and mode, or set TOOLSMITH_CACHE=DIR";
    return { ...failed(check, error), hint };
  } finally {
    if (made) await removeEmpty(dir, made);
  }
}

/** Removes directories upwards, but nothing that another process put there. */
async function removeEmpty(from: string, to: string) {
  try {
    for (let at = from;; at = dirname(at)) {
      await Deno.remove(at);
      if (at === to) return;
    }
  } catch {
    // It is not empty, or not there: it stays as it is.
  }
}

async function checkSpace(host: Host): Promise<Finding | undefined> {
  let dir = await cacheOf(host);
  if (dir instanceof ToolsmithError) return undefined;
  while (await Deno.stat(dir).then(() => false, () => true)) {
    if (dirname(dir) === dir) break;
    dir = dirname(dir);
  }
  const free = await freeBytes(dir);
  if (free === undefined) return undefined;
  const level = free < 1024 ** 3 ? "warn" : "ok";
  return {
    check: "space",
    level,
    found: `${(free / 1024 ** 3).toFixed(1)} GiB free at ${dir}`,
    hint: level === "warn" ? "toolsmith cache prune" : undefined,
  };
}

/** Hydrating does without QEMU; only running needs it. */
async function checkQemu({ env }: Host): Promise<Finding> {
  const check = "qemu";
  const program = qemuProgram(env);
  try {
    const found = `${await qemuVersion(program)} (${program})`;
    return { check, level: "ok", found };
  } catch (error) {
    return { ...failed(check, error), level: "warn" };
  }
}

/** What is offered is tried, whatever was found out before. */
async function checkAccelerator({ env }: Host): Promise<Finding> {
  const check = "accelerator";
  let why = "";
  const onRejected = (reason: string) => why = reason;
  try {
    const wanted = wantedAccelerator(env);
    if (wanted) {
      const found = `${wanted}, as TOOLSMITH_ACCEL says`;
      return { check, level: "ok", found };
    }
    const how = { env, afresh: true, onRejected };
    const [best] = await accelerators(qemuProgram(env), how);
    if (best !== "tcg") return { check, level: "ok", found: best };
    const hint = /permission/i.test(why)
      ? "let this user open /dev/kvm: usermod -aG kvm USER"
      : why
      ? "give this virtual machine hardware nested virtualisation"
      : "a Linux host with KVM, or macOS, runs them at full speed";
    const found = why
      ? `${why}: guests are emulated`
      : "tcg: guests are emulated, and slower";
    return { check, level: "warn", found, hint };
  } catch (error) {
    return { ...failed(check, error), level: "warn" };
  }
}

/** Images that boot by UEFI, or are for arm64, need more; others do not. */
async function checkImagesFor(
  { env }: Host,
  arch: "x86_64" | "aarch64",
): Promise<Finding> {
  const check = arch === "aarch64" ? "arm64 images" : "UEFI images";
  const program = qemuProgram(env, arch);
  try {
    const version = await qemuVersion(program);
    const { code } = await findUefi(arch, { program, env });
    return { check, level: "ok", found: `${version}, firmware ${code}` };
  } catch (error) {
    const { message, hint } = toToolsmithError(error);
    return { check, level: "ok", found: `not on this host: ${message}`, hint };
  }
}

function sourceOf({ loaded }: Host): ImageSource | undefined {
  return loaded instanceof ToolsmithError ? undefined : loaded.image.source;
}

async function cacheOf(host: Host): Promise<string | ToolsmithError> {
  const { loaded, cwd = Deno.cwd() } = host;
  const root = loaded instanceof ToolsmithError ? cwd : loaded.root;
  return await findCache(root, host).catch(toToolsmithError);
}

async function firstMissing(dir: string): Promise<string | undefined> {
  let missing: string | undefined;
  for (let at = dir; dirname(at) !== at; at = dirname(at)) {
    if (await Deno.stat(at).then(() => true, () => false)) break;
    missing = at;
  }
  return missing;
}

function failed(check: string, thrown: unknown): Finding {
  const { message, hint } = toToolsmithError(thrown);
  return { check, level: "fail", found: message, hint };
}
