/**
 * Starts a machine with one accelerator: restored from a snapshot that fits, or
 * booted, and saved then for the next time.
 *
 * @module
 */
import { resolve } from "../path.ts";
import { attachNetwork, attachShares } from "./_hotplug.ts";
import type { BootOptions } from "./options.ts";
import type { SnapshotFiles, SnapshotStaging } from "../cache/snapshots.ts";
import { ToolsmithError } from "../errors.ts";
import type { BootReadyEvent, Emit } from "../events.ts";
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
import { fingerprint } from "../system/files.ts";
import { sleep } from "../system/time.ts";
import { bootFailure, whenReady } from "./_readiness.ts";
import { saveMachine } from "./_migrate.ts";
import { findSlots, type SnapshotSlot } from "./_snapshot.ts";
import { relay, type Typing } from "./_typing.ts";
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
  const slots = await findSlots(plan, { snapshots, env, emit });
  for (const slot of slots) {
    if (!slot.found) continue;
    try {
      return await startOnce({ plan, options, emit, slot, files: slot.found });
    } catch (error) {
      signal?.throwIfAborted();
      if (error instanceof Deno.errors.NotCapable) throw error;
      await slot.drop(reasonOf(error));
    }
  }
  for (const slot of slots) {
    if (!await slot.hasRoom()) continue;
    const staging = await slot.stage();
    if (!staging) break;
    try {
      return await startOnce({ plan, options, emit, slot, staging });
    } catch (error) {
      if (!(error instanceof NotMappable)) throw error;
      const message = `The guest's memory cannot be mapped: ${error.message}`;
      emit({ type: "warning", message });
    }
  }
  return await startOnce({ plan, options, emit });
}

/** Memory that is mapped does not work here; memory that is read may. */
class NotMappable extends Error {}

/** How a machine is started. */
interface Course {
  plan: StartMachineOptions;
  options: BootOptions;
  emit: Emit;
  slot?: SnapshotSlot;
  /** Where to save it; whoever starts it disposes of that. */
  staging?: SnapshotStaging;
  /** What is restored; `undefined` for a boot. */
  files?: SnapshotFiles;
  /** What was saved just now: this machine goes on in its place. */
  saved?: { phases: Phases; lap: () => number; begun: number };
}

type Phases = BootReadyEvent["phases"];

/** A machine that is being started. */
interface Start extends Course {
  machine: Machine;
  typing: Typing;
}

async function startOnce(course: Course): Promise<BootedVm> {
  const { options: { console, signal } } = course;
  const lap = course.saved?.lap ?? stopwatch();
  let start: Start | undefined;
  const cancel = () => void start?.machine[Symbol.asyncDispose]();
  try {
    const machine = await startMachine(await machineOf(course))
      .catch((error) => notMappable(course, error));
    start = { ...course, machine, typing: relay(console?.input, machine) };
    // Every wait from here on is for an answer of QEMU or of its guest.
    signal?.addEventListener("abort", cancel, { once: true });
    signal?.throwIfAborted();
    return await bringUp(start, lap);
  } catch (error) {
    if (start) await release(start);
    await course.staging?.[Symbol.asyncDispose]();
    signal?.throwIfAborted();
    if (!start) throw error;
    // A disk that is full cannot take what the guest writes to its memory.
    const { signal: endedBy } = await start.machine.ended;
    if (endedBy === "SIGBUS") throw new NotMappable("there is no space left");
    throw error instanceof VmDisconnectedError
      ? await bootFailure(start.machine)
      : error;
  } finally {
    signal?.removeEventListener("abort", cancel);
  }
}

/** The machine with the files that it starts from. */
async function machineOf(course: Course): Promise<StartMachineOptions> {
  const { plan, slot, staging, files } = course;
  const unfinished = staging?.dir;
  if (files) {
    const { path, disk = plan.disk, memory } = files;
    const memoryFile = memory ? { path: memory, shared: false } : undefined;
    return { ...plan, disk, incoming: path, memoryFile, unfinished };
  }
  if (!staging || !slot?.mapped) return { ...plan, unfinished };
  const path = staging.memory;
  await Deno.writeFile(path, new Uint8Array(), {
    createNew: true,
    mode: 0o600,
  });
  return { ...plan, memoryFile: { path, shared: true }, unfinished };
}

/** Whether a QEMU can map memory is found out by trying. */
function notMappable({ slot, files, saved }: Course, error: unknown): never {
  const tried = slot?.mapped && (!files || saved);
  if (!tried || !(error instanceof ToolsmithError)) throw error;
  // An older QEMU ends over the arguments, or does not know the capability.
  const refused = ["boot_failed", "guest_failed"].includes(error.code);
  throw refused ? new NotMappable(reasonOf(error)) : error;
}

/** Lets the guest run until it is ready for commands. */
async function bringUp(start: Start, lap: () => number): Promise<BootedVm> {
  const { plan, options, machine, slot, staging, files, saved, emit } = start;
  const { accelerator, memory, cpus } = plan;
  const { version } = machine.qmp;
  const image = resolve(options.image);
  const size = { version, accelerator, memory, cpus };
  const phases = saved?.phases ?? { start: 0, guest: 0, save: 0, attach: 0 };
  if (!saved) {
    const how = files ? "restore" : "boot";
    emit({ type: "vm_boot", image, how, backend: "qemu", ...size });
  }
  const agent = await wake(start, () => saved || (phases.start = lap()));
  const monitor = ownMonitor(plan.dir, machine.qmp, agent);
  if (!saved) phases.guest = lap();
  const begun = performance.now();
  if (staging && saved) slot?.place(staging, begun - saved.begun);
  else if (staging && await save(start, { staging, agent })) {
    await monitor[Symbol.asyncDispose]();
    await machine[Symbol.asyncDispose]();
    const files = await writtenFiles(staging);
    return await startOnce({ ...start, files, saved: { phases, lap, begun } });
  }
  phases.save = lap();
  let shares: GuestShare[] = [];
  if (agent) {
    shares = await attach(monitor, start);
    phases.attach = lap();
    const elapsedMs = Object.values(phases).reduce((sum, ms) => sum + ms);
    const outcome = files && !saved ? "restored" : "booted";
    emit({ type: "boot_ready", image, how: outcome, phases, elapsedMs });
  }
  const network = options.network ?? false;
  const facts = { image, pid: machine.pid, dir: plan.dir, ...size };
  return bootedVm(start, monitor, { ...facts, shares, network });
}

/** Lets the guest run, and waits for its agent. */
async function wake(
  start: Start,
  onRun: () => void,
): Promise<Agent | undefined> {
  const { machine, files, saved, options: { signal } } = start;
  try {
    if (files) await whenLoaded(machine);
    await assertFiles(start);
    await machine.qmp.send(["cont"]);
    onRun();
    return await connectAgent(start);
  } catch (error) {
    signal?.throwIfAborted();
    if (!saved || error instanceof Deno.errors.NotCapable) throw error;
    throw new NotMappable(reasonOf(error));
  }
}

/**
 * Saves a machine that is ready. One whose memory is mapped stands still then:
 * it would go on writing what was saved.
 *
 * @returns Whether it stands still, and another has to go on in its place.
 */
async function save(
  start: Start,
  { staging, agent }: { staging: SnapshotStaging; agent: Agent | undefined },
): Promise<boolean> {
  const { machine, plan, options, slot } = start;
  const begun = performance.now();
  await start.typing.leave();
  try {
    // What was typed has made this guest another than the image's.
    const pristine = agent && !start.typing.used();
    if (pristine) await saveMachine(machine.qmp, plan.dir, staging);
    if (pristine && slot?.mapped) return true;
    if (pristine) {
      await machine.qmp.send(["cont"]);
      slot?.place(staging, performance.now() - begun);
    } else await staging[Symbol.asyncDispose]();
  } catch (error) {
    // Memory that has a file keeps it without a name.
    await staging[Symbol.asyncDispose]();
    if (error instanceof Deno.errors.NotCapable) throw error;
    slot?.fail(error);
  }
  start.typing = relay(options.console?.input, machine);
  return false;
}

async function writtenFiles(staging: SnapshotStaging): Promise<SnapshotFiles> {
  const { state: path, memory, disk } = staging;
  const wrote = await fingerprint(disk) !== undefined;
  return { path, memory, ...wrote ? { disk } : {} };
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
      await typing.stop();
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
  await typing.leave();
  await slot?.settled();
}

/**
 * What was checked may have been replaced before QEMU opened it: so the files
 * that it has opened are compared, before the guest runs.
 */
async function assertFiles(start: Start) {
  const { plan, options, machine, slot, files, saved } = start;
  const image = resolve(options.image);
  const below = files?.disk ?? (plan.disk === image ? [] : plan.disk);
  await assertDiskChain(machine.qmp, [below, image].flat(), plan);
  if (files && !saved && !await slot?.unchanged()) {
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
  const { machine, plan, options, files, emit } = start;
  const { bootTimeoutMs = DEFAULT_TIMEOUT_MS, agentOptional, signal } = options;
  const timeoutMs = files
    ? Math.min(bootTimeoutMs, RESTORE_TIMEOUT_MS)
    : bootTimeoutMs;
  try {
    return await whenReady(machine, { dir: plan.dir, timeoutMs, signal });
  } catch (error) {
    if (
      files || !agentOptional || !(error instanceof ToolsmithError) ||
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
  const { options, files, emit } = start;
  const { signal } = options;
  let { shares } = start.plan;
  try {
    // A restored guest's clock stood still since it was saved.
    await attachShares(monitor, shares, {
      clock: files !== undefined,
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
