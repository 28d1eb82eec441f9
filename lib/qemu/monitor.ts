/**
 * Serializes commands to QEMU and to the guest agent, as both serve one connection at a
 * time: by a queue within this process, and by file locks between processes.
 */
import { join } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import { acquireFileLock } from "../system/lock.ts";
import { untrustedReason } from "../system/ownership.ts";
import { abortable, startDeadline } from "../system/time.ts";
import { type AgentConnection, connectToAgent } from "./agent.ts";
import { VM_FILES } from "./vm_dir.ts";
import { connectToQmp, type QmpCommand, type QmpConnection } from "./qmp.ts";
import { isDisconnection, VmDisconnectedError } from "./errors.ts";

const AGENT_SYNC_TIMEOUT_MS = 10_000;
/** After this, the next command of any process finishes the work. */
const BACKGROUND_WORK_TIMEOUT_MS = 10_000;
/** Many commands that start at once on a busy host need this long. */
const BACKGROUND_LOCK_TIMEOUT_MS = 120_000;

/**
 * Sends commands to QEMU and the guest agent of a VM. An aborted signal ends every wait,
 * including those for a lock, with the signal's reason.
 */
export interface Monitor extends AsyncDisposable {
  readonly dir: string;
  /** Sends QMP commands on one connection and returns their answers. */
  qemu(commands: QmpCommand[], signal?: AbortSignal): Promise<unknown[]>;
  /** Runs `work` under the VM's exclusive lock, which all processes share. */
  runExclusively: RunExclusively;
  /**
   * Runs clean-up under the exclusive lock in the background; disposing the monitor
   * waits for it. The work is skipped if the lock stays held, and its signal limits its
   * time. `held` is disposed afterwards in any case.
   */
  runInBackground(
    work: (signal: AbortSignal) => Promise<void>,
    held?: Disposable,
  ): void;
  /** Sends a command to the guest agent and returns its answer, unvalidated. */
  agent(command: QmpCommand, signal?: AbortSignal): Promise<unknown>;
}

type RunExclusively = <T>(
  work: () => Promise<T>,
  signal?: AbortSignal,
) => Promise<T>;

/**
 * A monitor for a VM that only this process uses, on connections that stay open.
 * `connecting` gives `undefined` for a guest without an agent.
 */
export function singleProcessMonitor(
  dir: string,
  qmp: QmpConnection,
  connecting: AgentConnection | undefined | Promise<AgentConnection>,
): Monitor {
  const turn = serialQueue();
  const exclusive = serialQueue();
  const background = backgroundRunner(exclusive);
  let inSync = true;
  let isDisposed = false;
  return {
    dir,
    runExclusively: (work, signal) =>
      exclusive(async () => {
        if (isDisposed) throw new VmDisconnectedError();
        return await work();
      }, signal),
    runInBackground: background.run,
    qemu: (commands, signal) => abortable(qmp.execute(...commands), signal),
    agent: (command, signal) =>
      turn(async () => {
        const agent = await connecting;
        if (!agent) {
          throw new ToolsmithError(
            "guest_not_ready",
            "The guest has no agent, so commands cannot run",
            { hint: "install qemu-guest-agent in the image" },
          );
        }
        if (!inSync) await resyncAgent(agent, signal);
        inSync = false;
        const answer = await agent.execute(command, signal);
        inSync = true;
        return answer;
      }, signal),
    async [Symbol.asyncDispose]() {
      // A command that starts makes files in the VM's directory, which may be removed next.
      await exclusive(() => Promise.resolve(isDisposed = true));
      await background.done();
      await turn(() => Promise.resolve());
      await qmp[Symbol.asyncDispose]();
      const agent = await Promise.resolve(connecting).catch(() => undefined);
      await agent?.[Symbol.asyncDispose]();
    },
  };
}

/** A monitor for a VM that several processes may use, with a connection per command. */
export function sharedMonitor(dir: string): Monitor {
  const locking = (name: string): RunExclusively => {
    const turn = serialQueue();
    return (work, signal) =>
      turn(async () => {
        try {
          // After the VM has ended, another user could make a directory of its name.
          if (await untrustedReason(dir)) throw new VmDisconnectedError();
          using _lock = await acquireFileLock(join(dir, name), { signal });
          return await work();
        } catch (error) {
          // An ended VM has no directory any more, and resets its connections.
          const isGone = error instanceof Deno.errors.NotFound ||
            isDisconnection(error);
          throw isGone ? new VmDisconnectedError() : error;
        }
      }, signal);
  };
  const locked = locking(VM_FILES.lock);
  const exclusive = locking(VM_FILES.exclusive);
  const background = backgroundRunner(exclusive);
  return {
    dir,
    runExclusively: exclusive,
    runInBackground: background.run,
    qemu: (commands, signal) =>
      locked(async () => {
        const path = join(dir, VM_FILES.qmp);
        await using qmp = await connectToQmp(path, { signal });
        return await abortable(qmp.execute(...commands), signal);
      }, signal),
    agent: (command, signal) =>
      locked(async () => {
        await using agent = await connectToAgent(join(dir, VM_FILES.agent));
        await resyncAgent(agent, signal);
        return await agent.execute(command, signal);
      }, signal),
    [Symbol.asyncDispose]: background.done,
  };
}

async function resyncAgent(agent: AgentConnection, signal?: AbortSignal) {
  const seconds = AGENT_SYNC_TIMEOUT_MS / 1000;
  const message = `The guest agent did not answer within ${seconds} s`;
  const late = () => new ToolsmithError("guest_failed", message);
  using limit = startDeadline(AGENT_SYNC_TIMEOUT_MS, late, signal);
  await agent.waitUntilAnswering(limit.signal);
}

function backgroundRunner(exclusive: RunExclusively) {
  let last = Promise.resolve();
  const run: Monitor["runInBackground"] = (work, held) => {
    const cleanUp = async () => {
      using _held = held;
      using turn = startDeadline(BACKGROUND_LOCK_TIMEOUT_MS, "The wait");
      await exclusive(async () => {
        using limit = startDeadline(BACKGROUND_WORK_TIMEOUT_MS, "The clean-up");
        await work(limit.signal);
      }, turn.signal);
    };
    last = Promise.allSettled([last, cleanUp()]).then(() => {});
  };
  return { run, done: () => last };
}

/**
 * Runs one piece of work at a time, in the order of the calls. Work that is aborted
 * while it is queued never runs.
 */
function serialQueue(): RunExclusively {
  let last: Promise<unknown> = Promise.resolve();
  return (work, signal) => {
    const mine = abortable(last, signal).then(work);
    last = Promise.allSettled([last, mine]).then(() => {});
    return mine;
  };
}
