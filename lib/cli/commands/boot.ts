/**
 * `toolsmith boot`: boots the image, with its console on this terminal, or
 * detached.
 */
import { loadManifest } from "../../manifest/manifest.ts";
import {
  bootDetachedWorkspaceVm,
  detachedVmRecordPath,
  hydrateAndPlanVm,
} from "../../run/workspace_vm.ts";
import { boot as bootImage } from "../../vm/boot.ts";
import type { BootOptions } from "../../vm/boot_options.ts";
import { defineSubcommand } from "../subcommand.ts";
import { defineFlags } from "../flag.ts";
import * as shared from "../shared_flags.ts";
import type { CliIo } from "../io.ts";

export const bootCommand = defineSubcommand({
  name: "boot",
  usage: "[flags] [-- QEMU arguments]",
  summary: "hydrate the image and boot it with its console on this terminal",
  details:
    "The workspace is mounted read-only at /mnt/work. Ctrl-C powers the guest down.\nThe guest's disk writes are discarded unless --overlay names a file.",
  example: "boot --detach --memory 2G",
  passedOn: ["FILE"],
  flags: {
    ...defineFlags("VM", {
      detach:
        "--detach  return when the guest is ready; run uses this VM, stop ends it",
    }),
    ...shared.VM,
    ...shared.OUTPUT,
  },
  passThrough: "dashes",
  async run(given, io, { rest: qemuArgs }) {
    const { env, signal, onEvent } = io;
    const manifest = await loadManifest(given.manifest, { env });
    const vmOptions = shared.workspaceVmOptions(given);
    const options = { ...vmOptions, qemuArgs, env, signal, onEvent };
    if (given.detach) {
      const { pid } = await bootDetachedWorkspaceVm(manifest, options);
      const record = detachedVmRecordPath(manifest.workspace);
      return io.printResult({ pid, machine: record }, record);
    }
    await bootWithConsole(await hydrateAndPlanVm(manifest, options), io);
    io.printResult({ outcome: "stopped" }, "");
  },
});

/** Attaches the terminal to the console until the guest ends; Ctrl-C powers it down. */
async function bootWithConsole(plan: BootOptions, io: CliIo) {
  using terminal = io.attachToGuestConsole();
  await using vm = await bootImage({
    ...plan,
    agentOptional: true,
    console: terminal,
  });
  const stop = () => vm.stop({ graceMs: 10_000 });
  io.signal.addEventListener("abort", stop, { once: true });
  if (io.signal.aborted) await stop();
  await vm.ended;
  io.signal.removeEventListener("abort", stop);
}
