/**
 * Starts a machine with one accelerator: restored from a snapshot that fits, or
 * booted, and saved then for the next time.
 *
 * @module
 */
import { resolve } from "../path.ts";
import { attachNetwork, attachShares } from "./_hotplug.ts";
import type { BootOptions } from "./options.ts";
import type { Snapshot } from "../cache/snapshots.ts";
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
import { assertDiskChain } from "../qemu/disk.ts";
import { VmDisconnectedError } from "../qemu/errors.ts";
import { sleep } from "../system/time.ts";
import { bootFailure, whenReady } from "./_readiness.ts";
import { findSlot, type SnapshotSlot } from "./_snapshot.ts";
import { type BootedVm, makeVm } from "./vm.ts";

const DEFAULT_TIMEOUT_MS = 120_000;
/** A restored guest answers at once, or never. */
const RESTORE_TIMEOUT_MS = 15_000;
const DEFAULT_GRACE_MS = 10_000;
const LOOK_MS = 3;

/**
 * Starts a machine.
 *
 * Needs what `boot` needs.
 *
 * @param plan The machine.
 * @param options What the caller chose.
 * @param emit Takes events.
 * @returns The machine, ready for commands.
 * @throws {ToolsmithError} What `boot` throws.
 * @throws {AcceleratorError} When QEMU cannot run the guest in this way.
 */
export async function startVm(
  plan: StartMachineOptions,
  options: BootOptions,
  emit: Emit,
): Promise<BootedVm> {
  const { snapshots, env, signal } = options;
  const slot = await findSlot(plan, { snapshots, env, emit });
  const context = { plan, options, emit, slot };
  if (slot?.found) {
    try {
      return await startOnce(context, slot.found);
    } catch (error) {
      signal?.throwIfAborted();
      if (error instanceof Deno.errors.NotCapable) throw error;
      await slot.drop(reasonOf(error));
    }
  }
  return await startOnce(context);
}

interface BootContext {
  plan: StartMachineOptions;
  options: BootOptions;
  emit: Emit;
  slot?: SnapshotSlot;
}

/** A machine that is being started. */
interface Start extends BootContext {
  machine: Machine;
  /** What is restored; `undefined` for a boot. */
  snapshot?: Snapshot;
  typing: Typing;
}

async function startOnce(
  context: BootContext,
  snapshot?: Snapshot,
): Promise<BootedVm> {
  const { plan, options: { console, signal } } = context;
  const lap = stopwatch();
  const machine = await startMachine({
    ...plan,
    disk: snapshot?.disk ?? plan.disk,
    incoming: snapshot?.path,
  });
  const typing = relay(console?.input, machine);
  const start = { ...context, machine, snapshot, typing };
  // Every wait from here on is for an answer of QEMU or of its guest.
  const cancel = () => void machine[Symbol.asyncDispose]();
  signal?.addEventListener("abort", cancel, { once: true });
  try {
    signal?.throwIfAborted();
    return await bringUp(start, lap);
  } catch (error) {
    await release(start);
    signal?.throwIfAborted();
    throw error instanceof VmDisconnectedError
      ? await bootFailure(machine)
      : error;
  } finally {
    signal?.removeEventListener("abort", cancel);
  }
}

/** Lets the guest run until it is ready for commands. */
async function bringUp(
  start: Start,
  lap: () => number,
): Promise<BootedVm> {
  const { plan, options, machine, snapshot, slot, emit } = start;
  const { accelerator, memory, cpus } = plan;
  const { version } = machine.qmp;
  const image = resolve(options.image);
  const how = snapshot ? "restore" : "boot";
  const size = { version, accelerator, memory, cpus };
  emit({ type: "vm_boot", image, how, backend: "qemu", ...size });
  if (snapshot) await whenLoaded(machine);
  await assertFiles(start);
  await machine.qmp.send(["cont"]);
  const phases = { start: lap(), guest: 0, save: 0, attach: 0 };
  const agent = await connectAgent(start);
  const monitor = ownMonitor(plan.dir, machine.qmp, agent);
  phases.guest = lap();
  // What was typed has made this guest another than the image's.
  const pristine = !snapshot && !start.typing.used();
  if (agent && slot && pristine) await slot.save(machine.qmp);
  phases.save = lap();
  let shares: GuestShare[] = [];
  if (agent) {
    shares = await attach(monitor, start);
    phases.attach = lap();
    const elapsedMs = Object.values(phases).reduce((sum, ms) => sum + ms);
    const outcome = snapshot ? "restored" : "booted";
    emit({ type: "boot_ready", image, how: outcome, phases, elapsedMs });
  }
  const network = options.network ?? false;
  const facts = { image, pid: machine.pid, dir: plan.dir, ...size };
  return bootedVm(start, monitor, { ...facts, shares, network });
}

function bootedVm(
  start: Start,
  monitor: Monitor,
  facts: BootedVm["facts"],
): BootedVm {
  const { plan, machine, typing, slot, emit } = start;
  const vm = makeVm({
    facts,
    monitor,
    emit,
    ended: machine.ended.then(() => {}),
    halted: machine.halted,
    graceMs: plan.ephemeral ? 0 : DEFAULT_GRACE_MS,
    failure: () => bootFailure(machine),
    kill: async () => await machine[Symbol.asyncDispose](),
    async cleanUp() {
      await release(start);
      await Deno.remove(plan.dir, { recursive: true }).catch(() => {});
    },
  });
  return {
    ...vm,
    async release() {
      await monitor[Symbol.asyncDispose]();
      await typing.stop();
      await slot?.settled();
      await machine.release();
    },
    [Symbol.asyncDispose]: () => vm.stop(),
  };
}

/** Ends QEMU, and all that went with it. */
async function release({ machine, typing, slot }: Start): Promise<void> {
  await machine[Symbol.asyncDispose]();
  await typing.stop();
  await slot?.settled();
}

/**
 * What was checked may have been replaced before QEMU opened it: so the files
 * that it has opened are compared, before the guest runs.
 */
async function assertFiles({ plan, options, machine, snapshot, slot }: Start) {
  const image = resolve(options.image);
  const below = snapshot?.disk ?? (plan.disk === image ? [] : plan.disk);
  await assertDiskChain(machine.qmp, [below, image].flat(), plan);
  if (snapshot && !await slot?.unchanged()) {
    throw new ToolsmithError("boot_failed", "it was replaced by another");
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

/** QEMU answers while it still reads the snapshot. */
async function whenLoaded(machine: Machine) {
  while (true) {
    const [answer] = await machine.qmp.send(["query-status"]);
    if ((answer as { status: string }).status !== "inmigrate") return;
    await sleep(LOOK_MS);
  }
}

/** In one line, without the end of a console that showed nothing yet. */
function reasonOf(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.split(/\n|; its console /)[0];
}

/** Waits for the agent; `undefined` if there is none and none is needed. */
async function connectAgent(start: Start): Promise<Agent | undefined> {
  const { machine, plan, options, snapshot, emit } = start;
  const { bootTimeoutMs = DEFAULT_TIMEOUT_MS, agentOptional, signal } = options;
  const timeoutMs = snapshot
    ? Math.min(bootTimeoutMs, RESTORE_TIMEOUT_MS)
    : bootTimeoutMs;
  try {
    return await whenReady(machine, { dir: plan.dir, timeoutMs, signal });
  } catch (error) {
    if (
      snapshot || !agentOptional || !(error instanceof ToolsmithError) ||
      error.code !== "guest_not_ready"
    ) throw error;
    const message =
      "The guest has no agent that answers: there is only its console";
    emit({ type: "warning", message });
    return undefined;
  }
}

/** Plugs in what the machine is to have besides its disk. */
async function attach(monitor: Monitor, start: Start): Promise<GuestShare[]> {
  const { options, snapshot, emit } = start;
  const { signal } = options;
  let { shares } = start.plan;
  try {
    // A restored guest's clock stood still since it was saved.
    await attachShares(monitor, shares, {
      clock: snapshot !== undefined,
      signal,
    });
  } catch (error) {
    signal?.throwIfAborted();
    // Nobody asked for the workspace: a guest without it is of use, too.
    const workspaceOnly = shares.length === 1 && !shares[0].writable;
    if (!workspaceOnly || !(error instanceof ToolsmithError)) throw error;
    if (error instanceof VmDisconnectedError) throw error;
    emit({ type: "warning", message: `No workspace: ${error.message}` });
    shares = [];
  }
  if (options.network && !await attachNetwork(monitor, { signal })) {
    const message = "The guest has a network card and no address on it yet";
    emit({ type: "warning", message });
  }
  return shares;
}

type Typing = ReturnType<typeof relay>;

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
