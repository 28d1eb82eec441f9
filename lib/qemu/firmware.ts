/**
 * Finds the UEFI firmware of this host, by the descriptors that it brings.
 *
 * Format: QEMU, docs/interop/firmware.json.
 *
 * @module
 */
import { type Environment, processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import type { ImageArch } from "../image/boot_loader.ts";
import { dirname, join } from "../path.ts";
import { findProgram } from "../system/find_program.ts";

/** A firmware that is in flash memory: its code, and its variables. */
export interface FlashFirmware {
  /** The file of its code, which is only read. */
  code: string;
  /** The file that its variables begin as; each machine writes to a copy. */
  variables: string;
}

/** A firmware that is one file, in read-only memory. */
export interface RomFirmware {
  /** The file. */
  rom: string;
}

/** What starts the guest's boot loader, where it is not QEMU's own BIOS. */
export type Firmware = FlashFirmware | RomFirmware;

/** What {@linkcode findUefi} takes. */
export interface FindUefiOptions {
  /** The QEMU program: descriptors may lie beside it. */
  program: string;
  /** Read for `HOME`, `XDG_CONFIG_HOME` and `PATH`. @default {processEnvironment} */
  env?: Environment;
  /** Where descriptors lie. @default {undefined} where QEMU's specification says */
  dirs?: string[];
}

/** The machine types that Toolsmith starts, as descriptors name them. */
const MACHINES: Record<ImageArch, RegExp> = {
  x86_64: /^(?:pc-)?q35(?:$|-)/,
  aarch64: /^virt(?:$|-)/,
};

const PACKAGES: Record<ImageArch, string> = {
  x86_64: "Debian, Ubuntu: apt install ovmf; Fedora: dnf install edk2-ovmf",
  aarch64:
    "Debian, Ubuntu: apt install qemu-efi-aarch64; Fedora: dnf install edk2-aarch64",
};

/** Such a firmware refuses boot loaders, or needs what the machine has not. */
const UNWANTED = ["requires-smm", "enrolled-keys", "secure-boot"];
const MAX_DESCRIPTOR = 64 * 1024;

/**
 * Finds a UEFI firmware for a processor.
 *
 * Needs `--allow-read` for the descriptors and the firmware.
 *
 * @param arch The processor.
 * @param options Where to look.
 * @returns The firmware that this host's order of descriptors prefers.
 * @throws {ToolsmithError} `firmware_not_found`.
 */
export async function findUefi(
  arch: ImageArch,
  options: FindUefiOptions,
): Promise<FlashFirmware> {
  const dirs = options.dirs ?? await descriptorDirs(options);
  for (const path of await descriptors(dirs)) {
    const found = readDescriptor(await readJson(path), arch);
    if (!found) continue;
    const files = [found.code, found.variables];
    if ((await Promise.all(files.map(isFile))).every(Boolean)) return found;
  }
  throw new ToolsmithError(
    "firmware_not_found",
    `No UEFI firmware for ${arch} on this host: looked in ${dirs.join(", ")}`,
    {
      hint: `install it (${PACKAGES[arch]}), or name its file: --firmware PATH`,
    },
  );
}

/**
 * Names the directories of descriptors: the user's own come first, then the
 * administrator's, then what QEMU brings.
 *
 * Needs `--allow-read` for QEMU.
 *
 * @param options The QEMU program, and the environment.
 * @returns The directories, which need not exist.
 */
export async function descriptorDirs(
  { program, env = processEnvironment }: FindUefiOptions,
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

/** A name in an earlier directory hides the same one in a later; then by name. */
async function descriptors(dirs: string[]): Promise<string[]> {
  const found = new Map<string, string>();
  for (const dir of dirs) {
    const entries = await Array.fromAsync(Deno.readDir(dir)).catch((error) => {
      if (error instanceof Deno.errors.NotCapable) throw error;
      return [];
    });
    for (const { name } of entries) {
      if (!name.endsWith(".json") || found.has(name)) continue;
      found.set(name, join(dir, name));
    }
  }
  return [...found.keys()].sort().map((name) => found.get(name)!);
}

/** What cannot be read is passed over; an empty file hides one, as specified. */
async function readJson(path: string): Promise<unknown> {
  try {
    if ((await Deno.stat(path)).size > MAX_DESCRIPTOR) return undefined;
    return JSON.parse(await Deno.readTextFile(path));
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) throw error;
    return undefined;
  }
}

/**
 * Reads a descriptor.
 *
 * @param json What its file holds.
 * @param arch The processor.
 * @returns The firmware; `undefined` where it is of another kind.
 */
export function readDescriptor(
  json: unknown,
  arch: ImageArch,
): FlashFirmware | undefined {
  const descriptor = fieldsOf(json);
  const { mapping, features } = descriptor;
  const targets = listOf(descriptor.targets).map(fieldsOf);
  const fits = listOf(descriptor["interface-types"]).includes("uefi") &&
    !UNWANTED.some((feature) => listOf(features).includes(feature)) &&
    targets.some(({ architecture, machines }) =>
      architecture === arch &&
      listOf(machines).some((it) => MACHINES[arch].test(String(it)))
    );
  const { device, mode = "split", ...files } = fieldsOf(mapping);
  if (!fits || device !== "flash" || mode !== "split") return undefined;
  const code = rawFile(files.executable);
  const variables = rawFile(files["nvram-template"]);
  return code && variables ? { code, variables } : undefined;
}

function rawFile(value: unknown): string | undefined {
  const { filename, format } = fieldsOf(value);
  return typeof filename === "string" && format === "raw"
    ? filename
    : undefined;
}

function fieldsOf(value: unknown): Record<string, unknown> {
  return typeof value === "object" && value !== null
    ? value as Record<string, unknown>
    : {};
}

function listOf(value: unknown): unknown[] {
  return Array.isArray(value) ? value : [];
}

function isFile(path: string): Promise<boolean> {
  return Deno.stat(path).then((stat) => stat.isFile, () => false);
}

/**
 * The files of a firmware.
 *
 * @param firmware The firmware, if it is not QEMU's own.
 * @returns Their paths.
 */
export function firmwareFiles(firmware: Firmware | undefined): string[] {
  if (!firmware) return [];
  return "rom" in firmware
    ? [firmware.rom]
    : [firmware.code, firmware.variables];
}
