/**
 * Which accelerators are worth a try on this host, the best first.
 *
 * @module
 */
import { join } from "../path.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import { replaceFile } from "../system/files.ts";
import { ownUid, whyUntrusted } from "../system/ownership.ts";
import type { ImageArch } from "../image/boot_loader.ts";
import { run } from "../system/process.ts";
import { oneLine } from "../system/text.ts";
import { qemuNotFound } from "./program.ts";

/** How QEMU runs the guest's instructions. */
export type Accelerator = "kvm" | "hvf" | "tcg";

/** What {@linkcode accelerators} looks at. */
export interface AcceleratorsOptions {
  /** The host's system. @default {Deno.build.os} */
  os?: typeof Deno.build.os;
  /** The host's processor. @default {Deno.build.arch} */
  arch?: typeof Deno.build.arch;
  /** The guest's processor. @default {"x86_64"} */
  guest?: ImageArch;
  /** The device that KVM is used by. @default {"/dev/kvm"} */
  kvm?: string;
  /** Read for `TMPDIR`. @default {processEnvironment} */
  env?: Environment;
}

/** After this time a broken accelerator is given another chance. */
const FORGET_MS = 24 * 3600 * 1000;
/** Emulation on a busy host takes a second. */
const PROBE_MS = 30_000;

/**
 * Names the accelerators to try. TCG, which emulates, works everywhere and is
 * the last; for another processor than the host's there is nothing else.
 *
 * Needs `--allow-read` for `/dev/kvm` and the temporary directory.
 *
 * @param program The QEMU program.
 * @param options The host.
 * @returns At least `tcg`.
 */
export async function accelerators(
  program: string,
  options: AcceleratorsOptions = {},
): Promise<Accelerator[]> {
  const { os = Deno.build.os, arch = Deno.build.arch, kvm = "/dev/kvm" } =
    options;
  if (arch !== (options.guest ?? "x86_64")) return ["tcg"];
  const fast = os === "darwin"
    ? "hvf"
    : os === "linux" && await Deno.stat(kvm).then(() => true, () => false)
    ? "kvm"
    : undefined;
  if (!fast || await isBroken(fast, program, options)) return ["tcg"];
  return [fast, "tcg"];
}

/**
 * Notes that an accelerator is offered here and does not work, so that the next
 * start within a day does not pay for finding that out. A virtual machine
 * without nested virtualisation is where it happens.
 *
 * Needs `--allow-write` for the temporary directory, else nothing is noted.
 *
 * @param accelerator Which one.
 * @param program The QEMU program.
 * @param options The environment.
 */
export async function rememberBroken(
  accelerator: Accelerator,
  program: string,
  options: AcceleratorsOptions = {},
): Promise<void> {
  const note = notePath(accelerator, program, options);
  await replaceFile(note, program, { mode: 0o600 }).catch(() => {});
}

/**
 * Tries an accelerator: starts QEMU with it and without a disk, and waits until
 * the firmware has found nothing to boot. To be offered is not to work: virtual
 * machines offer a KVM that fails at its first instructions.
 *
 * Needs `--allow-run` for the program.
 *
 * @param program The QEMU program.
 * @param accelerator Which one.
 * @param options The environment. What does not work is noted there, as by
 * {@linkcode rememberBroken}, and what is noted is not tried again.
 * @returns Why it does not work; `undefined` where it does.
 * @throws {ToolsmithError} `qemu_not_found`.
 *
 * @example
 * ```ts no-assert ignore
 * const why = await tryAccelerator("qemu-system-x86_64", "kvm");
 * if (why) console.error(`KVM does not work here: ${why}`);
 * ```
 */
export async function tryAccelerator(
  program: string,
  accelerator: Accelerator,
  options: AcceleratorsOptions = {},
): Promise<string | undefined> {
  if (await isBroken(accelerator, program, options)) {
    return "it did not work within the last day";
  }
  const { code, stderr } = await run(program, {
    args: probeArgs(accelerator),
    timeoutMs: PROBE_MS,
  }).catch((error) => {
    if (error instanceof Deno.errors.NotFound) throw qemuNotFound(program);
    if (!(error instanceof ToolsmithError)) throw error;
    return { code: 1, stderr: error.message };
  });
  if (code === 0) return undefined;
  const why = oneLine(stderr) || `QEMU ended with status ${code}`;
  // Permissions are soon given.
  if (!/permission/i.test(stderr)) {
    await rememberBroken(accelerator, program, options);
  }
  return why;
}

/** A machine that restarts when there is nothing to boot, which ends QEMU. */
function probeArgs(accelerator: Accelerator): string[] {
  return [
    ...["-no-user-config", "-nodefaults", "-no-reboot"],
    ...["-machine", `q35,accel=${accelerator},graphics=off`],
    ...["-cpu", accelerator === "tcg" ? "max" : "host", "-m", "64M"],
    ...["-display", "none", "-nic", "none", "-boot", "reboot-timeout=1"],
  ];
}

async function isBroken(
  accelerator: Accelerator,
  program: string,
  options: AcceleratorsOptions,
): Promise<boolean> {
  const note = notePath(accelerator, program, options);
  try {
    const stat = await Deno.lstat(note);
    // The directory is everybody's: a note by somebody else says nothing.
    if (!stat.isFile || await whyUntrusted(note)) return false;
    const age = Date.now() - (stat.mtime?.getTime() ?? 0);
    return age < FORGET_MS && await Deno.readTextFile(note) === program;
  } catch {
    return false;
  }
}

function notePath(
  accelerator: Accelerator,
  program: string,
  options: AcceleratorsOptions,
) {
  const { env = processEnvironment } = options;
  const dir = env.get("TMPDIR") ?? "/tmp";
  const user = ownUid() ?? "user";
  const name = program.replace(/\W+/g, "_").slice(-80);
  return join(dir, `toolsmith-${user}-no-${accelerator}-${name}`);
}
