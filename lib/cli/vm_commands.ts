/**
 * The commands about machines: boot, run, stop.
 *
 * @module
 */
import { dirname, join } from "@std/path";
import { boot } from "../vm/boot.ts";
import type { BootOptions } from "../vm/options.ts";
import {
  assertNoDetachedVm,
  attachDetachedVm,
  detach,
  findDetachedVm,
  stopDetachedVm,
} from "../vm/detached.ts";
import type { OnEvent } from "../events.ts";
import type { ExecOptions, ExecResult } from "../guest/exec.ts";
import { runOnHost } from "../run/host.ts";
import { hydrate } from "../hydrate/hydrate.ts";
import {
  loadManifest,
  locateManifest,
  workspaceRoot,
} from "../manifest/manifest.ts";
import { assertToolAllowed, resolveTool } from "../manifest/tools.ts";
import type { Vm } from "../vm/vm.ts";
import type { CommandOf } from "./parse.ts";
import { usage } from "./flag_values.ts";
import type { Io } from "./io.ts";

/** Boots the image, with its console on this terminal, or by itself. */
export async function bootCommand(
  command: CommandOf<"boot">,
  io: Io,
): Promise<number> {
  const { output, qemuArgs } = command;
  const { onEvent, close } = io.view(output);
  try {
    const image = await hydratedImage(command, io, onEvent);
    close();
    const options: BootOptions = {
      ...command.machine,
      ...image,
      qemuArgs,
      onEvent,
      env: io.env,
      signal: io.signal,
    };
    if (command.detach) {
      const path = machineFile(image.workspace);
      // The same is looked for again under the lock, after the boot.
      await assertNoDetachedVm(path);
      const vm = await bootOnly(options);
      try {
        const { digest } = image.states;
        const { pid } = await detach(vm, path, { digest });
        io.result(output.json, { pid, machine: path }, path);
      } catch (error) {
        await vm.stop({ graceMs: 0 });
        throw error;
      }
      return 0;
    }
    await onConsole(options, output.json, io);
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
    const rules = await loadManifest(command.hydrate.manifest);
    const common = { args, env, cwd, timeoutMs, signal: io.signal };
    if (place === "host") {
      // Paths of tools are those of the guest: here the name alone counts.
      assertToolAllowed(rules, command.command);
      const streams = io.hostStreams(output.json);
      const options = { ...common, ...streams, onEvent };
      const ended = await runOnHost(command.command, options);
      io.result(output.json, ended, "");
      return ended.code;
    }
    const program = resolveTool(rules, command.command);
    const streams = io.streams(output.json);
    const options = { ...common, ...streams };
    const result = await runInVm(program, options, command, io, onEvent);
    const { code, signal, stdoutBytes, stderrBytes } = result;
    io.result(output.json, { code, signal, stdoutBytes, stderrBytes }, "");
    return code;
  } finally {
    close();
  }
}

/** Runs a program in a machine that is gone, or let go, afterwards. */
async function runInVm(
  program: string,
  options: ExecOptions,
  command: CommandOf<"run">,
  io: Io,
  onEvent: OnEvent,
): Promise<ExecResult> {
  await using vm = await machineFor(command, io, onEvent);
  return await vm.exec(program, options);
}

/** Powers down the machine that lives by itself. */
export async function stopCommand(
  command: CommandOf<"stop">,
  io: Io,
): Promise<number> {
  const root = workspaceRoot(await locateManifest(command.manifest));
  const { pid } = await stopDetachedVm(machineFile(root));
  io.result(command.json, { outcome: "stopped", pid }, "");
  return 0;
}

/** Where a workspace notes the machine that lives by itself. */
function machineFile(root: string): string {
  return join(root, ".toolsmith", "machine.json");
}

/** The machine that lives by itself where it fits, else one for this command. */
async function machineFor(
  command: CommandOf<"run">,
  io: Io,
  onEvent: OnEvent,
): Promise<Vm> {
  const asked = command.fresh ||
    Object.values(command.machine).some((flag) => flag !== undefined);
  const manifest = await loadManifest(command.hydrate.manifest);
  const path = machineFile(manifest.root);
  const state = asked ? undefined : await findDetachedVm(path);
  if (state?.digest === `sha256:${manifest.image.sha256}`) {
    return attachDetachedVm(path, state, onEvent);
  }
  const image = await hydratedImage(command, io, onEvent);
  // A disk that is kept wants a power-down, also after Ctrl-C.
  const start = command.machine.overlay === undefined ? boot : bootOnly;
  return await start({
    ...command.machine,
    ...image,
    onEvent,
    env: io.env,
    signal: io.signal,
  });
}

/** Boots; the signal ends the boot, but not the machine once it is there. */
async function bootOnly(options: BootOptions): Promise<Vm> {
  const starting = new AbortController();
  const cancel = () => starting.abort(options.signal?.reason);
  options.signal?.addEventListener("abort", cancel);
  if (options.signal?.aborted) cancel();
  try {
    return await boot({ ...options, signal: starting.signal });
  } finally {
    options.signal?.removeEventListener("abort", cancel);
  }
}

/** Hydrates, and says what that means for a machine. */
async function hydratedImage(
  command: CommandOf<"boot"> | CommandOf<"run">,
  io: Io,
  onEvent: OnEvent,
) {
  const { hydrate: { manifest: path, ...flags }, fresh, save } = command;
  const manifest = await loadManifest(path);
  const { signal } = io;
  const result = await hydrate(manifest, { ...flags, signal, onEvent });
  return {
    image: result.path,
    workspace: manifest.root,
    states: {
      dir: join(dirname(result.path), "machines"),
      digest: result.digest,
      restore: !fresh,
      save,
    },
  };
}

/** Gives the terminal to the guest until it ends, or Ctrl-C powers it down. */
async function onConsole(options: BootOptions, json: boolean, io: Io) {
  using terminal = io.terminal(json);
  await using vm = await bootOnly({
    ...options,
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
