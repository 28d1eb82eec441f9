/**
 * Detached VMs: they live on when the process that booted them has ended. A
 * record says where they are, so that others can use and stop them.
 *
 * @module
 */
import { dirname, join, resolve } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import { isDisconnection } from "../qemu/errors.ts";
import { emitter, type OnEvent } from "../events.ts";
import { readPlainText, replaceFile } from "../system/files.ts";
import { lock } from "../system/lock.ts";
import { whyUntrusted } from "../system/ownership.ts";
import { run } from "../system/process.ts";
import { whyOutside } from "../system/workspace.ts";
import {
  isMachineDir,
  MACHINE_FILES,
  markMachineDir,
  removeMachineDir,
} from "../qemu/machine_dir.ts";
import { sharedMonitor } from "../qemu/monitor.ts";
import { clearSetIdBits } from "../qemu/set_id.ts";
import {
  type DetachedVmRecord,
  formatRecord,
  parseRecord,
} from "./detached_record.ts";
import { makeVm } from "./_make_vm.ts";
import type { BootedVm, StopOptions, Vm } from "./vm.ts";

/** What {@linkcode detach} takes. */
export interface DetachOptions {
  /** Digest of the image. @default {undefined} */
  digest?: string;
  /** The default of a later stop, in milliseconds. @default {10_000} */
  graceMs?: number;
}

/** What those take that look for a detached VM, or use it. */
export interface DetachedVmOptions {
  /** Ends waits for other processes when aborted. */
  signal?: AbortSignal;
  /** Takes events. */
  onEvent?: OnEvent;
}

const GRACE_MS = 10_000;
/** A record has less; what comes with a workspace may be of any size. */
const MAX_BYTES = 1024 * 1024;
const POLL_MS = 100;

/**
 * Lets a machine live on without this process, and writes down where it is.
 *
 * Needs `--allow-read` and `--allow-write` for the record.
 *
 * @param vm A machine of this process; it is of no use here afterwards.
 * @param path The record's file.
 * @param options What to write down besides.
 * @returns What was written.
 * @throws {ToolsmithError} `usage` when the record is of a machine that runs,
 * `file_unreadable` when another user could have written there. The machine
 * stays with this process then.
 */
export async function detach(
  vm: BootedVm,
  path: string,
  options: DetachOptions & DetachedVmOptions = {},
): Promise<DetachedVmRecord> {
  const { digest, graceMs = GRACE_MS, signal } = options;
  const link = await whyOutside(resolve(path));
  if (link) throw notTrusted(path, link, "remove the link");
  await Deno.mkdir(dirname(path), { recursive: true });
  const why = await whyUntrusted(path);
  if (why) {
    throw notTrusted(
      path,
      why,
      "remove write access for other users: chmod go-w",
    );
  }
  using _lock = await lock(`${path}.lock`, { signal });
  if (await readRecord(path, signal)) throw alreadyRunning(path);
  const record: DetachedVmRecord = {
    layout: 1,
    ...vm.facts,
    ...digest === undefined ? {} : { digest },
    since: new Date().toISOString(),
    graceMs,
    token: await markMachineDir(vm.facts.dir),
  };
  await replaceFile(path, formatRecord(record), { mode: 0o600 });
  await vm.release();
  return record;
}

/**
 * Finds the detached VM of a record. The record of one that has ended is
 * removed. One that another user could have written is not used: commands and
 * their environment would go to a machine of theirs.
 *
 * Needs `--allow-read` and `--allow-write` for the record, and for the machine's
 * directory `--allow-net=unix:…` too.
 *
 * @param path The record's file.
 * @param options Ends the wait for its lock; gets a warning of a record that is
 * not used.
 * @returns The record, or `undefined` if no such machine runs.
 * @throws The signal's reason when it is aborted.
 */
export async function findDetachedVm(
  path: string,
  options: DetachedVmOptions = {},
): Promise<DetachedVmRecord | undefined> {
  const found = await Deno.lstat(path).catch(() => undefined);
  if (!found) return undefined;
  const why = await whyOutside(resolve(path)) ?? await whyUntrusted(path);
  if (why) {
    const message = `The detached VM is not used: ${why}`;
    emitter(options.onEvent)({ type: "warning", message });
    return undefined;
  }
  using _lock = await lock(`${path}.lock`, { signal: options.signal });
  return await readRecord(path, options.signal);
}

/**
 * Makes a detached VM usable here. Disposing it leaves it running; `stop` ends
 * it.
 *
 * Needs `--allow-read`, `--allow-write` and `--allow-net=unix:…` for the
 * machine's directory.
 *
 * @param path The record's file.
 * @param record What {@linkcode findDetachedVm} returned.
 * @param options Takes events.
 * @returns The machine.
 */
export function attachDetachedVm(
  path: string,
  record: DetachedVmRecord,
  options: DetachedVmOptions = {},
): Vm {
  const monitor = sharedMonitor(record.dir);
  const stopLooking = new AbortController();
  const vm = makeVm({
    facts: record,
    monitor,
    emit: emitter(options.onEvent),
    ended: whenEnded(record, stopLooking.signal),
    graceMs: record.graceMs,
    failure: () =>
      Promise.resolve(
        new ToolsmithError("guest_failed", "The machine has ended"),
      ),
    kill: async () => {
      if (await isRunning(record)) await killQemu(record);
    },
    async cleanUp(signal) {
      stopLooking.abort();
      await forget(path, record, signal);
    },
  });
  return {
    ...vm,
    async [Symbol.asyncDispose]() {
      stopLooking.abort();
      await monitor[Symbol.asyncDispose]();
    },
  };
}

/**
 * Stops the detached VM of a record.
 *
 * Needs what {@linkcode attachDetachedVm} needs, and `--allow-run` to end QEMU
 * by force.
 *
 * @param path The record's file.
 * @param options How long the guest may take.
 * @returns What was stopped.
 * @throws {ToolsmithError} `machine_not_found` when none runs.
 */
export async function stopDetachedVm(
  path: string,
  options: StopOptions & DetachedVmOptions = {},
): Promise<DetachedVmRecord> {
  const record = await findDetachedVm(path, options);
  if (!record) {
    throw new ToolsmithError("machine_not_found", "No machine is running", {
      hint: "toolsmith boot --detach starts one",
    });
  }
  await using vm = attachDetachedVm(path, record, options);
  await vm.stop(options);
  return record;
}

/**
 * Refuses to start a machine where one runs already.
 *
 * Needs what {@linkcode findDetachedVm} needs.
 *
 * @param path The record's file.
 * @param options Ends the wait for its lock.
 * @throws {ToolsmithError} `usage` when it is of a machine that runs.
 */
export async function assertNoDetachedVm(
  path: string,
  options: DetachedVmOptions = {},
): Promise<void> {
  if (await findDetachedVm(path, options)) throw alreadyRunning(path);
}

/** The record, unless its machine has ended. The caller holds the lock. */
async function readRecord(
  path: string,
  signal: AbortSignal | undefined,
): Promise<DetachedVmRecord | undefined> {
  const text = await readPlainText(path, MAX_BYTES).catch(() => undefined);
  const record = parseRecord(text ?? "");
  // Whoever can write in its directory can pretend to be the machine.
  if (!record || await whyUntrusted(record.dir)) return undefined;
  if (await isRunning(record)) return record;
  await forget(path, record, signal);
  return undefined;
}

/** Removes what is left of a VM. What a record says of exports may be forged, too. */
async function forget(
  path: string,
  { dir, token, shares }: DetachedVmRecord,
  signal: AbortSignal | undefined,
) {
  if (await isMachineDir(dir, token)) {
    const exports = shares.filter((it) => it.writable && !it.copied);
    await clearSetIdBits(exports.map(({ path }) => path), { signal });
    await removeMachineDir(dir);
  }
  await Deno.remove(path).catch(() => {});
}

/**
 * Does QEMU still listen on a socket of the machine, whose directory has a name
 * of its own? Its process id may be another's by now.
 */
async function isRunning({ dir }: DetachedVmRecord): Promise<boolean> {
  try {
    const path = join(dir, MACHINE_FILES.console);
    // A workspace may come with a link to a socket of another program.
    if ((await Deno.lstat(path)).isSymlink) return false;
    (await Deno.connect({ transport: "unix", path })).close();
    return true;
  } catch (error) {
    // Where that cannot be known, nothing is forgotten.
    if (error instanceof Deno.errors.NotCapable) throw error;
    return !(error instanceof Deno.errors.NotFound) && !isDisconnection(error);
  }
}

/** Its process id may be another's by now: QEMU's arguments name the directory. */
async function killQemu({ pid, dir }: DetachedVmRecord): Promise<void> {
  const line = Deno.build.os === "linux"
    ? await Deno.readTextFile(`/proc/${pid}/cmdline`).catch(() => "")
    : (await run("ps", { args: ["-ww", "-o", "args=", "-p", `${pid}`] }))
      .stdout;
  // A comma in a path is written twice.
  if (line.replaceAll(",,", ",").includes(join(dir, MACHINE_FILES.qmp))) {
    return Deno.kill(pid, "SIGKILL");
  }
  throw new ToolsmithError(
    "guest_failed",
    `Cannot end the machine: process ${pid} is not its QEMU`,
    { hint: `look for the process that has ${dir} in its arguments` },
  );
}

/** Settles when the machine has ended; never, once the signal is aborted. */
async function whenEnded(
  record: DetachedVmRecord,
  signal: AbortSignal,
): Promise<void> {
  await new Promise<void>((done) => {
    const look = setInterval(async () => {
      if (await isRunning(record)) return;
      clearInterval(look);
      done();
    }, POLL_MS);
    signal.addEventListener("abort", () => clearInterval(look));
  });
}

function notTrusted(path: string, why: string, hint: string): ToolsmithError {
  return new ToolsmithError(
    "file_unreadable",
    `Cannot write down the machine in ${path}: ${why}`,
    { hint },
  );
}

function alreadyRunning(path: string): ToolsmithError {
  return new ToolsmithError("usage", `A machine is running: ${path}`, {
    hint: "stop it first: toolsmith stop",
  });
}
