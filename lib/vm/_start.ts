/**
 * Brings a machine up with one accelerator: restored from a state that fits, or
 * booted, and saved then for the next time.
 *
 * @module
 */
import { resolve } from "@std/path";
import { attachNetwork, attachShares } from "./shares.ts";
import type { BootOptions } from "./options.ts";
import { ToolsmithError } from "../errors.ts";
import type { Emit } from "../events.ts";
import {
  type Machine,
  startMachine,
  type StartMachineOptions,
} from "../qemu/machine.ts";
import { type Monitor, ownMonitor } from "../qemu/monitor.ts";
import type { GuestShare } from "../qemu/args.ts";
import type { Agent } from "../qemu/agent.ts";
import { VmDisconnectedError } from "../qemu/errors.ts";
import { bootFailure, whenReady } from "./_readiness.ts";
import { findSlot, type SnapshotSlot } from "./_snapshot.ts";
import { makeVm, type Vm } from "./vm.ts";

const DEFAULT_TIMEOUT_MS = 120_000;
/** A restored guest answers at once, or never. */
const RESTORE_TIMEOUT_MS = 15_000;
const DEFAULT_GRACE_MS = 10_000;
const LOOK_MS = 3;

/**
 * Brings a machine up.
 *
 * Needs what `boot` needs.
 *
 * @param plan The machine.
 * @param options What the caller chose.
 * @param emit Told of what happens.
 * @returns The machine, ready for commands.
 * @throws {ToolsmithError} What `boot` throws.
 * @throws {AcceleratorBroken} When QEMU cannot run the guest in this way.
 */
export async function startVm(
  plan: StartMachineOptions,
  options: BootOptions,
  emit: Emit,
): Promise<Vm> {
  const slot = await findSlot(plan, options.states, emit);
  const context = { plan, options, emit, slot };
  if (slot?.found) {
    try {
      return await startOnce(context, true);
    } catch (error) {
      options.signal?.throwIfAborted();
      if (error instanceof Deno.errors.NotCapable) throw error;
      await slot.drop(reasonOf(error));
    }
  }
  return await startOnce(context, false);
}

interface BootContext {
  plan: StartMachineOptions;
  options: BootOptions;
  emit: Emit;
  slot?: SnapshotSlot;
}

async function startOnce(
  context: BootContext,
  restoring: boolean,
): Promise<Vm> {
  const { plan, options, emit, slot } = context;
  const lap = stopwatch();
  const image = resolve(options.image);
  const found = restoring ? slot?.found : undefined;
  const machine = await startMachine({
    ...plan,
    disk: found?.disk ?? plan.disk,
    incoming: found?.path,
  });
  const typing = relay(options.console?.input, machine);
  try {
    const { accelerator, memory, cpus } = plan;
    const { version } = machine.qmp;
    emit({
      type: "vm_boot",
      image,
      how: restoring ? "restore" : "boot",
      backend: "qemu",
      ...{ version, accelerator, memory, cpus },
    });
    if (restoring) await whenLoaded(machine);
    // QEMU has opened its files by now: both are of one save.
    if (found && !await slot?.unchanged()) throw new Error("it was replaced");
    await machine.qmp.send(["cont"]);
    const start = lap();
    const agent = await answer(machine, context, restoring);
    const monitor = ownMonitor(plan.dir, machine.qmp, agent);
    const guest = lap();
    // What was typed has made this guest another than the image's.
    const pristine = !restoring && !typing.used();
    if (agent && slot && pristine) await slot.save(machine.qmp);
    const save = lap();
    let shares: GuestShare[] = [];
    if (agent) {
      shares = await attach(monitor, context, restoring);
      const attached = lap();
      emit({
        type: "boot_ready",
        image,
        how: restoring ? "restored" : "booted",
        phases: { start, guest, save, attach: attached },
        elapsedMs: start + guest + save + attached,
      });
    }
    const facts = {
      ...{ image, pid: machine.pid, dir: plan.dir, version },
      ...{ accelerator, memory, cpus, shares },
      network: options.network ?? false,
    };
    return makeVm({
      facts,
      monitor,
      emit,
      ended: machine.ended.then(() => {}),
      graceMs: plan.ephemeral ? 0 : DEFAULT_GRACE_MS,
      failure: () => bootFailure(machine),
      kill: async () => await machine[Symbol.asyncDispose](),
      async cleanUp() {
        await machine[Symbol.asyncDispose]();
        await typing.stop();
        await slot?.settled();
        await Deno.remove(plan.dir, { recursive: true }).catch(() => {});
      },
      async release() {
        await typing.stop();
        await slot?.settled();
        await machine.release();
      },
    });
  } catch (error) {
    await machine[Symbol.asyncDispose]();
    await typing.stop();
    await slot?.settled();
    throw error instanceof VmDisconnectedError
      ? await bootFailure(machine)
      : error;
  }
}

/** Measures the time between its calls, in whole milliseconds. */
function stopwatch(): () => number {
  let last = performance.now();
  return () => {
    const now = performance.now();
    const lap = Math.round(now - last);
    last = now;
    return lap;
  };
}

/** QEMU answers while it still reads the state. */
async function whenLoaded(machine: Machine) {
  while (true) {
    const [answer] = await machine.qmp.send(["query-status"]);
    if ((answer as { status: string }).status !== "inmigrate") return;
    await new Promise((done) => setTimeout(done, LOOK_MS));
  }
}

/** In one line, without the end of a console that showed nothing yet. */
function reasonOf(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.split(/\n|; its console /)[0];
}

/** Waits for the agent; `undefined` if there is none and none is needed. */
async function answer(
  machine: Machine,
  { plan, options, emit }: BootContext,
  restoring: boolean,
): Promise<Agent | undefined> {
  const { bootTimeoutMs = DEFAULT_TIMEOUT_MS, agentOptional } = options;
  const timeoutMs = restoring
    ? Math.min(bootTimeoutMs, RESTORE_TIMEOUT_MS)
    : bootTimeoutMs;
  try {
    return await whenReady(machine, {
      dir: plan.dir,
      timeoutMs,
      signal: options.signal,
    });
  } catch (error) {
    if (
      restoring || !agentOptional || !(error instanceof ToolsmithError) ||
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
  { plan, options, emit }: BootContext,
  restoring: boolean,
): Promise<GuestShare[]> {
  let { shares } = plan;
  try {
    // A restored guest's clock stood still since it was saved.
    await attachShares(monitor, shares, { clock: restoring });
  } catch (error) {
    // Nobody asked for the workspace: a guest without it is of use, too.
    const alone = shares.length === 1 && !shares[0].writable;
    if (!alone || !(error instanceof ToolsmithError)) throw error;
    if (error instanceof VmDisconnectedError) throw error;
    emit({ type: "warning", message: `No workspace: ${error.message}` });
    shares = [];
  }
  if (options.network && !await attachNetwork(monitor)) {
    const message = "The guest has a network card and no address on it yet";
    emit({ type: "warning", message });
  }
  return shares;
}

/** Types what comes into the console, for as long as the machine is there. */
function relay(
  input: ReadableStream<Uint8Array> | undefined,
  machine: Machine,
) {
  const reader = input?.getReader();
  let used = false;
  const done = (async () => {
    while (reader) {
      const { value } = await reader.read();
      if (value === undefined) return;
      used = true;
      await machine.type(value);
    }
  })().catch(() => {});
  return {
    used: () => used,
    async stop() {
      await reader?.cancel().catch(() => {});
      await done;
      reader?.releaseLock();
    },
  };
}
