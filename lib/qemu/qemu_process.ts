/** A QEMU process: its start, its connections, its console and its end. */
import { join } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import type { RunningProcess } from "../system/process.ts";
import { sanitizeLine } from "../system/sanitize_text.ts";
import { abortable, settlesWithin, sleep } from "../system/time.ts";
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
import { AcceleratorError } from "./errors.ts";
import { makeVmDir, VM_FILES } from "./vm_dir.ts";
import { qemuNotFoundError } from "./program.ts";
import {
  connectToQmp,
  diskErrorFromEvent,
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
  const options = { ...plan, dir: await makeVmDir(plan.env) };
  const stderr = textTailBuffer(QEMU_STDERR_TAIL_CHARS);
  await using undo = new AsyncDisposableStack();
  undo.defer(() => tryRemoveDir(options.dir));
  const path = join(options.dir, VM_FILES.seed);
  if (seed) await Deno.writeFile(path, seed, { mode: 0o600 });
  const args = qemuArgs(options);
  const child = undo.use(spawnSupervisedQemu(options, args, stderr.add));
  try {
    const connections = await connectToQemu(child, options);
    undo.move();
    return makeQemuProcess(child, options, stderr, connections);
  } catch (error) {
    const hasEnded = await settlesWithin(child.ended, 0);
    const { code } = await child.stop();
    signal?.throwIfAborted();
    throw hasEnded
      ? startError(plan, code, joinLastLines(stderr.text()))
      : error;
  }
}

async function connectToQemu(
  { ended }: RunningProcess,
  { dir, memoryFile, onConsole, signal }: QemuPlan & { dir: string },
) {
  const { onEvent, ...status } = guestStatus();
  const retry = async <T>(connect: () => Promise<T>): Promise<T> => {
    while (true) {
      try {
        return await connect();
      } catch (error) {
        const isEarly = error instanceof Deno.errors.NotFound ||
          error instanceof ToolsmithError;
        if (!isEarly || await settlesWithin(ended, 0)) throw error;
      }
      await sleep(CONNECT_POLL_MS, signal);
    }
  };
  // QEMU creates the sockets in this order.
  const qmp = await retry(() =>
    connectToQmp(join(dir, VM_FILES.qmp), { onEvent, signal })
  );
  const serial = await retry(() =>
    connectToConsole(join(dir, VM_FILES.console), onConsole)
  );
  if (memoryFile) {
    // Excludes memory that is in a file (QEMU's QMP reference, MigrationCapability).
    const capabilities = [{ capability: "x-ignore-shared", state: true }];
    const answers = qmp.execute(["migrate-set-capabilities", { capabilities }]);
    await abortable(answers, signal);
  }
  return { qmp, serial, status };
}

/** Explains why QEMU has ended before its sockets could be used. */
function startError(
  { program, accelerator }: QemuPlan,
  code: number,
  stderr: string,
): Error {
  if (code === 127 || code === 126) return qemuNotFoundError(program, stderr);
  const isRejected = code >= 128 || /kvm|hvf|accelerator/i.test(stderr);
  if (accelerator !== "tcg" && isRejected) return new AcceleratorError(stderr);
  const why = stderr || "no error output";
  const message = `QEMU exited with status ${code}: ${why}`;
  return new ToolsmithError("boot_failed", message);
}

async function tryRemoveDir(dir: string): Promise<void> {
  await Deno.remove(dir, { recursive: true }).catch(() => {});
}

function makeQemuProcess(
  child: RunningProcess,
  { dir, ...plan }: QemuPlan & { dir: string },
  stderr: ReturnType<typeof textTailBuffer>,
  { qmp, serial, status }: Awaited<ReturnType<typeof connectToQemu>>,
) {
  const disconnect = async () => {
    serial.close();
    await Promise.all([qmp[Symbol.asyncDispose](), serial.closed]);
  };
  const end = async () => {
    await child.stop();
    await disconnect();
    await tryRemoveDir(dir);
  };
  let ending: Promise<void> | undefined;
  return {
    plan,
    dir,
    pid: child.pid,
    qmp,
    /** Settles when QEMU has exited and its last console output is read. Never rejects. */
    ended: serial.closed.then(() => child.ended),
    loadSnapshot: () => loadSnapshot(qmp),
    ...status,
    consoleByteCount: serial.bytes,
    consoleFailure: () => findConsoleFailure(serial.last()),
    consoleTail: () => printableConsoleTail(serial.last()),
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

/** Polls the status, as QEMU answers QMP commands while it loads. */
async function loadSnapshot(qmp: QmpConnection) {
  await qmp.execute(["migrate-incoming", { uri: INCOMING_STATE_URI }]);
  while (true) {
    const [answer] = await qmp.execute(["query-status"]);
    if ((answer as { status: string }).status !== "inmigrate") return;
    await sleep(SNAPSHOT_LOAD_POLL_MS);
  }
}

/** What QMP's events say about the guest. */
function guestStatus() {
  const diskError = Promise.withResolvers<ToolsmithError>();
  let [agentHasConnected, isGuestStopped] = [false, false];
  return {
    /** Has the guest agent ever opened its port? */
    agentHasConnected: () => agentHasConnected,
    isGuestStopped: () => isGuestStopped,
    /** Resolves with the error when QEMU stops the guest after a disk error. */
    haltingDiskError: diskError.promise,
    onEvent(qmpEvent: QmpEvent) {
      const { event, data } = qmpEvent;
      if (event === "VSERPORT_CHANGE" && data.id === AGENT_PORT_ID) {
        agentHasConnected ||= data.open === true;
      }
      if (event === "STOP") isGuestStopped = true;
      if (event === "RESUME") isGuestStopped = false;
      const error = diskErrorFromEvent(qmpEvent);
      if (error) diskError.resolve(error);
    },
  };
}

function joinLastLines(text: string): string {
  return text.trim().split("\n").slice(-5).map((line) => sanitizeLine(line))
    .join("; ");
}
