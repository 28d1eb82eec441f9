/**
 * Brings a machine up whose QEMU runs: restores it or lets it boot, saves it, and
 * plugs in what it is to have.
 *
 * @module
 */
import { resolve } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import type { Agent } from "../qemu/agent.ts";
import { prepareGuest } from "../guest/setup.ts";
import {
  claimFirstPorts,
  closePorts,
  restoredShell,
  startWaitingShell,
} from "../guest/waiting_shell.ts";
import { type GuestShare, isPlugged } from "../qemu/args.ts";
import { assertDiskChain } from "../qemu/disk.ts";
import { AcceleratorError } from "../qemu/errors.ts";
import { type Monitor, ownMonitor } from "../qemu/monitor.ts";
import { clearSetIdBits } from "../qemu/set_id.ts";
import { NotSavable, reasonOf, type Saved, type Start } from "./_course.ts";
import { endQemu } from "./_qemu.ts";
import { meetAgent } from "../guest/agent.ts";
import { attach } from "./_hotplug.ts";
import { saveMachine } from "./_migrate.ts";
import { NoProgress, watchProgress } from "./_progress.ts";
import { bootFailure, notReady, whenReady } from "./_readiness.ts";
import { relay } from "./_typing.ts";
import { makeVm } from "./_make_vm.ts";
import type { BootedVm } from "./vm.ts";

const DEFAULT_GRACE_MS = 10_000;

/**
 * Lets the guest run until it is ready for commands.
 *
 * @param start The machine, which stands still yet.
 * @returns The machine; or, if it was saved and stands still, what the one that
 * goes on in its place has to know.
 * @throws {NotSavable} When that one does not run.
 * @throws {ToolsmithError} What `boot` throws.
 */
export async function bringUp(start: Start): Promise<BootedVm | Saved> {
  const { plan, options, machine, slot, staging, files, saved, emit } = start;
  const { clock } = start;
  const { accelerator, memory, cpus } = plan;
  const { version } = machine.qmp;
  const image = resolve(options.image);
  const size = { version, accelerator, memory, cpus };
  if (!saved) {
    const how = files ? "restore" : "boot";
    emit({ type: "vm_boot", image, how, backend: "qemu", ...size });
  }
  const { signal } = options;
  await using progress = watchProgress(start);
  const { monitor, connecting } = await wake(start, progress.signal);
  // That of a restored guest answers while its shell works.
  const isRestored = files !== undefined && !saved;
  const agent = isRestored ? undefined : await connecting;
  const about = agent && !files
    ? await meet(start, monitor, progress.signal)
    : saved?.agent;
  if (!saved) clock.lap("guest");
  if (staging && agent && !saved) {
    // It takes its time while the guest comes to rest.
    start.successor = start.startSuccessor();
    start.successor.catch(() => {});
    const how = { bootMs: clock.phases.guest, signal };
    await prepareGuest(monitor, plan.shares.filter(isPlugged), how);
    const waits = await letShellWait(start, monitor);
    clock.lap("guest");
    const done = waits && await save(start);
    if (done) {
      await monitor[Symbol.asyncDispose]();
      return { ...done, agent: about };
    }
  }
  if (saved) slot?.place(staging!, performance.now() - saved.stopped);
  else await saveNot(start);
  clock.lap("save");
  let shares: GuestShare[] = [];
  if (agent || isRestored) {
    // A restored guest's clock stood still since it was saved.
    const { waiting } = start;
    const how = { ...options, clock: files !== undefined, waiting, emit };
    start.exported = plan.shares.filter(({ writable }) => writable)
      .map(({ path }) => path);
    const attaching = attach(monitor, plan.shares, how);
    [shares] = await Promise.all([attaching, connecting]);
    clock.lap("attach");
    const { phases } = clock;
    const elapsedMs = Object.values(phases).reduce((sum, ms) => sum + ms);
    const outcome = files && !saved ? "restored" : "booted";
    const ready = { how: outcome, phases, elapsedMs, agent: about } as const;
    emit({ type: "boot_ready", image, ...ready });
  }
  const network = options.network ?? false;
  const facts = { image, pid: machine.pid, dir: start.qemu.dir, ...size };
  return bootedVm(start, monitor, { ...facts, shares, network });
}

/** A guest in which no shell can wait runs no commands: it is not saved. */
async function letShellWait(
  start: Start,
  monitor: Monitor,
): Promise<boolean> {
  const { options: { signal }, slot } = start;
  try {
    start.waiting = await startWaitingShell(monitor, signal);
    return true;
  } catch (error) {
    signal?.throwIfAborted();
    if (error instanceof Deno.errors.NotCapable) throw error;
    slot?.fail(error);
    return false;
  }
}

/** Identifies the agent of a guest that was booted, in what is left of its time. */
async function meet(
  { options, emit, machine }: Start,
  monitor: Monitor,
  signal: AbortSignal,
): Promise<string | undefined> {
  try {
    return await meetAgent(monitor, signal);
  } catch (error) {
    if (!(error instanceof NoProgress)) throw error;
    const late = notReady(machine, error, "cloud-init");
    if (!options.agentOptional) throw late;
    emit({ type: "warning", message: reasonOf(late) });
    return undefined;
  }
}

/** Lets the guest run, and begins to wait for its agent. */
async function wake(start: Start, signal: AbortSignal) {
  const { machine, qemu, files, saved, clock } = start;
  const explain = (error: unknown) => {
    start.options.signal?.throwIfAborted();
    if (!saved || error instanceof Deno.errors.NotCapable) throw error;
    throw new NotSavable(reasonOf(error));
  };
  try {
    if (files) {
      start.claim = await claimFirstPorts(qemu.dir);
      await machine.load();
    }
    await assertFiles(start);
    await machine.qmp.send(["cont"]);
    if (!saved) clock.lap("start");
    const connecting = connectAgent(start, signal).catch(explain);
    connecting.catch(() => {});
    const monitor = ownMonitor(qemu.dir, machine.qmp, connecting);
    if (start.claim) start.waiting = restoredShell(monitor, start.claim);
    start.claim = undefined;
    return { monitor, connecting };
  } catch (error) {
    return explain(error);
  }
}

/**
 * Saves a machine that is ready. It stands still then: it would go on writing
 * what was saved.
 *
 * @returns Which goes on, and since when this one stands still; `undefined` where
 * it goes on itself, as if nothing had been.
 */
async function save(
  start: Start,
): Promise<Omit<Saved, "agent"> | undefined> {
  const { machine, qemu, options, slot } = start;
  await start.typing.leave();
  try {
    // What was typed has made this guest another than the image's.
    if (!start.typing.used()) {
      const successor = await start.successor!;
      const stopped = performance.now();
      const { state } = start.staging!;
      await saveMachine(machine.qmp, { dir: qemu.dir, state });
      return { successor, stopped };
    }
  } catch (error) {
    options.signal?.throwIfAborted();
    if (error instanceof Deno.errors.NotCapable) throw error;
    slot?.fail(error);
  }
  start.typing = relay(options.console?.input, machine);
}

/** Lets a machine go on: its memory and disk keep their files, without names. */
async function saveNot(start: Start) {
  await endSuccessor(start);
  try {
    await start.staging?.[Symbol.asyncDispose]();
  } catch {
    // What cannot be removed is swept later.
  }
}

async function endSuccessor({ successor }: Start) {
  const started = await successor?.catch(() => {});
  if (started) await endQemu(started);
}

function bootedVm(
  start: Start,
  monitor: Monitor,
  facts: BootedVm["facts"],
): BootedVm {
  const { options, machine, typing, slot, emit } = start;
  const vm = makeVm({
    facts,
    monitor,
    waiting: start.waiting,
    emit,
    ended: machine.ended.then(() => {}),
    halted: machine.halted,
    graceMs: options.overlay === undefined ? 0 : DEFAULT_GRACE_MS,
    async failure() {
      const error = await bootFailure(machine);
      // It has run the guest until now: another accelerator is no way out.
      return error instanceof AcceleratorError
        ? new ToolsmithError("guest_failed", `QEMU has ended: ${error.message}`)
        : error;
    },
    kill: async () => await machine[Symbol.asyncDispose](),
    async cleanUp(signal) {
      // First, as what has left its input cannot cancel it.
      await typing.stop();
      await release(start, signal ?? options.signal);
    },
  });
  return {
    ...vm,
    async release() {
      start.waiting?.[Symbol.dispose]();
      await monitor[Symbol.asyncDispose]();
      await typing.stop();
      await slot?.settled();
      await machine.release();
    },
    [Symbol.asyncDispose]: () => vm.stop(),
  };
}

/**
 * Ends QEMU, and all that went with it; leaves no set-ID bits in exports.
 *
 * @param start The machine.
 * @param signal Ends the wait for the latter when aborted.
 */
export async function release(
  start: Start,
  signal?: AbortSignal,
): Promise<void> {
  await endMachine(start);
  // Nobody else would do it if this process were killed now.
  await clearSetIdBits(start.exported ?? [], { signal });
  await endSuccessor(start);
  await start.slot?.settled();
}

/**
 * Ends the QEMU of a machine, and removes its directory.
 *
 * @param start The machine.
 */
export async function endMachine(start: Start): Promise<void> {
  start.waiting?.close();
  if (start.claim) closePorts(start.claim);
  await endQemu(start);
  await start.typing.leave();
}

/**
 * What was checked may have been replaced before QEMU opened it: so the files
 * that it has opened are compared, before the guest runs.
 */
async function assertFiles(start: Start) {
  const { qemu, options, machine, slot, files, saved } = start;
  const image = resolve(options.image);
  const below = qemu.disk === image ? [] : qemu.disk;
  await assertDiskChain(machine.qmp, [below, image].flat(), qemu);
  if (files && !saved && !await slot?.unchanged()) {
    throw new ToolsmithError("boot_failed", "it was replaced by another");
  }
}

/** Waits for the agent; `undefined` if there is none and none is needed. */
async function connectAgent(
  start: Start,
  signal: AbortSignal,
): Promise<Agent | undefined> {
  const { machine, qemu, options, files, emit } = start;
  try {
    return await whenReady(machine, { dir: qemu.dir, signal });
  } catch (error) {
    if (!(error instanceof NoProgress)) throw error;
    if (files || !options.agentOptional) throw notReady(machine, error);
    const message =
      "The guest has no agent that answers: there is only its console";
    emit({ type: "warning", message });
    return undefined;
  }
}
