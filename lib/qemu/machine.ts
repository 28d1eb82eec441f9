/**
 * A running QEMU. It never outlives its owner: a watcher beside it reads a pipe
 * that this process holds, and kills QEMU when the pipe ends, whatever ended
 * this process.
 *
 * @module
 */
import { AcceleratorError } from "./errors.ts";
import { join } from "@std/path";
import type { Accelerator } from "./accelerator.ts";
import {
  type ConsoleFailure,
  consoleTail,
  findConsoleFailure,
} from "./_console.ts";
import { ToolsmithError } from "../errors.ts";
import { AGENT } from "./devices.ts";
import { MACHINE_FILES } from "./machine_dir.ts";
import { type Child, type ProcessExit, spawn } from "../system/process.ts";
import { type MachineOptions, qemuArgs } from "./args.ts";
import { qemuNotFound } from "./program.ts";
import { writeAll } from "../system/streams.ts";
import { sleep } from "../system/time.ts";
import { openQmp, type Qmp, type QmpEvent } from "./qmp.ts";

/** A running QEMU. */
export interface Machine extends AsyncDisposable {
  /** The process id. */
  readonly pid: number;
  /** How the guest's instructions are run. */
  readonly accelerator: Accelerator;
  /** The connection to QEMU. */
  readonly qmp: Qmp;
  /** Settles when QEMU has ended. Never rejects. */
  readonly ended: Promise<ProcessExit>;
  /** Has the guest's agent opened its port? */
  agentSeen(): boolean;
  /** Has QEMU stopped the guest by itself? */
  stopped(): boolean;
  /** What the serial console says about a guest that has failed. */
  consoleFailure(): ConsoleFailure | undefined;
  /** The last lines of the serial console, without control characters. */
  tail(): string;
  /** The last lines that QEMU wrote to its standard error, in one. */
  stderrTail(): string;
  /** Writes to the serial console. */
  type(bytes: Uint8Array): Promise<void>;
  /** Lets QEMU live on when this process ends. */
  release(): Promise<void>;
}

/** What {@linkcode startMachine} takes besides the machine itself. */
export interface StartMachineOptions extends MachineOptions {
  /** The QEMU program. */
  program: string;
  /** A snapshot's memory and devices, to restore. @default {undefined} */
  incoming?: string;
  /** Sees what the guest writes to its serial console. */
  onConsole?: (chunk: Uint8Array) => void;
  /** Ends the start when aborted, but not a machine that has started. */
  signal?: AbortSignal;
}

/**
 * Becomes QEMU, with a watcher in the background. Arguments: the directory, the
 * snapshot to restore or nothing, the program, its arguments. The pipe brings a
 * line when all is well; if it ends without, its writer is dead, and QEMU and
 * the directory have to go.
 */
const SUPERVISOR = `
directory=$1 state=$2
shift 2
exec 3<&0
(
  trap '' HUP INT TERM
  exec >/dev/null 2>&1
  read -r word <&3 || {
    kill -KILL $$
    rm -rf -- "$directory"
  }
) &
[ -z "$state" ] || exec 9<"$state"
exec "$@" </dev/null 3<&- >/dev/null 2>"$directory/${MACHINE_FILES.log}"
`;

const POLL_MS = 10;
const CONSOLE_KEPT = 64 * 1024;

/**
 * Starts QEMU. Its processor stands still until QMP's `cont`.
 *
 * Needs `--allow-run=sh`, and `--allow-read`, `--allow-write` and
 * `--allow-net=unix:…` for the directory.
 *
 * @param options The machine and how to start it.
 * @returns The machine, once QEMU answers and its console is connected.
 * @throws {ToolsmithError} `qemu_not_found`, `boot_failed`.
 * @throws The signal's reason when it is aborted.
 */
export async function startMachine(
  options: StartMachineOptions,
): Promise<Machine> {
  const { dir, program, incoming, signal } = options;
  signal?.throwIfAborted();
  const child = spawn("sh", {
    args: [
      ...["-c", SUPERVISOR, "sh", dir, incoming ?? "", program],
      ...qemuArgs(options),
      // The descriptor that the script above opens.
      ...incoming ? ["-incoming", "fd:9"] : [],
    ],
    input: "held",
    detached: true,
  });
  const cancel = () => void child.stop();
  signal?.addEventListener("abort", cancel, { once: true });
  let over = false;
  child.ended.then(() => over = true);
  const seen = { agent: false, stop: false };
  const note = ({ event, data }: QmpEvent) => {
    if (event === "VSERPORT_CHANGE" && data?.id === AGENT) {
      seen.agent ||= data.open === true;
    }
    if (event === "STOP") seen.stop = true;
    if (event === "RESUME") seen.stop = false;
  };
  try {
    // Who connects first finds the sockets ready: QEMU makes them in order.
    const qmp = await whenReady(
      () => openQmp(join(dir, MACHINE_FILES.qmp), { onEvent: note }),
      () => over,
    );
    const serial = await whenReady(
      () => openConsole(join(dir, MACHINE_FILES.console), options.onConsole),
      () => over,
    );
    return machine(child, { options, qmp, serial, seen });
  } catch (error) {
    const { code } = await child.stop();
    signal?.throwIfAborted();
    if (!(error instanceof Over)) throw error;
    const stderrTail = readStderrTail(dir);
    if (code === 127 || code === 126) throw qemuNotFound(program, stderrTail);
    if (
      options.accelerator !== "tcg" &&
      (code >= 128 || /kvm|hvf|accelerator/i.test(stderrTail))
    ) throw new AcceleratorError(stderrTail);
    throw new ToolsmithError(
      "boot_failed",
      `QEMU ended with status ${code}: ${stderrTail || "without a word"}`,
    );
  } finally {
    signal?.removeEventListener("abort", cancel);
  }
}

/** QEMU ended while something was waited for. */
class Over extends Error {}

/** Tries until the socket is there, or QEMU has ended. */
async function whenReady<T>(
  connect: () => Promise<T>,
  isOver: () => boolean,
): Promise<T> {
  while (true) {
    try {
      return await connect();
    } catch (error) {
      if (isOver()) throw new Over();
      if (
        !(error instanceof Deno.errors.NotFound) &&
        !(error instanceof Deno.errors.ConnectionRefused) &&
        !(error instanceof ToolsmithError)
      ) throw error;
    }
    await sleep(POLL_MS);
  }
}

interface MachineParts {
  options: StartMachineOptions;
  qmp: Qmp;
  serial: Serial;
  seen: { agent: boolean; stop: boolean };
}

function machine(child: Child, parts: MachineParts): Machine {
  const { options, qmp, serial, seen } = parts;
  return {
    pid: child.pid,
    accelerator: options.accelerator,
    qmp,
    // The last words on the console come before the end.
    ended: child.ended.then(async (how) => {
      await serial.closed;
      return how;
    }),
    agentSeen: () => seen.agent,
    stopped: () => seen.stop,
    consoleFailure: () => findConsoleFailure(serial.last()),
    tail: () => consoleTail(serial.last()),
    stderrTail: () => readStderrTail(options.dir),
    type: (bytes) => serial.write(bytes),
    async release() {
      qmp[Symbol.dispose]();
      serial.close();
      await Promise.all([qmp.closed, serial.closed, child.release()]);
    },
    async [Symbol.asyncDispose]() {
      await child.stop();
      qmp[Symbol.dispose]();
      serial.close();
      await Promise.all([qmp.closed, serial.closed]);
    },
  };
}

type Serial = Awaited<ReturnType<typeof openConsole>>;

/** Reads the serial console always, or the guest would wait for it. */
async function openConsole(
  path: string,
  onChunk?: (chunk: Uint8Array) => void,
) {
  const connection = await Deno.connect({ transport: "unix", path });
  let open = true;
  let kept = "";
  const decoder = new TextDecoder();
  const close = () => {
    if (open) connection.close();
    open = false;
  };
  const closed = (async () => {
    const buffer = new Uint8Array(16 * 1024);
    while (true) {
      const count = await connection.read(buffer);
      if (count === null) return;
      const chunk = buffer.slice(0, count);
      kept = (kept + decoder.decode(chunk, { stream: true }))
        .slice(-CONSOLE_KEPT);
      onChunk?.(chunk);
    }
  })().catch(() => {}).then(close);
  return {
    close,
    closed,
    last: () => kept,
    write: (bytes: Uint8Array) => writeAll(connection, bytes),
  };
}

function readStderrTail(dir: string): string {
  try {
    return Deno.readTextFileSync(join(dir, MACHINE_FILES.log)).trim()
      .split("\n").slice(-5).join("; ");
  } catch {
    return "";
  }
}
