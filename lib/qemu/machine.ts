/**
 * A running QEMU, from its start to its end.
 *
 * @module
 */
import { join } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import type { Child, ProcessExit } from "../system/process.ts";
import { oneLine } from "../system/text.ts";
import { sleep } from "../system/time.ts";
import {
  type ConsoleFailure,
  consoleTail,
  findConsoleFailure,
  keepTail,
  openConsole,
} from "./_console.ts";
import {
  INCOMING,
  spawnSupervised,
  type SuperviseOptions,
} from "./_supervisor.ts";
import type { Accelerator } from "./accelerator.ts";
import { type MachineOptions, qemuArgs } from "./args.ts";
import { AGENT } from "./devices.ts";
import { AcceleratorError, isDisconnection } from "./errors.ts";
import { haltOfEvent } from "./halt.ts";
import { MACHINE_FILES } from "./machine_dir.ts";
import { qemuNotFound } from "./program.ts";
import { type Command, openQmp, type Qmp, type QmpEvent } from "./qmp.ts";

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
  /** Reads the snapshot that the machine was started with. */
  load(): Promise<void>;
  /** Has the guest's agent opened its port? */
  agentSeen(): boolean;
  /** How much the guest has written to its serial console. */
  consoleBytes(): number;
  /** Has QEMU stopped the guest by itself? */
  stopped(): boolean;
  /** Settles when QEMU has stopped the guest over its disk: with the error. */
  readonly halted: Promise<ToolsmithError>;
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
export interface StartMachineOptions extends MachineOptions, SuperviseOptions {
  /** Sees what the guest writes to its serial console. */
  onConsole?: (chunk: Uint8Array) => void;
  /** Ends the start when aborted, but not a machine that has started. */
  signal?: AbortSignal;
}

/** A machine, wherever its directory is. */
export type MachinePlan = Omit<StartMachineOptions, "dir">;

const POLL_MS = 10;
const LOOK_MS = 3;
/** A guest can make QEMU warn without end. */
const STDERR_KEPT = 16 * 1024;

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
  const { dir, program, signal } = options;
  signal?.throwIfAborted();
  const stderr = keepTail(STDERR_KEPT);
  const child = spawnSupervised(options, qemuArgs(options), stderr.add);
  const cancel = () => void child.stop();
  signal?.addEventListener("abort", cancel, { once: true });
  let over = false;
  child.ended.then(() => over = true);
  const seen = watchEvents();
  try {
    // Who connects first finds the sockets ready: QEMU makes them in order.
    const qmp = await whenReady(
      () => openQmp(join(dir, MACHINE_FILES.qmp), { onEvent: seen.note }),
      () => over,
    );
    const serial = await whenReady(
      () => openConsole(join(dir, MACHINE_FILES.console), options.onConsole),
      () => over,
    );
    await qmp.send(...firstCommands(options));
    return machine(child, { options, qmp, serial, seen, stderr });
  } catch (error) {
    const { code } = await child.stop();
    signal?.throwIfAborted();
    if (!(error instanceof Over)) throw error;
    const stderrTail = lastLines(stderr.text());
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

/**
 * Memory in a file is not to be copied when the machine is saved or restored
 * (QEMU's QMP reference, MigrationCapability).
 */
function firstCommands({ memoryFile }: StartMachineOptions): Command[] {
  const capabilities = [{ capability: "x-ignore-shared", state: true }];
  return memoryFile ? [["migrate-set-capabilities", { capabilities }]] : [];
}

/** QEMU answers while it still reads. */
async function load(qmp: Qmp) {
  await qmp.send(["migrate-incoming", { uri: INCOMING }]);
  while (true) {
    const [answer] = await qmp.send(["query-status"]);
    if ((answer as { status: string }).status !== "inmigrate") return;
    await sleep(LOOK_MS);
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
        !isDisconnection(error) && !(error instanceof ToolsmithError)
      ) throw error;
    }
    await sleep(POLL_MS);
  }
}

interface MachineParts {
  options: StartMachineOptions;
  qmp: Qmp;
  serial: Awaited<ReturnType<typeof openConsole>>;
  seen: ReturnType<typeof watchEvents>;
  stderr: ReturnType<typeof keepTail>;
}

function machine(child: Child, parts: MachineParts): Machine {
  const { options, qmp, serial, seen, stderr } = parts;
  return {
    pid: child.pid,
    accelerator: options.accelerator,
    qmp,
    // The last words on the console come before the end.
    ended: child.ended.then(async (how) => {
      await serial.closed;
      return how;
    }),
    load: () => load(qmp),
    agentSeen: seen.agent,
    consoleBytes: serial.bytes,
    stopped: seen.stopped,
    halted: seen.halted,
    consoleFailure: () => findConsoleFailure(serial.last()),
    tail: () => consoleTail(serial.last()),
    stderrTail: () => lastLines(stderr.text()),
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

/** Follows the events that say how the guest is (QEMU's QMP reference). */
function watchEvents() {
  const halted = Promise.withResolvers<ToolsmithError>();
  let agent = false;
  let stopped = false;
  return {
    halted: halted.promise,
    agent: () => agent,
    stopped: () => stopped,
    note(happened: QmpEvent) {
      const { event, data } = happened;
      if (event === "VSERPORT_CHANGE" && data?.id === AGENT) {
        agent ||= data.open === true;
      }
      if (event === "STOP") stopped = true;
      if (event === "RESUME") stopped = false;
      const halt = haltOfEvent(happened);
      if (halt) halted.resolve(halt);
    },
  };
}

function lastLines(text: string): string {
  return text.trim().split("\n").slice(-5).map((line) => oneLine(line))
    .join("; ");
}
