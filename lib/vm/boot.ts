/**
 * Boots an image.
 *
 * @module
 */
import {
  accelerators,
  doesNotWork,
  keepVerdict,
  wantedAccelerator,
} from "../qemu/accelerator.ts";
import { assertSafeExports, makeExports, planShares } from "./shares.ts";
import { prepareDisk } from "../qemu/disk.ts";
import { type BootOptions, sizes } from "./options.ts";
import { startVm } from "./_start.ts";
import { processEnvironment } from "../environment.ts";
import { ToolsmithError } from "../errors.ts";
import { type Emit, emitter } from "../events.ts";
import { AcceleratorError } from "../qemu/errors.ts";
import type { MachinePlan } from "../qemu/machine.ts";
import { firmwareFiles } from "../qemu/firmware.ts";
import { planTarget } from "../qemu/target.ts";
import type { BootedVm } from "./vm.ts";

/**
 * Boots an image with QEMU and waits until the guest is ready for commands. The
 * machine ends with this process, whatever ends it.
 *
 * Needs `--allow-run=sh`, and `--allow-read`, `--allow-write` and
 * `--allow-net=unix:…` for the image, the directories and the temporary directory.
 * With exports, `--allow-read` also for what these must not hold, such as programs.
 *
 * @param options The image, and what the machine is like.
 * @returns The machine.
 * @throws {ToolsmithError} `qemu_not_found`, `firmware_not_found`, `boot_failed`, `guest_not_ready`,
 * `guest_panicked`, `guest_failed`, `image_invalid`, `image_unsafe`, `usage`,
 * `file_unreadable` for a directory that the guest cannot have.
 * @throws The signal's reason when it is aborted.
 *
 * @example Run a command in an image
 * ```ts no-assert ignore
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
    throw new ToolsmithError("usage", "The console's input has a reader", {
      hint: "pass a stream that nobody else reads",
    });
  }
  const shares = await planShares(options.workspace, options.exports ?? []);
  const target = await planTarget(options.image, options);
  const own = firmwareFiles(target.firmware);
  const hostOnly = [...options.hostOnly ?? [], ...own];
  await assertSafeExports(shares, { ...options, hostOnly });
  const disk = await prepareDisk(options.image, options.overlay);
  const emit = emitter(options.onEvent);
  for (const path of await makeExports(shares)) {
    emit({ type: "export_created", path });
  }
  const machine = {
    seed: true,
    ...disk,
    ...sizes(options),
    ...target,
    ...{ shares, env, signal },
    extra: options.qemuArgs ?? [],
    onConsole: console?.output,
  };
  return await bootWith(machine, options, emit);
}

type Plan = Omit<MachinePlan, "accelerator">;

/** Tries one accelerator after the other. */
async function bootWith(plan: Plan, options: BootOptions, emit: Emit) {
  const { program, arch: guest } = plan;
  const { env, signal, accelerator: wanted = wantedAccelerator(env) } = options;
  const onRejected = (why: string) =>
    emit({ type: "warning", message: `${why}; emulating instead` });
  const choices = wanted
    ? [wanted]
    : await accelerators(program, { env, guest, signal, onRejected });
  for (const accelerator of choices) {
    try {
      return await startVm({ ...plan, accelerator }, options, emit);
    } catch (error) {
      if (!(error instanceof AcceleratorError)) throw error;
      const why = doesNotWork(accelerator, error.message.split("; ")[0]);
      if (wanted) {
        throw new ToolsmithError("boot_failed", why, {
          hint: "leave the choice of the accelerator to Toolsmith",
        });
      }
      onRejected(why);
      await keepVerdict(accelerator, program, { why, env });
    }
  }
  throw new ToolsmithError("boot_failed", "No accelerator works here");
}
