/**
 * Runs a command on a terminal of the guest, for interactive use. The terminal is a
 * serial port of the VM: all guests have its driver, and unread output stays in the
 * guest, while a virtio console would drop it.
 */
import { join } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import {
  TERMINAL_IRQS,
  terminalDevicePath,
  terminalSerialPortId,
} from "../qemu/device_ids.ts";
import { connectToVmSocket } from "../qemu/errors.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { orIfNotFound } from "../system/files.ts";
import { tryFileLock } from "../system/lock.ts";
import { openCommandChannel } from "./_command_channel.ts";
import {
  START_COMMAND_SCRIPT,
  START_ON_TERMINAL_SCRIPT,
} from "./_command_scripts.ts";
import {
  type ExecInGuestOptions,
  type ExecOptions,
  type ExecResult,
  relayUntilExit,
  startScriptArgs,
} from "./exec.ts";
import { closeQuietly } from "./_command_ports.ts";
import { type OutputSink, readUntilMarker } from "./_command_output.ts";

/** The size of a terminal. */
export interface TerminalSize {
  /** Height in lines. */
  rows: number;
  /** Width in characters. */
  columns: number;
}

/** The user's terminal on the host, which the guest's terminal follows. */
export interface HostTerminal {
  /** Keystrokes, including Ctrl-C; called once the guest is ready. */
  keystrokes(): Promise<ReadableStream<Uint8Array>>;
  /** Shows the guest's output; the guest waits while the promise is pending. */
  output: OutputSink;
  /** The current size. */
  size(): TerminalSize;
  /**
   * Calls `changed` after each change of size, until the signal is aborted when the
   * command has ended.
   */
  onResize(changed: () => void, signal: AbortSignal): void;
}

/** How {@linkcode Vm.terminal} runs a command. */
export interface TerminalOptions
  extends Omit<ExecOptions, "stdin" | "stdout" | "stderr"> {
  /** The user's terminal on the host. */
  hostTerminal: HostTerminal;
}

/** How a command on a terminal ended; `stdoutBytes` counts all output. */
export type TerminalResult = Pick<
  ExecResult,
  "code" | "signal" | "stdoutBytes" | "stderrBytes"
>;

export async function execOnTerminal(
  monitor: Monitor,
  command: string,
  options:
    & Omit<TerminalOptions, "hostCwd" | "timeoutMs">
    & Pick<ExecInGuestOptions, "onWait" | "fallbackCwd">,
): Promise<TerminalResult> {
  const startArgs = startScriptArgs(command, options);
  const { hostTerminal, onWait, signal } = options;
  signal?.throwIfAborted();
  using line = await openFreeTerminal(monitor.dir);
  const { rows, columns } = hostTerminal.size();
  const size = [rows, columns].map(String);
  const run = [START_COMMAND_SCRIPT, ...startArgs];
  const start = [START_ON_TERMINAL_SCRIPT, ...size, ...run];
  const shell = { input: line.device, start, signal };
  using ports = await openCommandChannel(monitor, shell, onWait);
  let stdoutBytes = 0;
  const show = (chunk: Uint8Array) => {
    stdoutBytes += chunk.length;
    return hostTerminal.output(chunk);
  };
  const shown = readUntilMarker(line.connection, ports.endMarker, show);
  // The session leader keeps the terminal open until KILL.
  shown.then(() => ports.tellGuest("KILL"), noop);
  const ended = new AbortController();
  const sendSize = () => {
    const { rows, columns } = hostTerminal.size();
    ports.tellGuest(`size ${rows} ${columns}`);
  };
  try {
    hostTerminal.onResize(sendSize, ended.signal);
    // The size may have changed during the start.
    sendSize();
    const keystrokes = await hostTerminal.keystrokes();
    // Relaying the command's output reports a closed terminal.
    keystrokes.pipeTo(line.connection.writable, {
      ...{ preventClose: true, preventAbort: true },
      signal: ended.signal,
    }).catch(noop);
    // An unread terminal would block the command forever.
    const broken = shown.then(() => new Promise<never>(noop));
    const ending = relayUntilExit(monitor, ports, command, options);
    const { code, signal: endedBy } = await Promise.race([ending, broken]);
    return { code, signal: endedBy, stdoutBytes, stderrBytes: 0 };
  } finally {
    ended.abort();
  }
}

async function openFreeTerminal(dir: string) {
  for (let index = 0; index < TERMINAL_IRQS.length; index++) {
    using undo = new DisposableStack();
    const path = join(dir, terminalSerialPortId(index));
    const lock = undo.use(await tryFileLock(`${path}.lock`));
    if (!lock) continue;
    const connection = await orIfNotFound(connectToVmSocket(path));
    if (!connection) {
      const hint =
        "VMs for arm64 have no terminals: use toolsmith run; if an older Toolsmith booted the VM, run toolsmith stop and boot again";
      const message = "Cannot open a terminal: the VM has none";
      throw new ToolsmithError("guest_failed", message, { hint });
    }
    // Closed already, if writing to it failed.
    undo.defer(() => closeQuietly(connection));
    const device = terminalDevicePath(index);
    return Object.assign(undo.move(), { device, connection });
  }
  throw new ToolsmithError(
    "guest_failed",
    `All ${TERMINAL_IRQS.length} terminals of the VM are in use`,
    { hint: "exit another toolsmith shell, or use toolsmith run" },
  );
}

function noop() {}
