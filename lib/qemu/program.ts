/**
 * The QEMU program: its name, its version, and the error when it is missing.
 */
import { type Environment, processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import type { ImageArch } from "../image/boot_loader.ts";
import { runProcess } from "../system/process.ts";

const QEMU_NAME_PATTERN = /(qemu-system-)(?:x86_64|aarch64)(?=(?:\.exe)?$)/;

/**
 * Returns the name or path of the QEMU program for a processor. If `TOOLSMITH_QEMU`
 * ends in a standard name, the program for the other processor is expected beside it.
 */
export function qemuProgram(
  env: Environment = processEnvironment,
  arch: ImageArch = "x86_64",
): string {
  const given = env.get("TOOLSMITH_QEMU");
  // A program with another name is assumed to be for x86_64.
  const fits = arch === "x86_64" || QEMU_NAME_PATTERN.test(given ?? "");
  if (!given || !fits) return `qemu-system-${arch}`;
  return given.replace(QEMU_NAME_PATTERN, `$1${arch}`);
}

export async function queryQemuVersion(program: string): Promise<string> {
  const output = await runProcess(program, {
    args: ["--version"],
    timeoutMs: 20_000,
  }).catch((cause) => {
    if (cause instanceof Deno.errors.NotCapable) throw cause;
    throw qemuNotFoundError(program, cause);
  });
  const version = output.stdout.match(/QEMU emulator version (\d[\w.]*)/)?.[1];
  if (output.code !== 0 || !version) throw qemuNotFoundError(program);
  return version;
}

export function qemuNotFoundError(
  program: string,
  cause?: unknown,
): ToolsmithError {
  const suffix = /aarch64/.test(program) ? "arm" : "x86";
  return new ToolsmithError("qemu_not_found", `QEMU not found: ${program}`, {
    hint:
      `install QEMU (Debian, Ubuntu: apt install qemu-system-${suffix}; macOS: brew install qemu), or set TOOLSMITH_QEMU to the path of QEMU`,
    cause,
  });
}

export const STREAM_NETWORKING_HINT =
  "install QEMU 7.2 or newer, or use --network=host-loopback";

/** Whether this version can connect a guest to a network of Toolsmith. */
export function hasStreamNetworking(version: string): boolean {
  const [major, minor] = version.split(".").map(Number);
  return major > 7 || major === 7 && minor >= 2;
}
