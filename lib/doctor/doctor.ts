/**
 * Says whether this host can do what Toolsmith is asked to do: a table of
 * checks.
 *
 * @module
 */
import { dirname, join, resolve } from "@std/path";
import { accelerators } from "../qemu/accelerator.ts";
import { cacheDir } from "../cache/entry.ts";
import { freeBytes } from "../system/free_space.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { toToolsmithError } from "../errors.ts";
import { loadManifest, type Manifest } from "../manifest/manifest.ts";
import {
  ghcrCredentials,
  isGhcr,
  unusedTokenWarning,
} from "../oci/credentials.ts";
import { oras } from "../oci/oras.ts";
import type { RegistryOptions } from "../oci/registry.ts";
import { qemuProgram, qemuVersion } from "../qemu/program.ts";
import { formatSource } from "../manifest/source.ts";

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

/** What {@linkcode doctor} takes. */
export interface DoctorOptions extends RegistryOptions {
  /** The manifest, if named. @default {undefined} */
  manifest?: string;
  /** The cache's directory. @default {undefined} `TOOLSMITH_CACHE`, or the workspace's */
  cache?: string;
  /** The directory to look for a manifest from. @default {Deno.cwd()} */
  cwd?: string;
}

/** The oldest version of oras that Toolsmith is written for. */
const MIN_ORAS_VERSION = "1.3.0";
/** Older ones can be made to write outside of their directory (GHSA-8xwf-rjm4-xvhv). */
const SAFE_ORAS = "1.3.3";

/** What the checks share. */
interface Host extends DoctorOptions {
  env: Environment;
  loaded?: Manifest;
}

type Check = (host: Host) => Promise<Finding | undefined>;

/**
 * Runs every check. One that fails does not keep the others from running.
 *
 * Needs what {@linkcode hydrate} needs.
 *
 * @param options Manifest, cache, registry.
 * @returns What was found, in order; `undefined` findings are left out.
 * @throws The signal's reason when it is aborted.
 */
export async function doctor(options: DoctorOptions = {}): Promise<Finding[]> {
  const host: Host = { ...options, env: options.env ?? processEnvironment };
  const findings: Finding[] = [];
  for (const check of CHECKS) {
    const finding = await check(host);
    host.signal?.throwIfAborted();
    if (finding) findings.push(finding);
  }
  return findings;
}

const CHECKS: Check[] = [
  checkManifest,
  checkOras,
  checkCredentials,
  checkRegistry,
  checkCache,
  checkSpace,
  checkQemu,
  checkAccelerator,
];

async function checkManifest(host: Host): Promise<Finding> {
  const check = "manifest";
  try {
    const { manifest, cwd, env } = host;
    host.loaded = await loadManifest(manifest, { cwd, env });
    const { path, image } = host.loaded;
    const found = `${path}: ${image.name} from ${formatSource(image.source)}`;
    return { check, level: "ok", found };
  } catch (error) {
    const finding = failed(check, error);
    const none = toToolsmithError(error).code === "manifest_not_found";
    const named = host.manifest ?? host.env.get("TOOLSMITH_MANIFEST");
    // A host may be checked before it has a manifest.
    return none && !named ? { ...finding, level: "warn" } : finding;
  }
}

async function checkOras(host: Host): Promise<Finding> {
  const check = "oras";
  try {
    const version = await oras(host).version();
    if (older(version, MIN_ORAS_VERSION)) {
      const hint = `install ${MIN_ORAS_VERSION} or newer: https://oras.land/`;
      return { check, level: "fail", found: `${version} is too old`, hint };
    }
    if (older(version, SAFE_ORAS)) {
      return {
        check,
        level: "warn",
        found: `${version} unpacks hostile archives unsafely`,
        hint:
          `Toolsmith refuses such layers; for other uses install ${SAFE_ORAS} or newer`,
      };
    }
    return { check, level: "ok", found: version };
  } catch (error) {
    const { source } = host.loaded?.image ?? {};
    // It is not needed for an image that comes another way.
    const level = source && source.kind !== "oci" ? "warn" : "fail";
    return { ...failed(check, error), level };
  }
}

function checkCredentials({ env, loaded }: Host): Promise<Finding | undefined> {
  const check = "credentials";
  const source = loaded?.image.source;
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
  const source = host.loaded?.image.source;
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
  const dir = folderOf(host);
  const probe = join(dir, `.doctor-${crypto.randomUUID().slice(0, 8)}`);
  // What is made for the probe is taken away with it.
  const made = await firstMissing(dir);
  try {
    await Deno.mkdir(dir, { recursive: true });
    await Deno.writeTextFile(probe, "");
    await Deno.remove(probe);
    return { check, level: "ok", found: `${dir} can be written` };
  } catch (error) {
    const hint = "mend its owner and mode, or set TOOLSMITH_CACHE=DIR";
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
  let dir = folderOf(host);
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

async function checkAccelerator({ env }: Host): Promise<Finding> {
  const check = "accelerator";
  const [best] = await accelerators(qemuProgram(env), { env });
  if (best === "tcg") {
    return {
      check,
      level: "warn",
      found: "tcg: guests are emulated, and slower",
      hint: "a Linux host with KVM, or macOS, runs them at full speed",
    };
  }
  if (best === "kvm") {
    try {
      (await Deno.open("/dev/kvm", { read: true, write: true })).close();
    } catch (error) {
      const hint = "let this user open /dev/kvm: usermod -aG kvm USER";
      return { ...failed(check, error), level: "warn", hint };
    }
  }
  return { check, level: "ok", found: best };
}

function folderOf({ cache, loaded, cwd, env }: Host): string {
  return resolve(
    cache ?? cacheDir(loaded?.root ?? cwd ?? Deno.cwd(), env),
  );
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

/** Tells whether one version is older than another. */
function older(version: string, than: string): boolean {
  const numbers = (text: string) => text.split(/[.+-]/).slice(0, 3).map(Number);
  const [a, b] = [numbers(version), numbers(than)];
  const at = a.findIndex((part, i) => part !== b[i]);
  return at >= 0 && a[at] < b[at];
}
