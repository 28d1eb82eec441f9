/**
 * Finds the host's UEFI firmware by its descriptors (QEMU, docs/interop/firmware.json).
 */
import { type Environment, processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import type { ImageArch } from "../image/boot_loader.ts";
import { dirname, join } from "../path.ts";
import { readSmallJsonObject } from "../system/files.ts";
import { findProgram } from "../system/find_program.ts";
import { jsonObjectOrEmpty } from "../system/json.ts";

/** Files for flash memory: read-only code, and a template of the variables. */
export type FlashFirmware = { code: string; variables: string };

/** Firmware other than QEMU's own BIOS; `rom` is a single read-only file. */
export type Firmware = FlashFirmware | { rom: string };

export interface FindUefiFirmwareOptions {
  /** The QEMU program, which may be installed with descriptors. */
  program: string;
  /** Read for `HOME`, `XDG_CONFIG_HOME` and `PATH`. @default {processEnvironment} */
  env?: Environment;
  /** Directories of descriptors. @default {undefined} those of QEMU's specification */
  descriptorDirs?: string[];
}

/** Toolsmith's machine types, as descriptors name them. */
const MACHINE_TYPES: Record<ImageArch, RegExp> = {
  x86_64: /^(?:pc-)?q35(?:$|-)/,
  aarch64: /^virt(?:$|-)/,
};

const FIRMWARE_PACKAGES: Record<ImageArch, string> = {
  x86_64: "Debian, Ubuntu: apt install ovmf; Fedora: dnf install edk2-ovmf",
  aarch64:
    "Debian, Ubuntu: apt install qemu-efi-aarch64; Fedora: dnf install edk2-aarch64",
};

/** Secure Boot rejects unsigned boot loaders; SMM needs other machine options. */
const UNSUPPORTED_FEATURES = ["requires-smm", "enrolled-keys", "secure-boot"];
const MAX_DESCRIPTOR_BYTES = 64 * 1024;

/**
 * Finds the first usable UEFI firmware for a processor, in the order of the host's
 * descriptors.
 */
export async function findUefiFirmware(
  arch: ImageArch,
  options: FindUefiFirmwareOptions,
): Promise<FlashFirmware> {
  const dirs = options.descriptorDirs ?? await firmwareDescriptorDirs(options);
  for (const path of await listDescriptors(dirs)) {
    const file = await Deno.realPath(path).catch(() => path);
    // An empty file hides a descriptor, as specified.
    const json = await readSmallJsonObject(file, MAX_DESCRIPTOR_BYTES);
    const found = parseFirmwareDescriptor(json, arch);
    const files = await Promise.all(firmwarePaths(found).map(isFile));
    if (found && files.every(Boolean)) return found;
  }
  const packages = FIRMWARE_PACKAGES[arch];
  throw new ToolsmithError(
    "firmware_not_found",
    `UEFI firmware for ${arch} not found: looked in ${dirs.join(", ")}`,
    { hint: `install UEFI firmware (${packages}), or pass --firmware PATH` },
  );
}

/**
 * Returns the directories of descriptors: the user's, the administrator's, then those
 * installed with QEMU.
 */
export async function firmwareDescriptorDirs(
  { program, env = processEnvironment }: FindUefiFirmwareOptions,
): Promise<string[]> {
  const home = env.get("HOME");
  const config = env.get("XDG_CONFIG_HOME") || (home && join(home, ".config"));
  const dirs = ["/etc/qemu/firmware", "/usr/share/qemu/firmware"];
  if (config) dirs.unshift(join(config, "qemu", "firmware"));
  const found = await findProgram(program, env);
  const path = found && await Deno.realPath(found).catch(() => found);
  const own = path && join(dirname(dirname(path)), "share/qemu/firmware");
  if (own && !dirs.includes(own)) dirs.push(own);
  return dirs;
}

/** Sorts by name; a file hides files of the same name in later directories. */
async function listDescriptors(dirs: string[]): Promise<string[]> {
  const found: Record<string, string> = {};
  for (const dir of dirs.toReversed()) {
    const entries = await Array.fromAsync(Deno.readDir(dir)).catch((error) => {
      if (error instanceof Deno.errors.NotCapable) throw error;
      return [];
    });
    for (const { name } of entries) {
      if (name.endsWith(".json")) found[name] = join(dir, name);
    }
  }
  return Object.keys(found).sort().map((name) => found[name]);
}

/** Returns the descriptor's firmware; `undefined` if unusable for the processor. */
export function parseFirmwareDescriptor(
  json: unknown,
  arch: ImageArch,
): FlashFirmware | undefined {
  const descriptor = jsonObjectOrEmpty(json);
  const { mapping, features } = descriptor;
  const targets = arrayOrEmpty(descriptor.targets).map(jsonObjectOrEmpty);
  const hasFeature = (it: string) => arrayOrEmpty(features).includes(it);
  const fits = arrayOrEmpty(descriptor["interface-types"]).includes("uefi") &&
    !UNSUPPORTED_FEATURES.some(hasFeature) &&
    targets.some(({ architecture, machines }) =>
      architecture === arch &&
      arrayOrEmpty(machines).some((it) => MACHINE_TYPES[arch].test(String(it)))
    );
  const { device, mode = "split", ...files } = jsonObjectOrEmpty(mapping);
  if (!fits || device !== "flash" || mode !== "split") return undefined;
  const code = rawFilePath(files.executable);
  const variables = rawFilePath(files["nvram-template"]);
  return code && variables ? { code, variables } : undefined;
}

function rawFilePath(value: unknown): string | undefined {
  const { filename, format } = jsonObjectOrEmpty(value);
  return typeof filename === "string" && format === "raw"
    ? filename
    : undefined;
}

function arrayOrEmpty(value: unknown): unknown[] {
  return Array.isArray(value) ? value : [];
}

function isFile(path: string): Promise<boolean> {
  return Deno.stat(path).then((stat) => stat.isFile, () => false);
}

export function firmwarePaths(firmware: Firmware | undefined): string[] {
  return Object.values(firmware ?? {});
}
