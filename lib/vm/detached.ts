/**
 * Machines that live on when the process that booted them has ended: a state
 * file says where they are, so that others can use and stop them.
 *
 * @module
 */
import { dirname, join } from "@std/path";
import { ToolsmithError } from "../errors.ts";
import { emitter, type OnEvent } from "../events.ts";
import { lock } from "../system/lock.ts";
import { MACHINE_FILES, removeMachineDir } from "../qemu/machine_dir.ts";
import { sharedMonitor } from "../qemu/monitor.ts";
import { makeVm, type Vm, type VmFacts } from "./vm.ts";

/** What a state file holds. */
export interface DetachedVmRecord extends VmFacts {
  /** Layout of the file. */
  layout: 1;
  /** SHA-256 of the image, where it is known. */
  digest?: string;
  /** When the machine was left to itself, as an ISO 8601 time. */
  since: string;
  /** Time that a stop gives the guest to power down, in milliseconds. */
  graceMs: number;
}

/** What {@linkcode detach} takes. */
export interface DetachOptions {
  /** SHA-256 of the image. @default {undefined} */
  digest?: string;
  /** The default of a later stop, in milliseconds. @default {10_000} */
  graceMs?: number;
}

const GRACE_MS = 10_000;
const POLL_MS = 100;

/**
 * Lets a machine live on by itself, and writes down where it is.
 *
 * Needs `--allow-read` and `--allow-write` for the state file.
 *
 * @param vm A machine of this process; it is of no use here afterwards.
 * @param path The state file.
 * @param options What to write down besides.
 * @returns What was written.
 * @throws {ToolsmithError} `usage` when the file names a machine that runs. The
 * machine stays with this process then.
 */
export async function detach(
  vm: Vm,
  path: string,
  options: DetachOptions = {},
): Promise<DetachedVmRecord> {
  const state: DetachedVmRecord = {
    layout: 1,
    ...vm.facts,
    ...options.digest === undefined ? {} : { digest: options.digest },
    since: new Date().toISOString(),
    graceMs: options.graceMs ?? GRACE_MS,
  };
  await Deno.mkdir(dirname(path), { recursive: true });
  using _lock = await lock(`${path}.lock`);
  if (await readState(path)) throw alreadyRunning(path);
  const staging = `${path}.${crypto.randomUUID()}`;
  try {
    await Deno.writeTextFile(staging, JSON.stringify(state, null, 2) + "\n", {
      mode: 0o600,
    });
    await Deno.rename(staging, path);
  } finally {
    await Deno.remove(staging).catch(() => {});
  }
  await vm.release();
  return state;
}

/**
 * Finds the machine that a state file names. The file of a machine that has
 * ended is removed.
 *
 * Needs `--allow-read` and `--allow-write` for the file, and for the machine's
 * directory `--allow-net=unix:…` too.
 *
 * @param path The state file.
 * @returns The machine's state, or `undefined` if none runs.
 */
export async function findDetachedVm(
  path: string,
): Promise<DetachedVmRecord | undefined> {
  const found = await Deno.lstat(path).catch(() => undefined);
  if (!found) return undefined;
  using _lock = await lock(`${path}.lock`);
  return await readState(path);
}

/**
 * Makes a machine that lives by itself usable here. Disposing it lets it go;
 * `stop` ends it.
 *
 * Needs `--allow-read`, `--allow-write` and `--allow-net=unix:…` for the
 * machine's directory.
 *
 * @param path The state file.
 * @param state What {@linkcode findDetachedVm} returned.
 * @param onEvent Told of what happens.
 * @returns The machine.
 */
export function attachDetachedVm(
  path: string,
  state: DetachedVmRecord,
  onEvent?: OnEvent,
): Vm {
  const monitor = sharedMonitor(state.dir);
  const stopLooking = new AbortController();
  const vm = makeVm({
    facts: state,
    monitor,
    emit: emitter(onEvent),
    ended: whenEnded(state, stopLooking.signal),
    graceMs: state.graceMs,
    failure: () =>
      Promise.resolve(
        new ToolsmithError("guest_failed", "The machine has ended"),
      ),
    kill: async () => {
      if (await isRunning(state)) Deno.kill(state.pid, "SIGKILL");
    },
    async cleanUp() {
      stopLooking.abort();
      await forget(path, state);
    },
    release: () => Promise.resolve(stopLooking.abort()),
  });
  return { ...vm, [Symbol.asyncDispose]: () => vm.release() };
}

/**
 * Stops the machine that a state file names.
 *
 * @param path The state file.
 * @param options How long the guest may take, and who is told.
 * @returns What was stopped.
 * @throws {ToolsmithError} `machine_not_found` when none runs.
 */
export async function stopDetachedVm(
  path: string,
  options: { graceMs?: number; onEvent?: OnEvent } = {},
): Promise<DetachedVmRecord> {
  const state = await findDetachedVm(path);
  if (!state) {
    throw new ToolsmithError("machine_not_found", "No machine is running", {
      hint: "toolsmith boot --detach starts one",
    });
  }
  await attachDetachedVm(path, state, options.onEvent).stop({
    graceMs: options.graceMs,
  });
  return state;
}

/** The state, unless its machine has ended. The caller holds the lock. */
async function readState(path: string): Promise<DetachedVmRecord | undefined> {
  let state: DetachedVmRecord;
  try {
    state = JSON.parse(await Deno.readTextFile(path));
  } catch {
    return undefined;
  }
  if (!isState(state)) return undefined;
  if (await isRunning(state)) return state;
  await forget(path, state);
  return undefined;
}

function isState(value: unknown): value is DetachedVmRecord {
  const state = value as Partial<DetachedVmRecord> | null;
  return typeof state === "object" && state?.layout === 1 &&
    Number.isSafeInteger(state.pid) && state.pid! > 1 &&
    typeof state.dir === "string" && Array.isArray(state.shares);
}

async function forget(path: string, state: DetachedVmRecord) {
  await removeMachineDir(state.dir);
  await Deno.remove(path).catch(() => {});
}

/**
 * Tells whether QEMU still listens on a socket of the machine, whose directory has
 * a name of its own. Its process id would be used again.
 */
async function isRunning({ dir }: DetachedVmRecord): Promise<boolean> {
  try {
    const path = join(dir, MACHINE_FILES.console);
    (await Deno.connect({ transport: "unix", path })).close();
    return true;
  } catch (error) {
    // Where it cannot be told, nothing is forgotten.
    if (error instanceof Deno.errors.NotCapable) throw error;
    return !(error instanceof Deno.errors.NotFound) &&
      !(error instanceof Deno.errors.ConnectionRefused);
  }
}

/** Settles when the machine has ended; never, once it is not asked any more. */
async function whenEnded(
  state: DetachedVmRecord,
  signal: AbortSignal,
): Promise<void> {
  await new Promise<void>((done) => {
    const look = setInterval(async () => {
      if (await isRunning(state)) return;
      clearInterval(look);
      done();
    }, POLL_MS);
    signal.addEventListener("abort", () => clearInterval(look));
  });
}

/**
 * Refuses to start a machine where one runs already.
 *
 * Needs what {@linkcode findDetachedVm} needs.
 *
 * @param path The state file.
 * @throws {ToolsmithError} `usage` when it names a machine that runs.
 */
export async function assertNoDetachedVm(path: string): Promise<void> {
  if (await findDetachedVm(path)) throw alreadyRunning(path);
}

function alreadyRunning(path: string): ToolsmithError {
  return new ToolsmithError("usage", `A machine is running: ${path}`, {
    hint: "stop it first: toolsmith stop",
  });
}
