/**
 * Runs commands in a guest. The guest agent or a warm shell starts each command; its
 * streams use their own virtio-serial ports, so that output of several commands
 * arrives at once, byte for byte.
 */
import { ToolsmithError } from "../errors.ts";
import { VmDisconnectedError } from "../qemu/errors.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { sleep } from "../system/time.ts";
import { queryProcessStatus } from "./_agent_process.ts";
import { openCommandChannel } from "./_command_channel.ts";
import { START_COMMAND_SCRIPT } from "./_command_scripts.ts";
import { type CommandInput, sendStdin } from "./_command_stdin.ts";
import { type OutputSink, readUntilMarker } from "./_command_output.ts";
import type { CommandPorts } from "./_command_ports.ts";
import type { WarmShell } from "./warm_shell.ts";

export type { CommandInput, OutputSink };

/** When a command is stopped. */
export interface ExecStopOptions {
  /** Timeout of the command, in milliseconds. @default {Infinity} */
  timeoutMs?: number;
  /** Time between TERM and KILL, in milliseconds. @default {2000} */
  killAfterMs?: number;
  /** Stops the command when aborted. */
  signal?: AbortSignal;
}

/** How {@linkcode Vm.exec} runs a command. */
export interface ExecOptions extends ExecStopOptions {
  /** Arguments, each passed byte for byte. @default {[]} */
  args?: string[];
  /** Standard input. @default {undefined} nothing */
  stdin?: CommandInput;
  /** Receives standard output. @default {undefined} output is collected */
  stdout?: OutputSink;
  /** Receives standard error. @default {undefined} output is collected */
  stderr?: OutputSink;
  /** Variables added to, or overriding, the guest's environment. @default {{}} */
  env?: Record<string, string>;
  /**
   * Working directory in the guest; a relative one starts from the guest's path of
   * `hostCwd`.
   *
   * @default {undefined} the guest's path of `hostCwd`
   */
  cwd?: string;
  /**
   * A host directory in the workspace or an export, such as `Deno.cwd()`: the command
   * starts in the guest's path of the directory.
   *
   * @default {undefined} `/mnt/work`, also for a directory that the guest does not
   * have; `/` if no workspace is mounted
   */
  hostCwd?: string;
}

export interface ExecInGuestOptions
  extends Omit<ExecOptions, "hostCwd" | "timeoutMs"> {
  /** Used if `cwd` does not exist. @default {undefined} a missing `cwd` fails */
  fallbackCwd?: string;
  /** Called once if the command waits for free ports. */
  onWait?: () => void;
  /** Runs the command, if it is free. @default {undefined} none */
  warmShell?: WarmShell;
}

/** How a command ended. */
export interface ExecResult {
  /** Exit status; 128 plus the signal number for a signal. */
  code: number;
  /**
   * The signal that ended the command, or `null`. A status of 130 or 141 counts
   * as SIGINT or SIGPIPE, which the guest's shell cannot tell from an exit.
   */
  signal: Deno.Signal | null;
  /** Collected standard output as text; empty with a sink. */
  stdout: string;
  /** Collected standard error as text; empty with a sink. */
  stderr: string;
  /** Whether a stream exceeded the 32 MiB that are collected. */
  truncated: boolean;
  /** Number of bytes on standard output. */
  stdoutBytes: number;
  /** Number of bytes on standard error. */
  stderrBytes: number;
}

const SHELL_EXIT_POLL_MS = 3_000;
const TERM_TO_KILL_MS = 2_000;
/** The guest may not deliver even KILL. */
const WAIT_AFTER_KILL_MS = 2_000;

/** Linux signals, from number 1 on. */
const LINUX_SIGNALS =
  "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM"
    .split(" ").map((name) => `SIG${name}` as Deno.Signal);

/** Shells do not report when these signals end a command. */
const UNREPORTED_SIGNALS: (Deno.Signal | null)[] = ["SIGINT", "SIGPIPE"];
/** Exit status, and `s` if the shell reported a signal. */
const EXIT_TRAILER_PATTERN = /^(\d{1,3})(s?)$/;

export async function execInGuest(
  monitor: Monitor,
  command: string,
  options: ExecInGuestOptions = {},
): Promise<ExecResult> {
  const startArgs = startScriptArgs(command, options);
  const { onWait, warmShell, signal } = options;
  signal?.throwIfAborted();
  const input = options.stdin === undefined ? "no" : "yes";
  const shell = { input, start: [START_COMMAND_SCRIPT, ...startArgs], signal };
  using ports = await warmShell?.startCommand([input, ...startArgs], signal) ??
    await openCommandChannel(monitor, shell, onWait);
  return await relayUntilExit(monitor, ports, command, options);
}

/** Validates the command; returns arguments of {@linkcode START_COMMAND_SCRIPT}. */
export function startScriptArgs(
  command: string,
  options: Pick<ExecInGuestOptions, "cwd" | "fallbackCwd" | "env" | "args">,
): string[] {
  const { cwd = "/", fallbackCwd = cwd, env = {}, args = [] } = options;
  const variables = Object.entries(env);
  for (const [name] of variables) {
    if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(name)) {
      throw usageError(`Invalid name of an environment variable: ${name}`);
    }
  }
  if (command === "") throw usageError("The command is empty");
  const startArgs = [
    cwd,
    fallbackCwd,
    `${variables.length}`,
    ...variables.map(([name, value]) => `${name}=${value}`),
    command,
    ...args,
  ];
  for (const arg of startArgs) {
    if (arg.includes("\0")) {
      throw usageError("A command, argument or variable contains a zero byte");
    }
    // A lone surrogate would arrive as another character.
    if (!arg.isWellFormed()) {
      throw usageError("A command, argument or variable is not valid Unicode");
    }
  }
  return startArgs;
}

function usageError(message: string): ToolsmithError {
  return new ToolsmithError("usage", message);
}

/** Relays a command's streams until it ends. The caller disposes the ports then. */
export async function relayUntilExit(
  monitor: Monitor,
  ports: CommandPorts,
  command: string,
  options: ExecInGuestOptions,
): Promise<ExecResult> {
  const { signal = new AbortController().signal, killAfterMs } = options;
  const stop = new AbortController();
  const fed = ports.stdin && options.stdin !== undefined
    ? sendStdin(ports.stdin, options.stdin, stop.signal)
    : undefined;
  const inputFails = new Promise<never>((_, reject) =>
    fed?.catch((error) => {
      // EPIPE is fine: the command need not read all of its input.
      if (error instanceof ToolsmithError) reject(error);
    })
  );
  try {
    const how = { signal, stop: stop.signal, killAfterMs };
    const [out, err] = await Promise.race([
      Promise.all([
        readUntilMarker(ports.stdout, ports.endMarker, options.stdout),
        readUntilMarker(ports.stderr, ports.endMarker, options.stderr),
      ]),
      watchCommand(monitor, ports, how),
      inputFails,
    ]);
    signal.throwIfAborted();
    if (err.trailer !== "") {
      throw startFailureError(command, options.cwd, err.trailer);
    }
    return {
      ...parseExitTrailer(out.trailer),
      stdout: out.text,
      stderr: err.text,
      truncated: out.truncated || err.truncated,
      stdoutBytes: out.byteCount,
      stderrBytes: err.byteCount,
    };
  } finally {
    stop.abort();
  }
}

/**
 * Sends TERM, then KILL, when the signal is aborted, and polls the shell around the
 * command. Rejects with the signal's reason when the command has not ended after KILL,
 * and when the shell has exited without sending its end marker.
 */
export async function watchCommand(
  monitor: Monitor,
  ports: Pick<CommandPorts, "shellPid" | "tellGuest">,
  { signal, stop, killAfterMs = TERM_TO_KILL_MS }: {
    signal: AbortSignal;
    /** Ends the watch. */
    stop: AbortSignal;
    killAfterMs?: number;
  },
) {
  const endOnAbort = async () => {
    await sleep(Infinity, AbortSignal.any([signal, stop])).catch(noop);
    stop.throwIfAborted();
    ports.tellGuest("TERM");
    await sleep(killAfterMs, stop);
    ports.tellGuest("KILL");
    await sleep(WAIT_AFTER_KILL_MS, stop);
    throw signal.reason;
  };
  const detectShellExit = async () => {
    do await sleep(SHELL_EXIT_POLL_MS, stop); while (
      !(await queryProcessStatus(monitor, ports.shellPid!, stop)).exited
    );
    // The last bytes may still be in transit.
    await sleep(SHELL_EXIT_POLL_MS, stop);
    throw new VmDisconnectedError();
  };
  return await Promise.race<never>([endOnAbort(), detectShellExit()]);
}

/** Validates the trailer: the guest is untrusted. */
function parseExitTrailer(trailer: string) {
  const [, status, reported] = EXIT_TRAILER_PATTERN.exec(trailer) ?? [];
  const code = Number(status);
  if (!(code <= 255)) throw new VmDisconnectedError();
  const signal = LINUX_SIGNALS[code - 129] ?? null;
  const known = reported || UNREPORTED_SIGNALS.includes(signal);
  return { code, signal: known ? signal : null };
}

/**
 * The error for a trailer of the scripts in `_command_scripts.ts`. An unknown one
 * counts as a lost connection: the guest is untrusted.
 */
function startFailureError(
  command: string,
  cwd: string | undefined,
  trailer: string,
): ToolsmithError {
  const toolHint =
    "pass a guest path, or add the command to the manifest's tools";
  const cwdHint = "use an existing guest directory; the workspace is /mnt/work";
  const terminalHint =
    "use an image with stty, setsid -c and 8250 serial ports";
  const failures = new Map([
    ["N", [`Command not found in the guest: ${command}`, toolHint]],
    ["A", [`Command not executable in the guest: ${command}`, toolHint]],
    ["D", [`No such directory in the guest: ${cwd}`, cwdHint]],
    ["T", ["Cannot open a terminal in the guest", terminalHint]],
  ]);
  const [message, hint] = failures.get(trailer) ?? [];
  if (message === undefined) return new VmDisconnectedError();
  const code = "NA".includes(trailer) ? "command_not_found" : "guest_failed";
  return new ToolsmithError(code, message, { hint });
}

function noop() {}
