/**
 * `toolsmith boot`: boots the image, with its console on this terminal, or
 * detached.
 *
 * @module
 */
import { loadManifest } from "../../manifest/manifest.ts";
import {
  detachedVmPath,
  detachWorkspaceVm,
  planWorkspaceVm,
  type WorkspaceVmOptions,
} from "../../run/workspace_vm.ts";
import { boot as bootImage } from "../../vm/boot.ts";
import type { BootOptions } from "../../vm/options.ts";
import type { Command } from "../command.ts";
import {
  HYDRATE,
  MACHINE,
  type OutputFlags,
  readMachine,
  readOutput,
} from "../flags.ts";
import type { Io } from "../io.ts";

interface BootRequest {
  manifest?: string;
  vm: WorkspaceVmOptions;
  detach: boolean;
  output: OutputFlags;
}

/** Boots the image, with its console on this terminal, or detached. */
export const boot: Command<BootRequest> = {
  name: "boot",
  usage: "[flags] [-- QEMU arguments]",
  summary: "hydrate, and boot the image with its console on this terminal",
  details:
    "The workspace is mounted read-only at /mnt/work. Ctrl-C powers the guest down.\nNothing that it writes is kept, unless --overlay says where.",
  example: "boot --detach --memory 2G",
  takes: ["FILE"],
  flags: [
    {
      name: "detach",
      group: "machine",
      help: "return when the guest is ready; run uses it, stop ends it",
    },
    ...MACHINE,
    ...HYDRATE,
  ],
  positionals: [0, 0],
  rest: "dashes",
  parse: (given) => ({
    manifest: given.text("manifest"),
    vm: { ...readMachine(given), qemuArgs: given.rest },
    detach: given.has("detach"),
    output: readOutput(given),
  }),
  async run({ manifest: path, vm, detach, output }, io) {
    const { onEvent, close } = io.view(output);
    const { signal, env } = io;
    try {
      const manifest = await loadManifest(path);
      const options = { ...vm, signal, env, onEvent };
      if (detach) {
        const { pid } = await detachWorkspaceVm(manifest, options);
        const record = detachedVmPath(manifest.root);
        io.result(output.json, { pid, machine: record }, record);
        return 0;
      }
      const plan = await planWorkspaceVm(manifest, options);
      close();
      await onConsole(plan, output.json, io);
      io.result(output.json, { outcome: "stopped" }, "");
      return 0;
    } finally {
      close();
    }
  },
};

/** Gives the terminal to the guest until it ends, or Ctrl-C powers it down. */
async function onConsole(plan: BootOptions, json: boolean, io: Io) {
  using terminal = io.terminal(json);
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
