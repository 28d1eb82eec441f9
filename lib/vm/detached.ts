/**
 * Detached VMs, which outlive the process that booted them. A record says where they
 * are, so that other processes can use and stop them.
 */
import { dirname, join, resolve } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import { isDisconnection } from "../qemu/errors.ts";
import { createEmitter, type OnEvent } from "../events.ts";
import { readSmallJsonObject, replaceFileAtomically } from "../system/files.ts";
import { acquireFileLock } from "../system/lock.ts";
import {
  untrustedReason,
  workspaceSymlinkReason,
} from "../system/ownership.ts";
import { runProcess } from "../system/process.ts";
import { sleep } from "../system/time.ts";
import {
  hasVmDirToken,
  removeVmDir,
  VM_FILES,
  writeVmDirToken,
} from "../qemu/vm_dir.ts";
import { sharedMonitor } from "../qemu/monitor.ts";
import { clearSetIdBits } from "../qemu/set_id_bits.ts";
import {
  type DetachedVmRecord,
  formatDetachedVmRecord,
  parseDetachedVmRecord,
} from "./detached_record.ts";
import { makeVm } from "./_make_vm.ts";
import type { BootedVm, StopOptions, Vm } from "./vm.ts";

/** Options of {@linkcode detachVm}. */
export interface DetachVmOptions {
  /** Digest of the image. @default {undefined} */
  digest?: string;
  /** Default grace period of a later stop, in milliseconds. @default {10_000} */
  graceMs?: number;
}

/** Options of functions that find or use a detached VM. */
export interface UseDetachedVmOptions {
  /** Ends waits for other processes when aborted. */
  signal?: AbortSignal;
  /** Receives events. */
  onEvent?: OnEvent;
}

const DEFAULT_STOP_GRACE_MS = 10_000;
/** Records are smaller, but a cloned workspace may contain a file of any size. */
const MAX_RECORD_BYTES = 1024 * 1024;
const END_POLL_MS = 100;

/**
 * Lets a VM outlive this process and saves a record of it.
 *
 * Needs `--allow-read` and `--allow-write` for the record.
 *
 * @param vm A VM of this process, which cannot use it afterwards.
 * @param path Path of the record's file.
 * @param options Contents of the record; signal.
 * @returns The saved record.
 * @throws {ToolsmithError} `usage` when the file records a running VM, `file_unreadable`
 * when another user could write there. The VM stays with this process then.
 */
export async function detachVm(
  vm: BootedVm,
  path: string,
  options: DetachVmOptions & UseDetachedVmOptions = {},
): Promise<DetachedVmRecord> {
  const { digest, graceMs = DEFAULT_STOP_GRACE_MS, signal } = options;
  if (vm.needsThisProcess) throw networkNeedsProcessError();
  const link = await workspaceSymlinkReason(resolve(path));
  if (link) throw untrustedRecordError(path, link, "remove the symbolic link");
  await Deno.mkdir(dirname(path), { recursive: true });
  const why = await untrustedReason(path);
  const hint = "use a workspace that only this user can write: chmod go-w";
  if (why) throw untrustedRecordError(path, why, hint);
  using _lock = await acquireFileLock(`${path}.lock`, { signal });
  if (await readRecordOrCleanUp(path, signal)) throw alreadyRunningError(path);
  const record: DetachedVmRecord = {
    layout: 1,
    ...vm.facts,
    ...digest === undefined ? {} : { digest },
    since: new Date().toISOString(),
    graceMs,
    token: await writeVmDirToken(vm.facts.dir),
  };
  const text = formatDetachedVmRecord(record);
  await replaceFileAtomically(path, text, { mode: 0o600 });
  await vm.leaveRunning();
  return record;
}

/**
 * Finds the running VM of a record, and removes the record of a VM that has ended. A
 * record that another user could have written is ignored: commands and their environment
 * would be sent to a VM of that user.
 *
 * Needs `--allow-read` and `--allow-write` for the record, and for the VM's directory
 * `--allow-net=unix:…` too.
 *
 * @param path Path of the record's file.
 * @param options Signal for the wait for the lock; receives a warning about an ignored
 * record.
 * @returns The record; `undefined` if its VM does not run.
 * @throws The signal's reason when it is aborted.
 */
export async function findDetachedVm(
  path: string,
  options: UseDetachedVmOptions = {},
): Promise<DetachedVmRecord | undefined> {
  const found = await Deno.lstat(path).catch(() => undefined);
  if (!found) return undefined;
  const link = await workspaceSymlinkReason(resolve(path));
  const why = link ?? await untrustedReason(path);
  if (why) {
    const message = `The detached VM is not used: ${why}`;
    createEmitter(options.onEvent)({ type: "warning", message });
    return undefined;
  }
  const { signal } = options;
  using _lock = await acquireFileLock(`${path}.lock`, { signal });
  return await readRecordOrCleanUp(path, signal);
}

/**
 * Connects to a detached VM. Disposing the result leaves the VM running; `stop` ends it.
 *
 * Needs `--allow-read`, `--allow-write` and `--allow-net=unix:…` for the VM's directory.
 *
 * @param path Path of the record's file.
 * @param record What {@linkcode findDetachedVm} returned.
 * @param options Receives events.
 * @returns The VM.
 */
export function attachDetachedVm(
  path: string,
  record: DetachedVmRecord,
  options: UseDetachedVmOptions = {},
): Vm {
  const monitor = sharedMonitor(record.dir);
  const stopPolling = new AbortController();
  const endReason = new ToolsmithError("guest_failed", "The VM has ended");
  const ended = pollUntilEnded(record, stopPolling.signal);
  // Without the permission to check: an error of whoever waits for the end.
  ended.catch(() => {});
  return makeVm({
    facts: record,
    monitor,
    emit: createEmitter(options.onEvent),
    ended,
    graceMs: record.graceMs,
    endReason: () => Promise.resolve(endReason),
    killQemu: () => killQemu(record),
    async cleanUp(signal) {
      stopPolling.abort();
      await cleanUpEndedVm(path, record, signal);
    },
    async disconnect() {
      stopPolling.abort();
      await monitor[Symbol.asyncDispose]();
    },
  });
}

/**
 * Stops the detached VM of a record.
 *
 * Needs what {@linkcode attachDetachedVm} needs, and `--allow-run` to kill QEMU.
 *
 * @param path Path of the record's file.
 * @param options Grace period, signal and events.
 * @returns The record of the stopped VM.
 * @throws {ToolsmithError} `machine_not_found` when no VM runs.
 */
export async function stopDetachedVm(
  path: string,
  options: StopOptions & UseDetachedVmOptions = {},
): Promise<DetachedVmRecord> {
  const record = await findDetachedVm(path, options);
  if (!record) {
    throw new ToolsmithError("machine_not_found", "No detached VM is running", {
      hint: "start a VM: toolsmith boot --detach",
    });
  }
  await using vm = attachDetachedVm(path, record, options);
  await vm.stop(options);
  return record;
}

/** Reads the record, and cleans up if its VM has ended. The caller holds the lock. */
async function readRecordOrCleanUp(
  path: string,
  signal: AbortSignal | undefined,
): Promise<DetachedVmRecord | undefined> {
  const json = await readSmallJsonObject(path, MAX_RECORD_BYTES);
  const record = parseDetachedVmRecord(json ?? {});
  // Whoever can write to the VM's directory can impersonate the VM.
  if (!record || await untrustedReason(record.dir)) return undefined;
  if (await isVmRunning(record)) return record;
  await cleanUpEndedVm(path, record, signal);
  return undefined;
}

/** Removes the record, and the VM's directory if its token proves the record genuine. */
async function cleanUpEndedVm(
  path: string,
  { dir, token, shares }: DetachedVmRecord,
  signal: AbortSignal | undefined,
) {
  if (await hasVmDirToken(dir, token)) {
    const exports = shares.filter((it) => it.writable && !it.copied);
    await clearSetIdBits(exports.map(({ path }) => path), { signal });
    await removeVmDir(dir);
  }
  await Deno.remove(path).catch(() => {});
}

/** Does QEMU listen on the console's socket? Its process id may have been reused. */
async function isVmRunning({ dir }: DetachedVmRecord): Promise<boolean> {
  try {
    const path = join(dir, VM_FILES.console);
    // A forged record may point to a symlink to another program's socket.
    if ((await Deno.lstat(path)).isSymlink) return false;
    (await Deno.connect({ transport: "unix", path })).close();
    return true;
  } catch (error) {
    // Without permission to check, keep the record.
    if (error instanceof Deno.errors.NotCapable) throw error;
    return !(error instanceof Deno.errors.NotFound) && !isDisconnection(error);
  }
}

/** Kills the recorded process only if its arguments name the VM's directory. */
async function killQemu(record: DetachedVmRecord): Promise<void> {
  if (!await isVmRunning(record)) return;
  const { pid, dir } = record;
  const psArgs = ["-ww", "-o", "args=", "-p", `${pid}`];
  const commandLine = Deno.build.os === "linux"
    ? await Deno.readTextFile(`/proc/${pid}/cmdline`).catch(() => "")
    : (await runProcess("ps", { args: psArgs })).stdout;
  // QEMU's options double the commas in a path.
  if (commandLine.replaceAll(",,", ",").includes(join(dir, VM_FILES.qmp))) {
    return Deno.kill(pid, "SIGKILL");
  }
  throw new ToolsmithError(
    "guest_failed",
    `Cannot kill the VM: process ${pid} in its record is not the VM's QEMU`,
    { hint: `find and kill the process with ${dir} in its arguments` },
  );
}

/** Settles when the VM has ended; never, once the signal is aborted. */
async function pollUntilEnded(record: DetachedVmRecord, signal: AbortSignal) {
  do {
    await sleep(END_POLL_MS, signal).catch(() => new Promise(() => {}));
  } while (await isVmRunning(record));
}

function untrustedRecordError(path: string, why: string, hint: string) {
  const message = `Cannot detach the VM: its record ${path} is unsafe: ${why}`;
  return new ToolsmithError("file_unreadable", message, { hint });
}

/** The error of detaching a VM whose network ends with this process. */
export function networkNeedsProcessError(): ToolsmithError {
  const message =
    "Cannot detach the VM: its network needs Toolsmith, which filters it";
  const hint = "use --network=host-loopback, or do not detach the VM";
  return new ToolsmithError("usage", message, { hint });
}

export function alreadyRunningError(path: string): ToolsmithError {
  const message = `A detached VM is already running: ${path}`;
  const hint = "stop the running VM first: toolsmith stop";
  return new ToolsmithError("usage", message, { hint });
}
