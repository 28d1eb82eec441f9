/**
 * The QEMU program: its name, its version, what to do where it is missing.
 *
 * @module
 */
import { type Environment, processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import type { ImageArch } from "../image/boot_loader.ts";
import { run } from "../system/process.ts";

const NAME = /(qemu-system-)(?:x86_64|aarch64)(?=(?:\.exe)?$)/;

/**
 * Names the QEMU program.
 *
 * @param env Read for `TOOLSMITH_QEMU`: a program of that usual name has one for
 * the other processor beside it.
 * @param arch The guest's processor.
 * @returns Its name, found on PATH, or its path.
 */
export function qemuProgram(
  env: Environment = processEnvironment,
  arch: ImageArch = "x86_64",
): string {
  const usual = `qemu-system-${arch}`;
  const given = env.get("TOOLSMITH_QEMU");
  if (!given) return usual;
  if (NAME.test(given)) return given.replace(NAME, `$1${arch}`);
  // Of a name that says nothing it was always taken to be for x86_64.
  return arch === "x86_64" ? given : usual;
}

/**
 * Asks QEMU for its version.
 *
 * Needs `--allow-run` for the program.
 *
 * @param program The QEMU program.
 * @returns Such as `7.2.22`.
 * @throws {ToolsmithError} `qemu_not_found` when there is no such program, or
 * it is another.
 */
export async function qemuVersion(program: string): Promise<string> {
  const output = await run(program, {
    args: ["--version"],
    timeoutMs: 20_000,
  }).catch((cause) => {
    if (cause instanceof Deno.errors.NotCapable) throw cause;
    throw qemuNotFound(program, cause);
  });
  const version = output.stdout.match(/QEMU emulator version (\d[\w.]*)/)?.[1];
  if (output.code !== 0 || !version) throw qemuNotFound(program);
  return version;
}

/**
 * The error for a QEMU that is not there.
 *
 * @param program The QEMU program that was looked for.
 * @param cause What was caught.
 */
export function qemuNotFound(program: string, cause?: unknown): ToolsmithError {
  const suffix = /aarch64/.test(program) ? "arm" : "x86";
  return new ToolsmithError("qemu_not_found", `QEMU not found: ${program}`, {
    hint:
      `install it (Debian, Ubuntu: apt install qemu-system-${suffix}; macOS: brew install qemu), or set TOOLSMITH_QEMU to its path`,
    cause,
  });
}
