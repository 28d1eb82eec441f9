/**
 * Finds the fastest accelerator (KVM, HVF, TCG) that works on this host.
 */
import { join } from "../path.ts";
import { type Environment, processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import type { ImageArch } from "../image/boot_loader.ts";
import { readSizeAndMtime, replaceFileAtomically } from "../system/files.ts";
import { currentUid, untrustedReason } from "../system/ownership.ts";
import { hostBootTimeMs } from "../system/part_record.ts";
import { findProgram } from "../system/find_program.ts";
import {
  describeAcceleratorFailure,
  probeAccelerator,
} from "./_accelerator_probe.ts";
import type { Accelerator } from "./args.ts";
import { vmDirParents } from "./vm_dir.ts";

export { type Accelerator, describeAcceleratorFailure };

export interface FindAcceleratorsOptions {
  hostOs?: typeof Deno.build.os;
  hostArch?: typeof Deno.build.arch;
  /** Processor of the guest. @default {"x86_64"} */
  guest?: ImageArch;
  kvm?: string;
  /** Read for `TMPDIR` and `PATH`. @default {processEnvironment} */
  env?: Environment;
  /** Ignore the cached verdict. @default {false} */
  reprobe?: boolean;
  onRejected?: (why: string) => void;
  signal?: AbortSignal;
}

export const ACCELERATORS: readonly Accelerator[] = ["kvm", "hvf", "tcg"];
const HOST_BOOT_ID_PATH = "/proc/sys/kernel/random/boot_id";
const TEN_MINUTES_MS = 600_000;

/**
 * Returns the fastest accelerator that works. TCG (emulation) works everywhere; it is the
 * only one for a processor other than the host's. KVM and HVF are probed for x86_64
 * guests, once per boot of the host and version of QEMU. To detect that `/dev/kvm` is
 * missing, this needs all permissions.
 */
export async function findFastestAccelerator(
  program: string,
  options: FindAcceleratorsOptions = {},
): Promise<Accelerator> {
  const { guest = "x86_64", reprobe, env, signal, onRejected } = options;
  const fast = await hostAccelerator(guest, options);
  if (!fast) return "tcg";
  const verdict = acceleratorVerdict(fast, program, env);
  let why = reprobe ? undefined : await verdict.read();
  // Emulated KVM is not known on arm64.
  if (why === undefined && guest === "x86_64") {
    why = await probeAccelerator(fast, { program, env, signal });
    if (why !== undefined) await verdict.write(why);
    if (why) onRejected?.(why);
  }
  return why ? "tcg" : fast;
}

async function hostAccelerator(
  guest: ImageArch,
  { hostOs = Deno.build.os, hostArch = Deno.build.arch, kvm = "/dev/kvm" }:
    FindAcceleratorsOptions,
): Promise<"kvm" | "hvf" | undefined> {
  if (hostArch !== guest || hostOs === "windows") return undefined;
  if (hostOs === "darwin") return "hvf";
  const isHidden = (error: unknown) => error instanceof Deno.errors.NotCapable;
  const found = await Deno.stat(kvm).then(() => true, isHidden);
  return found ? "kvm" : undefined;
}

/**
 * The cached reason why an accelerator is unusable (`""`: usable). It is valid until
 * the host reboots or QEMU is replaced.
 */
export function acceleratorVerdict(
  accelerator: Accelerator,
  program: string,
  env: Environment = processEnvironment,
) {
  const user = currentUid() ?? "user";
  const name = program.replace(/\W+/g, "_").slice(-80);
  const file = `toolsmith-${user}-verdict-${accelerator}-${name}`;
  const path = join(vmDirParents(env)[0], file);

  /** Identifies host boot and QEMU version; `undefined` if unknown. */
  async function currentKey(): Promise<string | undefined> {
    // Not on macOS, and not without permissions.
    const boot = await Deno.readTextFile(HOST_BOOT_ID_PATH)
      .catch(() => Math.round((hostBootTimeMs() ?? 0) / TEN_MINUTES_MS));
    const found = await findProgram(program, env);
    if (!boot || !found) return undefined;
    const qemu = await readSizeAndMtime(await Deno.realPath(found));
    return JSON.stringify({ boot, qemu });
  }

  return {
    async read(): Promise<string | undefined> {
      try {
        // Anybody can write to the temporary directory.
        if (await untrustedReason(path)) return undefined;
        const [key, why] = (await Deno.readTextFile(path)).split("\n");
        return key === await currentKey() ? why : undefined;
      } catch {
        return undefined;
      }
    },
    /** Ignores write errors. */
    async write(why: string): Promise<void> {
      const key = await currentKey();
      // The user can fix permissions at any time.
      if (!key || /permission/i.test(why)) return;
      await replaceFileAtomically(path, `${key}\n${why}`, { mode: 0o600 })
        .catch(() => {});
    },
  };
}

/** Reads `TOOLSMITH_ACCEL`; throws `usage` for an unknown name. */
export function acceleratorFromEnv(
  env: Environment = processEnvironment,
): Accelerator | undefined {
  return parseAccelerator(env.get("TOOLSMITH_ACCEL"), "TOOLSMITH_ACCEL=");
}

/** Parses an accelerator's name; the error quotes `flag`. Throws `usage`. */
export function parseAccelerator(
  text: string | undefined,
  flag: string,
): Accelerator | undefined {
  const found = ACCELERATORS.find((name) => name === text);
  if (found || !text) return found;
  throw new ToolsmithError("usage", `Unknown accelerator: ${flag}${text}`, {
    hint: `use ${flag}kvm, ${flag}hvf or ${flag}tcg`,
  });
}
