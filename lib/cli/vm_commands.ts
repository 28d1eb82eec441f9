/**
 * The commands about machines: boot, run, stop.
 *
 * @module
 */
import { runOnHost } from "../run/host.ts";
import {
  detachedVmPath,
  detachWorkspaceVm,
  planWorkspaceVm,
  runInVm,
  type WorkspaceVmOptions,
} from "../run/workspace_vm.ts";
import { boot } from "../vm/boot.ts";
import { stopDetachedVm } from "../vm/detached.ts";
import type { BootOptions } from "../vm/options.ts";
import type { OnEvent } from "../events.ts";
import {
  loadManifest,
  locateManifest,
  workspaceRoot,
} from "../manifest/manifest.ts";
import { assertToolAllowed } from "../manifest/tools.ts";
import type { CommandOf } from "./parse.ts";
import { usage } from "./flag_values.ts";
import type { Io } from "./io.ts";

/** Boots the image, with its console on this terminal, or detached. */
export async function bootCommand(
  command: CommandOf<"boot">,
  io: Io,
): Promise<number> {
  const { output, qemuArgs } = command;
  const { onEvent, close } = io.view(output);
  try {
    const manifest = await loadManifest(command.hydrate.manifest);
    const options = {
      ...machineOptions(command, io, onEvent),
      qemuArgs,
      signal: io.signal,
    };
    if (command.detach) {
      const { pid } = await detachWorkspaceVm(manifest, options);
      const path = detachedVmPath(manifest.root);
      io.result(output.json, { pid, machine: path }, path);
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
}

/** Runs a command in the image, and ends with its exit status. */
export async function runCommand(
  command: CommandOf<"run">,
  io: Io,
): Promise<number> {
  const { output, cwd, env, args, timeoutMs } = command;
  const { onEvent, close } = io.view(output);
  const place = command.execution ?? placeOf(io);
  try {
    const manifest = await loadManifest(command.hydrate.manifest);
    const common = { args, env, cwd, timeoutMs, signal: io.signal };
    if (place === "host") {
      // Paths of tools are those of the guest: here the name alone counts.
      assertToolAllowed(manifest, command.command);
      const streams = io.hostStreams(output.json);
      const options = { ...common, ...streams, onEvent };
      const ended = await runOnHost(command.command, options);
      io.result(output.json, ended, "");
      return ended.code;
    }
    const result = await runInVm(manifest, command.command, {
      ...common,
      ...io.streams(output.json),
      vm: machineOptions(command, io, onEvent),
    });
    const { code, signal, stdoutBytes, stderrBytes } = result;
    io.result(output.json, { code, signal, stdoutBytes, stderrBytes }, "");
    return code;
  } finally {
    close();
  }
}

/** Powers down the detached VM. */
export async function stopCommand(
  command: CommandOf<"stop">,
  io: Io,
): Promise<number> {
  const root = workspaceRoot(await locateManifest(command.manifest));
  const options = { signal: io.signal };
  const { pid } = await stopDetachedVm(detachedVmPath(root), options);
  io.result(command.json, { outcome: "stopped", pid }, "");
  return 0;
}

function machineOptions(
  command: CommandOf<"boot"> | CommandOf<"run">,
  { env }: Io,
  onEvent: OnEvent,
): WorkspaceVmOptions {
  const { hydrate: { manifest: _manifest, ...hydrate }, fresh, save } = command;
  return { ...command.machine, hydrate, fresh, save, env, onEvent };
}

/** Gives the terminal to the guest until it ends, or Ctrl-C powers it down. */
async function onConsole(plan: BootOptions, json: boolean, io: Io) {
  using terminal = io.terminal(json);
  await using vm = await boot({
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

function placeOf(io: Io): "vm" | "host" {
  const place = io.env.get("TOOLSMITH_EXECUTION") || "vm";
  if (place === "vm" || place === "host") return place;
  throw usage(
    `TOOLSMITH_EXECUTION is "${place}"`,
    "it is vm, or host to do without the machine",
  );
}
