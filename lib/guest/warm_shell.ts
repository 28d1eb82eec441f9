/**
 * A warm shell waits in a guest for its first command. It starts before the guest is
 * saved, so that no restored VM spends time on starting a shell and its pipes.
 */
import { ToolsmithError } from "../errors.ts";
import { VmDisconnectedError } from "../qemu/errors.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { writeAll } from "../system/write_all.ts";
import { abortable, settlesWithin } from "../system/time.ts";
import {
  type CommandChannelOptions,
  startShellOnPorts,
  waitForReadyLine,
} from "./_command_channel.ts";
import { sendLine } from "./_command_stdin.ts";
import { readUntilMarker } from "./_command_output.ts";
import {
  type CommandPorts,
  connectFirstCommandPorts,
} from "./_command_ports.ts";
import type { AgentProcessStatus } from "./_agent_process.ts";
import { RUN_ON_PORTS_SCRIPT, WARM_SHELL_SCRIPT } from "./_command_scripts.ts";

export { connectFirstCommandPorts };

/** A guest shell that can set up the guest and then runs one command. */
export type WarmShell = ReturnType<typeof warmShellOnPorts>;

type GuestSetupLimits = { timeoutMs: number; signal?: AbortSignal };

/** Scripts that run in a saved guest; a part of the snapshot's key. */
export const SAVED_GUEST_SCRIPTS: readonly string[] = [
  RUN_ON_PORTS_SCRIPT,
  WARM_SHELL_SCRIPT,
];

/** A shell reads byte by byte: for longer commands a new shell is faster. */
const MAX_WARM_COMMAND_BYTES = 2048;
const MAX_WARM_COMMAND_ARGS = 64;
/** Each escaped argument costs the shell a process. */
const MAX_ESCAPED_ARGS = 8;
const SHELL_ANSWER_TIMEOUT_MS = 30_000;
/** Exit status, and the guest agent's process id for the shell. */
const SETUP_TRAILER_PATTERN = /^(\d{1,3}) (\d{1,10})$/;

/** Starts a warm shell in a booted guest, before it is saved. */
export async function startWarmShell(
  monitor: Monitor,
  signal?: AbortSignal,
): Promise<WarmShell> {
  const start = ({ baseName }: CommandPorts) =>
    Promise.resolve(
      [RUN_ON_PORTS_SCRIPT, "sh", baseName, "yes", WARM_SHELL_SCRIPT],
    );
  const options = { hasStdin: true, signal };
  const ports = await monitor.runExclusively(
    () => startShellOnPorts(monitor, start, options),
    signal,
  );
  // No command has used the boot ports yet, so ports are free.
  return warmShellOnPorts(monitor, ports!);
}

/** A warm shell that already waits at the boot ports. */
export function warmShellOnPorts(monitor: Monitor, bootPorts: CommandPorts) {
  bootPorts.monitor = monitor;
  /** `undefined` once the shell runs a command. */
  let freePorts: CommandPorts | undefined = bootPorts;
  let hasMarker = false;

  async function setUp(
    ports: CommandPorts,
    args: string[],
    { timeoutMs, signal }: GuestSetupLimits,
  ): Promise<AgentProcessStatus> {
    const { stderr, endMarker } = ports;
    const before = hasMarker ? [] : [endMarker];
    hasMarker = true;
    const lines = encodeRequest("setup", args, before);
    await abortable(writeAll(stderr, lines), signal);
    const answer = readUntilMarker(stderr, endMarker);
    if (!await settlesWithin(answer, timeoutMs, { signal })) {
      throw new VmDisconnectedError();
    }
    const { trailer, text: stdout } = await answer;
    const [, code, shell] = SETUP_TRAILER_PATTERN.exec(trailer) ?? [];
    if (code === undefined) throw new VmDisconnectedError();
    ports.shellPid = Number(shell);
    return { exited: true, exitCode: Number(code), stdout };
  }

  return {
    /**
     * Runs the setup script, before the shell becomes a command. Throws
     * {@linkcode VmDisconnectedError} when the answer is missing or malformed.
     */
    async setUpGuest(args: string[], limits: GuestSetupLimits) {
      try {
        if (!freePorts) throw new VmDisconnectedError();
        return await setUp(freePorts, args, limits);
      } catch (error) {
        this[Symbol.dispose]();
        throw error;
      }
    },
    /** Runs a command; `undefined` if the shell is used or the command is too long. */
    async startCommand(
      { startArgs, hasStdin, signal }: Pick<
        CommandChannelOptions,
        "startArgs" | "hasStdin" | "signal"
      >,
    ): Promise<CommandPorts | undefined> {
      const all = [hasStdin ? "yes" : "no", ...startArgs];
      if (!freePorts || !fitsWarmShell(all)) return undefined;
      using undo = new DisposableStack();
      const ports = undo.use(freePorts);
      freePorts = undefined;
      try {
        const timeoutMs = SHELL_ANSWER_TIMEOUT_MS;
        if (!hasMarker) await setUp(ports, [], { timeoutMs, signal });
        const request = encodeRequest("command", all);
        await abortable(writeAll(ports.stderr, request), signal);
        if (!hasStdin) await abortable(sendLine(ports.stdin!, "0"), signal);
        await waitForReadyLine(monitor, ports, { signal });
      } catch (error) {
        signal?.throwIfAborted();
        // An earlier command may have killed the shell. This command has not started,
        // so a new shell can run it, or report a lost VM.
        if (error instanceof ToolsmithError) return undefined;
        throw error;
      }
      undo.move();
      return ports;
    },
    /** Closes the shell's ports: the VM is ending. */
    disconnect() {
      freePorts?.disconnect();
      freePorts = undefined;
    },
    [Symbol.dispose]() {
      freePorts?.[Symbol.dispose]();
      freePorts = undefined;
    },
  };
}

/** A request as {@linkcode WARM_SHELL_SCRIPT} reads it. */
function encodeRequest(
  kind: "setup" | "command",
  args: string[],
  before: string[] = [],
): Uint8Array {
  const words = args.map(escapeUnprintable);
  const lines = [...before, `${kind} ${args.length}`, ...words];
  return new TextEncoder().encode(lines.map((line) => `${line}\n`).join(""));
}

/** Whether reading the request is faster than starting a new shell. */
function fitsWarmShell(args: string[]): boolean {
  const isEscaped = (arg: string) => escapeUnprintable(arg) !== arg;
  return args.length <= MAX_WARM_COMMAND_ARGS &&
    encodeRequest("command", args).length <= MAX_WARM_COMMAND_BYTES &&
    args.filter(isEscaped).length <= MAX_ESCAPED_ARGS;
}

/** Escapes unprintable bytes for the guest's `printf %b`. */
function escapeUnprintable(arg: string): string {
  const bytes = Array.from(new TextEncoder().encode(arg));
  return bytes.map((byte) => {
    const isPlain = byte >= 0x20 && byte < 0x7f && byte !== 0x5c;
    return isPlain
      ? String.fromCharCode(byte)
      : `\\0${byte.toString(8).padStart(3, "0")}`;
  }).join("");
}
