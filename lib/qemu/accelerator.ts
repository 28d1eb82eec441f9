/**
 * Which accelerators are worth a try on this host, the best first.
 *
 * @module
 */
import { join } from "../path.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import type { ImageArch } from "../image/boot_loader.ts";
import { fileVersion, replaceFile } from "../system/files.ts";
import { ownUid, whyUntrusted } from "../system/ownership.ts";
import { bootTime } from "../system/part_record.ts";
import { doesNotWork, prove } from "./_proof.ts";
import type { Accelerator } from "./args.ts";
import { findProgram } from "../system/find_program.ts";

export { type Accelerator, doesNotWork };

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
  /** Read for `TMPDIR` and `PATH`. @default {processEnvironment} */
  env?: Environment;
  /** Disregard what was found out before. @default {false} */
  afresh?: boolean;
  /** Gets why an accelerator is not to be used, when that is found out. */
  onRejected?: (why: string) => void;
  /** Ends the proof when aborted. */
  signal?: AbortSignal;
}

const ACCELERATORS: readonly Accelerator[] = ["kvm", "hvf", "tcg"];
/** Grows when earlier verdicts are not to be believed any more. */
const LAYOUT = 1;
const BOOT_ID = "/proc/sys/kernel/random/boot_id";
const TEN_MINUTES = 600_000;

/**
 * Names the accelerators to try. TCG, which emulates, works everywhere and is
 * the last; for another processor than the host's there is nothing else. What
 * else the host offers for x86_64 has to prove itself, once for each boot of the
 * host and each version of QEMU.
 *
 * Needs `--allow-run=sh`, `--allow-read` and `--allow-write` for the temporary
 * directory, and all permissions to see that there is no `/dev/kvm`.
 *
 * @param program The QEMU program.
 * @param options The host.
 * @returns At least `tcg`.
 * @throws {ToolsmithError} `qemu_not_found`.
 * @throws The signal's reason when it is aborted.
 */
export async function accelerators(
  program: string,
  options: AcceleratorsOptions = {},
): Promise<Accelerator[]> {
  const { guest = "x86_64", afresh, env, signal, onRejected } = options;
  const fast = await offered({ ...options, guest });
  if (!fast) return ["tcg"];
  let why = afresh ? undefined : await readVerdict(fast, program, env);
  // No emulated KVM is known for arm64.
  if (why === undefined && guest === "x86_64") {
    why = await prove(fast, { program, env, signal });
    if (why !== undefined) await keepVerdict(fast, program, { why, env });
    if (why) onRejected?.(why);
  }
  return why ? ["tcg"] : [fast, "tcg"];
}

async function offered(
  options: AcceleratorsOptions,
): Promise<"kvm" | "hvf" | undefined> {
  const { os = Deno.build.os, arch = Deno.build.arch, guest, kvm } = options;
  if (arch !== guest || os === "windows") return undefined;
  if (os === "darwin") return "hvf";
  try {
    await Deno.stat(kvm ?? "/dev/kvm");
    return "kvm";
  } catch (error) {
    return error instanceof Deno.errors.NotCapable ? "kvm" : undefined;
  }
}

/**
 * Remembers until the host boots again why an accelerator is not to be used, `""`
 * where it is. What cannot be written is not remembered.
 */
export async function keepVerdict(
  accelerator: Accelerator,
  program: string,
  { why, env }: { why: string; env?: Environment },
): Promise<void> {
  const key = await keyOf(program, env);
  // Permissions are soon given.
  if (!key || /permission/i.test(why)) return;
  const path = verdictPath(accelerator, program, env);
  await replaceFile(path, `${key}\n${why}`, { mode: 0o600 }).catch(() => {});
}

async function readVerdict(
  accelerator: Accelerator,
  program: string,
  env?: Environment,
): Promise<string | undefined> {
  const path = verdictPath(accelerator, program, env);
  try {
    // The directory is everybody's: what somebody else wrote says nothing.
    if (await whyUntrusted(path)) return undefined;
    const [key, why] = (await Deno.readTextFile(path)).split("\n");
    return key === await keyOf(program, env) ? why : undefined;
  } catch {
    return undefined;
  }
}

/** All that has to match; `undefined` where it cannot be known. */
async function keyOf(
  program: string,
  env?: Environment,
): Promise<string | undefined> {
  const boot = await bootId();
  const found = await findProgram(program, env);
  if (!boot || !found) return undefined;
  const qemu = await fileVersion(await Deno.realPath(found));
  return JSON.stringify({ layout: LAYOUT, boot, qemu });
}

async function bootId(): Promise<string | undefined> {
  try {
    return (await Deno.readTextFile(BOOT_ID)).trim();
  } catch {
    // Not Linux, or not all permissions.
    const time = bootTime();
    return time === undefined ? time : `${Math.round(time / TEN_MINUTES)}`;
  }
}

function verdictPath(
  accelerator: Accelerator,
  program: string,
  env = processEnvironment,
): string {
  const dir = env.get("TMPDIR") ?? "/tmp";
  const user = ownUid() ?? "user";
  const name = program.replace(/\W+/g, "_").slice(-80);
  return join(dir, `toolsmith-${user}-verdict-${accelerator}-${name}`);
}

/** Reads `TOOLSMITH_ACCEL`; throws `usage`. */
export function wantedAccelerator(
  env: Environment = processEnvironment,
): Accelerator | undefined {
  return parseAccelerator(env.get("TOOLSMITH_ACCEL"), "TOOLSMITH_ACCEL=");
}

/** Reads the name of an accelerator, which stood behind a flag; throws `usage`. */
export function parseAccelerator(
  text: string | undefined,
  flag: string,
): Accelerator | undefined {
  const found = ACCELERATORS.find((name) => name === text);
  if (found || !text) return found;
  throw new ToolsmithError("usage", `Not an accelerator: ${flag}${text}`, {
    hint: `use ${flag}kvm, ${flag}hvf or ${flag}tcg`,
  });
}
