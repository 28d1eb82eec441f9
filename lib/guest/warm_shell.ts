/**
 * A warm shell waits in a guest for its first command. It starts before the guest is
 * saved, so that no restored VM spends time on starting a shell and its pipes.
 */
import { ToolsmithError } from "../errors.ts";
import { VmDisconnectedError } from "../qemu/errors.ts";
import type { Monitor } from "../qemu/monitor.ts";
import { writeAll } from "../system/write_all.ts";
import { abortable } from "../system/time.ts";
import { startShellOnPorts, waitForReadyLine } from "./_command_channel.ts";
import { sendLine } from "./_command_stdin.ts";
import { readUntilMarker } from "./_command_output.ts";
import type { CommandPorts } from "./_command_ports.ts";
import { RUN_ON_PORTS_SCRIPT, WARM_SHELL_SCRIPT } from "./_command_scripts.ts";

export { connectFirstCommandPorts } from "./_command_ports.ts";

/** A guest shell that can set up the guest and then runs one command. */
export type WarmShell = ReturnType<typeof warmShellOnPorts>;

/** Scripts that run in a saved guest; a part of the snapshot's key. */
export const SAVED_GUEST_SCRIPTS: readonly string[] = [
  RUN_ON_PORTS_SCRIPT,
  WARM_SHELL_SCRIPT,
];

/** A shell reads byte by byte: for longer commands a new shell is faster. */
const MAX_WARM_COMMAND_BYTES = 2048;
/** Adding an argument copies those before it. */
const MAX_WARM_COMMAND_ARGS = 64;
/** Each escaped argument costs the shell a process. */
const MAX_ESCAPED_ARGS = 8;
/** Exit status, and the guest agent's process id for the shell. */
const SETUP_TRAILER_PATTERN = /^(\d{1,3}) (\d{1,10})$/;

export async function startWarmShell(monitor: Monitor, signal?: AbortSignal) {
  const shell = { input: "yes", start: [WARM_SHELL_SCRIPT], signal };
  const ports = await monitor.runExclusively(
    () => startShellOnPorts(monitor, shell),
    signal,
  );
  // No command has used the boot ports yet, so ports are free.
  return warmShellOnPorts(monitor, ports!);
}

export function warmShellOnPorts(monitor: Monitor, bootPorts: CommandPorts) {
  bootPorts.monitor = monitor;
  /** `undefined` once the shell runs a command. */
  let freePorts: CommandPorts | undefined = bootPorts;
  return {
    /**
     * Runs the setup script, before the shell becomes a command. Throws
     * {@linkcode VmDisconnectedError} for a malformed answer.
     */
    async setUpGuest(args: string[], signal?: AbortSignal) {
      using undo = new DisposableStack();
      undo.use(this);
      if (!freePorts) throw new VmDisconnectedError();
      const { stderr, endMarker } = freePorts;
      const request = encodeRequest("setup", endMarker, args);
      await abortable(writeAll(stderr, request), signal);
      const answer = readUntilMarker(stderr, endMarker);
      const { trailer, text } = await abortable(answer, signal);
      const [, code, shell] = SETUP_TRAILER_PATTERN.exec(trailer) ?? [];
      if (code === undefined) throw new VmDisconnectedError();
      freePorts.shellPid = Number(shell);
      undo.move();
      return { exitCode: Number(code), stdout: text };
    },
    /**
     * Runs a command, with the arguments of a command request; `undefined` if the shell
     * is used or has not set up the guest, or the command is too long.
     */
    async startCommand(args: string[], signal?: AbortSignal) {
      if (freePorts?.shellPid === undefined) return undefined;
      const { endMarker, stderr, stdin } = freePorts;
      const request = encodeRequest("command", endMarker, args);
      const escaped = args.filter((arg) => escapeUnprintable(arg) !== arg);
      const isTooLong = request.length > MAX_WARM_COMMAND_BYTES ||
        args.length > MAX_WARM_COMMAND_ARGS ||
        escaped.length > MAX_ESCAPED_ARGS;
      if (isTooLong) return undefined;
      using undo = new DisposableStack();
      const ports = undo.use(freePorts);
      freePorts = undefined;
      try {
        await abortable(writeAll(stderr, request), signal);
        if (args[0] === "no") await abortable(sendLine(stdin!, "0"), signal);
        await waitForReadyLine(monitor, ports, signal);
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
      if (freePorts) freePorts.monitor = undefined;
      this[Symbol.dispose]();
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
  endMarker: string,
  args: string[],
): Uint8Array {
  const words = args.map((arg) => `${escapeUnprintable(arg)}\n`);
  const line = `${kind} ${args.length} ${endMarker}\n`;
  return new TextEncoder().encode(line + words.join(""));
}

/** Escapes unprintable bytes for the guest's `printf %b`. */
function escapeUnprintable(arg: string): string {
  const escape = (byte: number) => `\\0${byte.toString(8).padStart(3, "0")}`;
  return arg.replace(
    /[^ -[\]-~]/gu,
    (char) => Array.from(new TextEncoder().encode(char), escape).join(""),
  );
}
