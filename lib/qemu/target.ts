/** What QEMU has to emulate for an image. */
import { type Environment, processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import {
  type BootLoader,
  findBootLoader,
  type ImageArch,
} from "../image/boot_loader.ts";
import { resolve } from "../path.ts";
import { findUefiFirmware, type Firmware } from "./firmware.ts";
import { qemuProgram } from "./program.ts";

export type { BootLoader, ImageArch };

export interface DetectTargetOptions {
  arch?: ImageArch;
  /** `bios`, `uefi` or the path of a firmware file. */
  firmware?: string;
  loader?: BootLoader;
  /** Source of `TOOLSMITH_QEMU`. @default {processEnvironment} */
  env?: Environment;
}

/**
 * Detects the processor, QEMU program and firmware for an image, reading its boot loader
 * unless the options say all.
 */
export async function detectTarget(
  image: string,
  options: DetectTargetOptions = {},
) {
  const { env = processEnvironment } = options;
  const known = options.arch !== undefined && options.firmware !== undefined;
  const loader = options.loader ?? (known ? {} : await findBootLoader(image));
  // A UEFI disk may boot on several processors: the host's is the fastest.
  const usual = loader.firmware === "uefi" ? Deno.build.arch : "x86_64";
  const arch = options.arch ?? loader.arch ?? usual;
  const program = qemuProgram(env, arch);
  // arm64 boots with UEFI only.
  const detected = arch === "aarch64" ? "uefi" : loader.firmware ?? "bios";
  const wanted = options.firmware ?? detected;
  const firmware = wanted === "uefi"
    ? await findUefiFirmware(arch, { program, env })
    : await romFirmware(wanted, arch);
  return { arch, program, firmware };
}

/** Checks a firmware file; `undefined` for QEMU's own BIOS. */
async function romFirmware(
  wanted: string,
  arch: ImageArch,
): Promise<Firmware | undefined> {
  if (wanted === "bios") {
    if (arch === "x86_64") return undefined;
    throw new ToolsmithError("usage", `There is no BIOS for ${arch}`, {
      hint: "omit --firmware, or pass --firmware uefi",
    });
  }
  const rom = resolve(wanted);
  const exists = await Deno.stat(rom).then(({ isFile }) => isFile, () => false);
  if (exists) return { rom };
  const message = `Firmware file not found: ${rom}`;
  const hint =
    "pass --firmware bios, --firmware uefi or the path of a firmware file";
  throw new ToolsmithError("firmware_not_found", message, { hint });
}
