/**
 * Which accelerators are worth a try on this host, the best first.
 *
 * @module
 */
import { join } from "@std/path";
import { type Environment, processEnvironment } from "../environment.ts";

/** How QEMU runs the guest's instructions. */
export type Accelerator = "kvm" | "hvf" | "tcg";

/** What {@linkcode accelerators} looks at. */
export interface AcceleratorsOptions {
  /** The host's system. @default {Deno.build.os} */
  os?: typeof Deno.build.os;
  /** The host's processor. @default {Deno.build.arch} */
  arch?: typeof Deno.build.arch;
  /** The device that KVM is used by. @default {"/dev/kvm"} */
  kvm?: string;
  /** Read for `TMPDIR`. @default {processEnvironment} */
  env?: Environment;
}

/** After this time a broken accelerator is given another chance. */
const FORGET_MS = 24 * 3600 * 1000;

/**
 * Names the accelerators to try. TCG, which emulates, works everywhere and is
 * the last. The guests are x86_64, so other hosts have nothing else.
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
  if (arch !== "x86_64") return ["tcg"];
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
  await Deno.remove(note).catch(() => {});
  await Deno.writeTextFile(note, program, { createNew: true, mode: 0o600 })
    .catch(() => {});
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
    if (!stat.isFile || stat.uid !== uid()) return false;
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
  const user = uid() ?? "user";
  const name = program.replace(/\W+/g, "_").slice(-80);
  return join(dir, `toolsmith-${user}-no-${accelerator}-${name}`);
}

function uid(): number | null {
  try {
    return Deno.uid();
  } catch {
    return null;
  }
}
