/**
 * Makes a {@linkcode Vm} from its parts: runs commands, emits their events, stops.
 */
import { type Emit, nextCommandId } from "../events.ts";
import {
  execInGuest,
  type ExecInGuestOptions,
  type ExecOptions,
} from "../guest/exec.ts";
import { syncCopiedExports } from "../guest/share_copy.ts";
import { execOnTerminal, type TerminalResult } from "../guest/terminal.ts";
import type { WarmShell } from "../guest/warm_shell.ts";
import { join, relative, SEPARATOR } from "../path.ts";
import { VmDisconnectedError } from "../qemu/errors.ts";
import type { GuestShare } from "../qemu/args.ts";
import { DISK_ERROR_QUERIES, diskErrorFromStatus } from "../qemu/qmp.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { abortable, settlesWithin, startDeadline } from "../system/time.ts";
import { WORKSPACE_TAG } from "./shares.ts";
import type { StopOptions, Vm, VmFacts } from "./vm.ts";

/** What differs between a VM of this process and a detached one. */
export interface VmParts {
  facts: VmFacts;
  monitor: Monitor;
  warmShell?: WarmShell;
  /** Settles when QEMU has exited. Never rejects. */
  ended: Promise<void>;
  /** Resolves with the reason when QEMU stops the guest for good. */
  haltError?: Promise<Error>;
  /** The default for {@linkcode StopOptions.graceMs}. */
  graceMs: number;
  endReason: () => Promise<Error | undefined>;
  killQemu: () => Promise<void>;
  /** Releases resources and clears set-ID bits in exports, after QEMU's end. */
  cleanUp: (signal?: AbortSignal) => Promise<void>;
  /** Disposes the VM without stopping it. @default {undefined} disposing stops it */
  disconnect?: () => Promise<void>;
  emit: Emit;
}

const QMP_COMMAND_TIMEOUT_MS = 3_000;
const QUIT_TIMEOUT_MS = 5_000;
/** A VM's connections break before its end is noticed, on a busy host long before. */
const END_DETECTION_MS = 5_000;
const NO_FREE_COMMAND_PORT_WARNING =
  "The VM runs as many commands as it can: waiting for one to end";

export function makeVm(parts: VmParts): Vm {
  const { facts, warmShell, ended } = parts;
  // Commands of a stopped guest never end. One listener aborts them all: listeners per
  // command on a promise would accumulate.
  const halt = new AbortController();
  parts.haltError?.then((error) => halt.abort(error));
  const running = { ...parts, halted: halt.signal };
  let stopping: Promise<void> | undefined;
  const vm: Vm = {
    facts,
    ended,
    exec: (command, options = {}) =>
      runCommand(running, execInGuest, command, { ...options, warmShell }),
    terminal: (command, options) =>
      runCommand(running, execOnTerminal, command, options),
    stop(options = {}) {
      // An aborted stop may be repeated.
      stopping ??= endVm(parts, options).catch((error) => {
        stopping = undefined;
        throw error;
      });
      return stopping;
    },
    [Symbol.asyncDispose]: parts.disconnect ?? (() => vm.stop()),
  };
  return vm;
}

async function runCommand<
  Options extends Omit<ExecOptions, "stdin" | "stdout" | "stderr">,
  Result extends TerminalResult,
>(
  parts: VmParts & { halted: AbortSignal },
  run: (
    monitor: Monitor,
    command: string,
    options: Options & Pick<ExecInGuestOptions, "fallbackCwd" | "onWait">,
  ) => Promise<Result>,
  command: string,
  options: Options,
): Promise<Result> {
  const { facts: { shares }, monitor, halted, emit } = parts;
  const id = nextCommandId();
  const begun = performance.now();
  emit({ type: "command_dispatch", id, command, backend: "qemu" });
  const { timeoutMs } = options;
  using deadline = startDeadline(timeoutMs, "The command", options.signal);
  const { signal } = deadline;
  const onWait = () =>
    emit({ type: "warning", message: NO_FREE_COMMAND_PORT_WARNING });
  const work = async () => {
    const added = await guestCwdAndEnv(shares, options);
    const inGuest = { ...options, ...added, onWait, signal };
    const result = await run(monitor, command, inGuest);
    try {
      await syncCopiedExports(monitor, shares, { emit, signal });
    } finally {
      const { code, signal: endedBy, stdoutBytes, stderrBytes } = result;
      const elapsedMs = Math.round(performance.now() - begun);
      const how = { code, signal: endedBy, stdoutBytes, stderrBytes };
      emit({ type: "command_end", id, ...how, elapsedMs });
    }
    return result;
  };
  try {
    return await abortable(work(), halted);
  } catch (error) {
    throw await explainCommandError(parts, error);
  }
}

/** Maps the caller's directory and environment to the guest's. */
export async function guestCwdAndEnv(
  shares: GuestShare[],
  { cwd = "", hostCwd, env = {} }: ExecOptions,
): Promise<Pick<ExecInGuestOptions, "cwd" | "fallbackCwd" | "env">> {
  const all = { env: withGitSafeDirectory(env) };
  if (cwd.startsWith("/")) return { ...all, cwd };
  const hasWorkspace = shares.some(({ tag }) => tag === WORKSPACE_TAG);
  const root = hasWorkspace ? `/mnt/${WORKSPACE_TAG}` : "/";
  const here = hostCwd && await guestPathOf(shares, hostCwd) || root;
  // A copied workspace may be older than the directory: fall back to its root.
  return cwd === ""
    ? { ...all, cwd: here, fallbackCwd: root }
    : { ...all, cwd: join(here, cwd) };
}

async function guestPathOf(shares: GuestShare[], dir: string) {
  const path = await Deno.realPath(dir).catch(() => dir);
  const [nearest] = shares
    .map((share) => ({ tag: share.tag, inside: relative(share.path, path) }))
    .filter(({ inside }) => inside.split(SEPARATOR)[0] !== "..")
    .sort((a, b) => a.inside.length - b.inside.length);
  return nearest && join(`/mnt/${nearest.tag}`, nearest.inside);
}

/**
 * Lets git trust all repositories (git-config(1), `safe.directory`; git 2.38 or newer).
 * It rejects those of other users, which the host's are to the guest's root, and
 * workspaces nest repositories. The guest isolates the host from them.
 */
function withGitSafeDirectory(env: Record<string, string>) {
  const count = env.GIT_CONFIG_COUNT ?? "0";
  // git itself reports a malformed count.
  if (!/^\d{1,6}$/.test(count)) return env;
  const at = Number(count);
  return {
    ...env,
    GIT_CONFIG_COUNT: `${at + 1}`,
    [`GIT_CONFIG_KEY_${at}`]: "safe.directory",
    [`GIT_CONFIG_VALUE_${at}`]: "*",
  };
}

/**
 * Replaces a lost connection by the reason why the VM ended, and an agent's silence by
 * the disk error for which QEMU stopped the guest.
 */
async function explainCommandError(parts: VmParts, error: unknown) {
  if (error instanceof VmDisconnectedError) {
    if (!await settlesWithin(parts.ended, END_DETECTION_MS)) return error;
    return await parts.endReason() ?? error;
  }
  const { code } = error as { code?: unknown };
  if (code !== "guest_failed" && code !== "timeout") return error;
  using limit = startDeadline(QMP_COMMAND_TIMEOUT_MS, "query-status");
  const answers = await parts.monitor.qemu(DISK_ERROR_QUERIES, limit.signal)
    .catch(() => []);
  return diskErrorFromStatus(answers) ?? error;
}

/** Powers the guest down, else quits QEMU, else kills it. */
async function endVm(
  parts: VmParts,
  { graceMs = parts.graceMs, signal }: StopOptions,
): Promise<void> {
  const { monitor, ended, emit } = parts;
  const begun = performance.now();
  const endsBy = async (command: string, ms: number) => {
    // Another process may hang while it holds the monitor's lock.
    using limit = startDeadline(QMP_COMMAND_TIMEOUT_MS, command, signal);
    await monitor.qemu([[command]], limit.signal).catch(() => {});
    signal?.throwIfAborted();
    return await settlesWithin(ended, ms, { signal });
  };
  const how = await settlesWithin(ended, 0) ||
      graceMs > 0 && await endsBy("system_powerdown", graceMs)
    ? "powered_down"
    : await endsBy("quit", QUIT_TIMEOUT_MS)
    ? "stopped"
    : "killed";
  if (how === "killed") await parts.killQemu();
  await monitor[Symbol.asyncDispose]();
  await parts.cleanUp(signal);
  const elapsedMs = Math.round(performance.now() - begun);
  emit({ type: "shutdown", how, elapsedMs });
}
