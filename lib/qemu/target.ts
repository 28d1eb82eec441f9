/**
 * What kind of machine an image needs: its processor, the QEMU program for that,
 * and its firmware.
 *
 * @module
 */
import { type Environment, processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import {
  type BootLoader,
  findBootLoader,
  type ImageArch,
} from "../image/boot_loader.ts";
import { resolve } from "../path.ts";
import { findUefi, type Firmware } from "./firmware.ts";
import { qemuProgram } from "./program.ts";

export type { BootLoader, ImageArch };

/** What the caller knows, or chooses. */
export interface TargetOptions {
  /** The processor. @default {undefined} what the image says */
  arch?: ImageArch;
  /** `bios`, `uefi`, or the path of a firmware. @default {undefined} what the image says */
  firmware?: string;
  /** What the image boots, where that is known. @default {undefined} it is read */
  loader?: BootLoader;
  /** Read for `TOOLSMITH_QEMU`. @default {processEnvironment} */
  env?: Environment;
}

/** The kind of a machine. */
export interface Target {
  /** Its processor. */
  arch: ImageArch;
  /** The QEMU program. */
  program: string;
  /** Its firmware; `undefined` for QEMU's own BIOS. */
  firmware: Firmware | undefined;
}

/**
 * Finds out what kind of machine an image needs.
 *
 * Needs `--allow-read` for the image and the firmware.
 *
 * @param image The image's path.
 * @param options What is known already.
 * @returns The kind of machine.
 * @throws {ToolsmithError} `firmware_not_found`, `image_invalid`, `image_unsafe`,
 * `usage` for a BIOS on another processor than x86_64.
 */
export async function planTarget(
  image: string,
  options: TargetOptions = {},
): Promise<Target> {
  const { env = processEnvironment } = options;
  const known = options.arch !== undefined && options.firmware !== undefined;
  const loader = options.loader ?? (known ? {} : await findBootLoader(image));
  const arch = options.arch ?? loader.arch ?? archOf(loader);
  const program = qemuProgram(env, arch);
  // Nothing but UEFI starts a boot loader on arm64.
  const usual = arch === "aarch64" ? "uefi" : loader.firmware ?? "bios";
  const wanted = options.firmware ?? usual;
  const find = { program, env };
  return { arch, program, firmware: await findFirmware(wanted, arch, find) };
}

/** A disk for several processors is best run on this host's. */
function archOf({ firmware }: BootLoader): ImageArch {
  return firmware === "uefi" ? Deno.build.arch : "x86_64";
}

async function findFirmware(
  wanted: string,
  arch: ImageArch,
  find: { program: string; env: Environment },
): Promise<Firmware | undefined> {
  if (wanted === "uefi") return await findUefi(arch, find);
  if (wanted === "bios") {
    if (arch === "x86_64") return undefined;
    throw new ToolsmithError("usage", `There is no BIOS for ${arch}`, {
      hint: "leave the choice to Toolsmith, or use --firmware uefi",
    });
  }
  const rom = resolve(wanted);
  if (await Deno.stat(rom).then(({ isFile }) => isFile, () => false)) {
    return { rom };
  }
  throw new ToolsmithError("firmware_not_found", `No such firmware: ${rom}`, {
    hint: "--firmware takes bios, uefi, or the path of a firmware's file",
  });
}
