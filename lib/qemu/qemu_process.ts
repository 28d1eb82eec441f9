/** A QEMU process: its start, its connections, its console and its end. */
import { join } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import type { RunningProcess } from "../system/process.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import { settlesWithin, sleep } from "../system/time.ts";
import {
  connectToConsole,
  findConsoleFailure,
  printableConsoleTail,
  textTailBuffer,
} from "./_console.ts";
import {
  INCOMING_STATE_URI,
  spawnSupervisedQemu,
  type SuperviseOptions,
} from "./_supervisor.ts";
import { qemuArgs, type QemuOptions } from "./args.ts";
import { AGENT_PORT_ID } from "./device_ids.ts";
import { AcceleratorError, isDisconnection } from "./errors.ts";
import { makeVmDir, VM_FILES } from "./vm_dir.ts";
import { qemuNotFoundError } from "./program.ts";
import {
  connectToQmp,
  diskErrorFromEvent,
  type QmpCommand,
  type QmpConnection,
  type QmpEvent,
} from "./qmp.ts";

/** A running QEMU process. Disposing it kills QEMU and removes its directory. */
export type QemuProcess = ReturnType<typeof makeQemuProcess>;

export interface QemuPlan extends Omit<QemuOptions & SuperviseOptions, "dir"> {
  onConsole?: (chunk: Uint8Array) => void;
  /** Ends the start when aborted, but not a QEMU that has started. */
  signal?: AbortSignal;
}

const CONNECT_POLL_MS = 10;
const SNAPSHOT_LOAD_POLL_MS = 3;
/** A guest can make QEMU print endless warnings. */
const QEMU_STDERR_TAIL_CHARS = 16 * 1024;

/**
 * Starts QEMU in a new VM directory. The guest is paused until QMP's `cont`. Throws
 * {@linkcode AcceleratorError} when the accelerator does not work.
 */
export async function startQemu(plan: QemuPlan): Promise<QemuProcess> {
  const { seed, signal } = plan;
  signal?.throwIfAborted();
  const dir = await makeVmDir(plan.env);
  try {
    const path = join(dir, VM_FILES.seed);
    if (seed) await Deno.writeFile(path, seed, { mode: 0o600 });
    return await startQemuInDir(plan, dir);
  } catch (error) {
    await tryRemoveDir(dir);
    throw error;
  }
}

async function startQemuInDir(
  plan: QemuPlan,
  dir: string,
): Promise<QemuProcess> {
  const { program, signal, onConsole } = plan;
  const options = { ...plan, dir };
  const stderr = textTailBuffer(QEMU_STDERR_TAIL_CHARS);
  const child = spawnSupervisedQemu(options, qemuArgs(options), stderr.add);
  const cancel = () => void child.stop();
  signal?.addEventListener("abort", cancel, { once: true });
  const events = qmpEventWatcher();
  try {
    // QEMU creates the sockets in this order.
    const qmp = await retryUntilConnected(
      child,
      () => connectToQmp(join(dir, VM_FILES.qmp), { onEvent: events.note }),
    );
    const serial = await retryUntilConnected(
      child,
      () => connectToConsole(join(dir, VM_FILES.console), onConsole),
    );
    await qmp.execute(...memoryFileCommands(plan));
    return makeQemuProcess(child, { options, qmp, serial, events, stderr });
  } catch (error) {
    const { code } = await child.stop();
    signal?.throwIfAborted();
    if (!(error instanceof QemuEndedError)) throw error;
    const stderrTail = joinLastLines(stderr.text());
    const isMissing = code === 127 || code === 126;
    if (isMissing) throw qemuNotFoundError(program, stderrTail);
    if (
      plan.accelerator !== "tcg" &&
      (code >= 128 || /kvm|hvf|accelerator/i.test(stderrTail))
    ) throw new AcceleratorError(stderrTail);
    throw new ToolsmithError(
      "boot_failed",
      `QEMU exited with status ${code}: ${stderrTail || "no error output"}`,
    );
  } finally {
    signal?.removeEventListener("abort", cancel);
  }
}

async function tryRemoveDir(dir: string): Promise<void> {
  await Deno.remove(dir, { recursive: true }).catch(() => {});
}

/**
 * Excludes memory that is in a file from migration (QEMU's QMP reference,
 * MigrationCapability).
 */
function memoryFileCommands({ memoryFile }: QemuPlan): QmpCommand[] {
  const capabilities = [{ capability: "x-ignore-shared", state: true }];
  return memoryFile ? [["migrate-set-capabilities", { capabilities }]] : [];
}

/** Polls the status, as QEMU answers QMP commands while it loads. */
async function loadSnapshot(qmp: QmpConnection) {
  await qmp.execute(["migrate-incoming", { uri: INCOMING_STATE_URI }]);
  while (true) {
    const [answer] = await qmp.execute(["query-status"]);
    if ((answer as { status: string }).status !== "inmigrate") return;
    await sleep(SNAPSHOT_LOAD_POLL_MS);
  }
}

class QemuEndedError extends Error {}

async function retryUntilConnected<T>(
  { ended }: RunningProcess,
  connect: () => Promise<T>,
): Promise<T> {
  while (true) {
    try {
      return await connect();
    } catch (error) {
      if (await settlesWithin(ended, 0)) throw new QemuEndedError();
      if (
        !(error instanceof Deno.errors.NotFound) &&
        !isDisconnection(error) && !(error instanceof ToolsmithError)
      ) throw error;
    }
    await sleep(CONNECT_POLL_MS);
  }
}

interface QemuProcessParts {
  options: QemuPlan & { dir: string };
  qmp: QmpConnection;
  serial: Awaited<ReturnType<typeof connectToConsole>>;
  events: ReturnType<typeof qmpEventWatcher>;
  stderr: ReturnType<typeof textTailBuffer>;
}

function makeQemuProcess(child: RunningProcess, parts: QemuProcessParts) {
  const { options, qmp, serial, events, stderr } = parts;
  const plan: QemuPlan = options;
  const disconnect = async () => {
    serial.close();
    await Promise.all([qmp[Symbol.asyncDispose](), serial.closed]);
  };
  const end = async () => {
    await child.stop();
    await disconnect();
    await tryRemoveDir(options.dir);
  };
  let ending: Promise<void> | undefined;
  return {
    plan,
    dir: options.dir,
    pid: child.pid,
    qmp,
    /** Settles when QEMU has exited and its last console output is read. Never rejects. */
    ended: serial.closed.then(() => child.ended),
    loadSnapshot: () => loadSnapshot(qmp),
    /** Has the guest agent ever opened its port? */
    agentHasConnected: events.hasAgentConnected,
    consoleByteCount: serial.bytes,
    /** Is the guest stopped (QMP event `STOP`)? */
    isGuestStopped: events.isStopped,
    /** Resolves with the error when QEMU stops the guest after a disk error. */
    haltingDiskError: events.diskError,
    /** The failure that the serial console shows, if any. */
    consoleFailure: () => findConsoleFailure(serial.last()),
    /** The last lines of the serial console, safe to print. */
    consoleTail: () => printableConsoleTail(serial.last()),
    /** The last lines of QEMU's standard error, joined. */
    stderrTail: () => joinLastLines(stderr.text()),
    writeToConsole: serial.write,
    /** Disconnects and lets QEMU outlive this process. */
    async leaveRunning() {
      await Promise.all([disconnect(), child.detach()]);
    },
    // An abort and the clean-up after it wait for the same end.
    [Symbol.asyncDispose]: () => ending ??= end(),
  };
}

function qmpEventWatcher() {
  const diskError = Promise.withResolvers<ToolsmithError>();
  let hasAgentConnected = false;
  let isStopped = false;
  return {
    diskError: diskError.promise,
    hasAgentConnected: () => hasAgentConnected,
    isStopped: () => isStopped,
    note(qmpEvent: QmpEvent) {
      const { event, data } = qmpEvent;
      if (event === "VSERPORT_CHANGE" && data?.id === AGENT_PORT_ID) {
        hasAgentConnected ||= data.open === true;
      }
      if (event === "STOP") isStopped = true;
      if (event === "RESUME") isStopped = false;
      const error = diskErrorFromEvent(qmpEvent);
      if (error) diskError.resolve(error);
    },
  };
}

function joinLastLines(text: string): string {
  return text.trim().split("\n").slice(-5).map((line) => sanitizeLine(line))
    .join("; ");
}
