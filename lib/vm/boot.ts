/** Boots an image in a VM. */
import {
  acceleratorFromEnv,
  acceleratorVerdict,
  describeAcceleratorFailure,
  findFastestAccelerator,
} from "../qemu/accelerator.ts";
import { assertSafeExports, makeExportDirs, resolveShares } from "./shares.ts";
import { prepareDisk } from "../qemu/disk.ts";
import { type BootOptions, memoryAndCpus } from "./boot_options.ts";
import { startVm } from "./_start_vm.ts";
import { processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import { createEmitter, type Emit } from "../events.ts";
import { seedDiskImage } from "../guest/seed_disk.ts";
import { AcceleratorError } from "../qemu/errors.ts";
import type { QemuPlan } from "../qemu/qemu_process.ts";
import { firmwarePaths } from "../qemu/firmware.ts";
import { detectTarget } from "../qemu/target.ts";
import type { BootedVm } from "./vm.ts";

/**
 * Boots an image with QEMU and waits until the guest is ready for commands. The VM
 * ends with this process, however that ends.
 *
 * Needs `--allow-run=sh`, and `--allow-read`, `--allow-write` and
 * `--allow-net=unix:…` for the image, the directories and the temporary directory.
 * With exports, `--allow-read` also for protected paths, such as programs.
 *
 * @param options The image and the VM's configuration.
 * @returns The running VM.
 * @throws {ToolsmithError} `qemu_not_found`, `firmware_not_found`, `boot_failed`, `guest_not_ready`,
 * `guest_panicked`, `guest_failed`, `image_invalid`, `image_unsafe`, `usage`,
 * `file_unreadable` for a directory that cannot be shared.
 * @throws The signal's reason when it is aborted.
 *
 * @example Run a command in an image
 * ```ts no-run
 * import { boot } from "@fountain/toolsmith";
 *
 * await using vm = await boot({ image: "image.qcow2", workspace: "." });
 * const { code, stdout } = await vm.exec("uname", { args: ["-a"] });
 * console.log(code, stdout);
 * ```
 */
export async function boot(options: BootOptions): Promise<BootedVm> {
  const { env = processEnvironment, signal, console } = options;
  signal?.throwIfAborted();
  if (console?.input?.locked) {
    const message = "The console input stream is locked by another reader";
    const hint = "pass an unlocked ReadableStream";
    throw new ToolsmithError("usage", message, { hint });
  }
  const shares = await resolveShares(options.workspace, options.exports ?? []);
  const target = await detectTarget(options.image, options);
  const own = firmwarePaths(target.firmware);
  const hostOnly = [...options.hostOnly ?? [], ...own];
  await assertSafeExports(shares, { ...options, hostOnly });
  const disk = await prepareDisk(options.image, options.overlay);
  const emit = createEmitter(options.onEvent);
  for (const path of await makeExportDirs(shares)) {
    emit({ type: "export_created", path });
  }
  const plan = {
    seed: seedDiskImage(),
    ...disk,
    ...memoryAndCpus(options),
    ...target,
    ...{ shares, env, signal },
    extra: options.qemuArgs ?? [],
    onConsole: console?.output,
  };
  return await bootOrFallBack(plan, options, emit);
}

async function bootOrFallBack(
  plan: Omit<QemuPlan, "accelerator">,
  options: BootOptions,
  emit: Emit,
) {
  const { program, arch: guest } = plan;
  const { env, signal } = options;
  const wanted = options.accelerator ?? acceleratorFromEnv(env);
  const onRejected = (why: string) =>
    emit({ type: "warning", message: `${why}; falling back to emulation` });
  const accelerator = wanted ||
    await findFastestAccelerator(program, { env, guest, signal, onRejected });
  try {
    return await startVm({ ...plan, accelerator }, options, emit);
  } catch (error) {
    if (!(error instanceof AcceleratorError)) throw error;
    const [reason] = error.message.split("; ");
    const why = describeAcceleratorFailure(accelerator, reason);
    if (wanted) {
      throw new ToolsmithError("boot_failed", why, {
        hint: "omit --accel and TOOLSMITH_ACCEL to let Toolsmith choose",
      });
    }
    onRejected(why);
    await acceleratorVerdict(accelerator, program, env).write(why);
    return await startVm({ ...plan, accelerator: "tcg" }, options, emit);
  }
}
