/**
 * Boots an image.
 *
 * @module
 */
import { resolve } from "@std/path";
import {
  type Accelerator,
  accelerators,
  rememberBroken,
} from "./accelerator.ts";
import {
  attachNetwork,
  attachShares,
  type Export,
  planShares,
} from "./attach.ts";
import { prepareDisk } from "./boot_disk.ts";
import { type Environment, processEnvironment } from "./environment.ts";
import { ToolsmithError } from "./errors.ts";
import { type Emit, emitter, type OnEvent } from "./events.ts";
import {
  AcceleratorBroken,
  type Machine,
  makeMachineFolder,
  startMachine,
  type StartMachineOptions,
} from "./machine.ts";
import { type Monitor, ownMonitor } from "./monitor.ts";
import { qemuProgram, type Share } from "./qemu.ts";
import type { Agent } from "./qmp.ts";
import { bootFailure, whenReady } from "./readiness.ts";
import { makeVm, type Vm } from "./vm.ts";

/** How {@linkcode boot} boots an image. */
export interface BootOptions {
  /** Path of the QCOW2. It is never written. */
  image: string;
  /** Memory, in MiB. @default {512} */
  memory?: number;
  /** Count of processors. @default {2} or as many as the host has */
  cpus?: number;
  /** Folder to mount read-only at `/mnt/work`. @default {undefined} none */
  workspace?: string;
  /** Folders to mount writable. @default {[]} */
  exports?: Export[];
  /**
   * Give the guest a network. It can then reach what this host can reach,
   * services on the host itself included.
   *
   * @default {false}
   */
  network?: boolean;
  /** File that keeps what the guest writes. @default {undefined} not kept */
  overlay?: string;
  /** More arguments for QEMU. @default {[]} */
  qemuArgs?: string[];
  /** How to run the guest. @default {undefined} the best that works */
  accelerator?: Accelerator;
  /** Time that the guest may take to be ready, in ms. @default {120_000} */
  bootTimeoutMs?: number;
  /**
   * Go on without an agent in the guest: no commands, no mounts, a console.
   *
   * @default {false}
   */
  agentOptional?: boolean;
  /** The serial console, for instance on a terminal. */
  console?: {
    /** Sees what the guest writes. */
    output: (chunk: Uint8Array) => void;
    /** What is typed. */
    input?: ReadableStream<Uint8Array>;
  };
  /** Told of what happens. */
  onEvent?: OnEvent;
  /** Read for `TOOLSMITH_QEMU` and `TMPDIR`. @default {processEnvironment} */
  env?: Environment;
  /** Stops the boot, and the machine, when aborted. */
  signal?: AbortSignal;
}

const DEFAULT_MEMORY = 512;
const DEFAULT_CPUS = 2;
const DEFAULT_TIMEOUT_MS = 120_000;
const DEFAULT_GRACE_MS = 10_000;

/**
 * Boots an image with QEMU and waits until the guest is ready for commands. The
 * machine ends with this process, whatever ends it.
 *
 * Needs `--allow-run=sh`, and `--allow-read`, `--allow-write` and
 * `--allow-net=unix:…` for the image, the folders and the temporary folder.
 *
 * @param options The image, and what the machine is like.
 * @returns The machine.
 * @throws {ToolsmithError} `qemu_not_found`, `boot_failed`, `guest_not_ready`,
 * `guest_panicked`, `guest_failed`, `image_invalid`, `image_unsafe`, `usage`.
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
export async function boot(options: BootOptions): Promise<Vm> {
  const { env = processEnvironment, signal } = options;
  signal?.throwIfAborted();
  const emit = emitter(options.onEvent);
  const program = qemuProgram(env);
  const shares = await planShares(options.workspace, options.exports ?? []);
  const disk = await prepareDisk(options.image, options.overlay);
  const folder = await makeMachineFolder(env);
  try {
    const machine = {
      ...disk,
      ...sizes(options),
      ...{ folder, program, shares, signal },
      extra: options.qemuArgs ?? [],
      onConsole: options.console?.output,
    };
    return await bootWith(machine, options, emit);
  } catch (error) {
    await Deno.remove(folder, { recursive: true }).catch(() => {});
    throw error;
  }
}

type Plan = Omit<StartMachineOptions, "accelerator">;

/** Tries one accelerator after the other. */
async function bootWith(plan: Plan, options: BootOptions, emit: Emit) {
  const { program } = plan;
  const wanted = options.accelerator;
  const choices = wanted ? [wanted] : await accelerators(program, options);
  for (const accelerator of choices) {
    try {
      return await bootOnce({ ...plan, accelerator }, options, emit);
    } catch (error) {
      if (!(error instanceof AcceleratorBroken)) throw error;
      const name = accelerator.toUpperCase();
      const message = `${name} does not work here: ${error.message}`;
      if (wanted) {
        throw new ToolsmithError("boot_failed", message, {
          hint: "leave the choice of the accelerator to Toolsmith",
        });
      }
      emit({
        type: "warning",
        message: `${message}; emulating instead, which is slower`,
      });
      if (!/permission/i.test(error.message)) {
        await rememberBroken(accelerator, program, options);
      }
    }
  }
  throw new ToolsmithError("boot_failed", "No accelerator works here");
}

async function bootOnce(
  plan: StartMachineOptions,
  options: BootOptions,
  emit: Emit,
): Promise<Vm> {
  const times = [performance.now()];
  const lap = () => times.push(performance.now());
  const image = resolve(options.image);
  const machine = await startMachine(plan);
  const typing = relay(options.console?.input, machine);
  try {
    const { accelerator, memory, cpus } = plan;
    const { version } = machine.qmp;
    const backend = "qemu";
    emit(
      { type: "vm_boot", image, backend, version, accelerator, memory, cpus },
    );
    await machine.qmp.send(["cont"]);
    lap();
    const agent = await answer(machine, { plan, options, emit });
    lap();
    const monitor = ownMonitor(plan.folder, machine.qmp, agent);
    if (agent) {
      await attach(monitor, plan.shares, { options, emit });
      lap();
      const [start, guest, attached] = times.slice(1)
        .map((time, index) => Math.round(time - times[index]));
      emit({
        type: "boot_ready",
        image,
        how: "booted",
        phases: { start, guest, attach: attached },
        elapsedMs: start + guest + attached,
      });
    }
    const facts = {
      ...{ image, pid: machine.pid, folder: plan.folder, version },
      ...{ accelerator, memory, cpus },
      shares: agent ? plan.shares : [],
      network: options.network ?? false,
    };
    return makeVm({
      facts,
      monitor,
      emit,
      ended: machine.ended.then(() => {}),
      graceMs: plan.throwAway ? 0 : DEFAULT_GRACE_MS,
      failure: () => bootFailure(machine),
      kill: async () => await machine[Symbol.asyncDispose](),
      async cleanUp() {
        await machine[Symbol.asyncDispose]();
        await typing.stop();
        await Deno.remove(plan.folder, { recursive: true }).catch(() => {});
      },
      async release() {
        await typing.stop();
        await machine.release();
      },
    });
  } catch (error) {
    await machine[Symbol.asyncDispose]();
    await typing.stop();
    throw error;
  }
}

interface Course {
  options: BootOptions;
  emit: Emit;
}

/** Waits for the agent; `undefined` if there is none and none is needed. */
async function answer(
  machine: Machine,
  { plan, options, emit }: Course & { plan: StartMachineOptions },
): Promise<Agent | undefined> {
  const { bootTimeoutMs = DEFAULT_TIMEOUT_MS, agentOptional } = options;
  try {
    return await whenReady(machine, {
      folder: plan.folder,
      timeoutMs: bootTimeoutMs,
      signal: options.signal,
    });
  } catch (error) {
    if (
      !agentOptional || !(error instanceof ToolsmithError) ||
      error.code !== "guest_not_ready"
    ) throw error;
    const message =
      "The guest has no agent that answers: there is only its console";
    emit({ type: "warning", message });
    return undefined;
  }
}

/** Plugs in what the machine is to have besides its disk. */
async function attach(
  monitor: Monitor,
  shares: Share[],
  { options, emit }: Course,
) {
  await attachShares(monitor, shares);
  if (options.network && !await attachNetwork(monitor)) {
    const message = "The guest has a network card and no address on it yet";
    emit({ type: "warning", message });
  }
}

/** Types what comes into the console, for as long as the machine is there. */
function relay(
  input: ReadableStream<Uint8Array> | undefined,
  machine: Machine,
) {
  const reader = input?.getReader();
  const done = (async () => {
    while (reader) {
      const { value } = await reader.read();
      if (value === undefined) return;
      await machine.type(value);
    }
  })().catch(() => {});
  return {
    async stop() {
      await reader?.cancel().catch(() => {});
      await done;
      reader?.releaseLock();
    },
  };
}

function sizes(options: BootOptions) {
  const cores = navigator.hardwareConcurrency;
  const sizes = {
    memory: options.memory ?? DEFAULT_MEMORY,
    cpus: options.cpus ?? Math.min(DEFAULT_CPUS, cores),
  };
  for (const [name, value] of Object.entries(sizes)) {
    if (Number.isSafeInteger(value) && value > 0) continue;
    throw new ToolsmithError("usage", `Not a usable ${name}: ${value}`);
  }
  return sizes;
}
