/**
 * Talks to a machine: to QEMU and to the agent in its guest. Both serve one
 * connection at a time, so whoever talks takes turns: within this process by a
 * queue, among processes that share a machine by a lock.
 *
 * @module
 */
import { join } from "../path.ts";
import { ToolsmithError } from "../errors.ts";
import { lock } from "../system/lock.ts";
import { whyUntrusted } from "../system/ownership.ts";
import { abortable, timeLimit } from "../system/time.ts";
import { type Agent, openAgent } from "./agent.ts";
import { MACHINE_FILES } from "./machine_dir.ts";
import { type Command, openQmp, type Qmp } from "./qmp.ts";
import { isDisconnection, VmDisconnectedError } from "./errors.ts";

const SYNC_MS = 10_000;
/** What is left undone then, another process does. */
const BACKGROUND_MS = 10_000;

/**
 * Talks to QEMU and to the guest agent of a machine. Each wait, also the one for
 * a turn, ends with the signal's reason when the signal is aborted.
 */
export interface Monitor extends AsyncDisposable {
  /** The machine's directory, where its sockets are. */
  readonly dir: string;
  /** Sends commands to QEMU in one turn, and returns their answers. */
  qemu(commands: Command[], signal?: AbortSignal): Promise<unknown[]>;
  /** Works while nobody else who asks this way does, in any process. */
  exclusive: Exclusive;
  /**
   * The same, for what is left to do after a command: disposing the monitor
   * waits for it. The signal limits its time.
   */
  runInBackground(work: (signal: AbortSignal) => Promise<void>): void;
  /**
   * Sends a command to the guest agent, and returns its answer, which may be
   * anything.
   */
  agent(command: Command, signal?: AbortSignal): Promise<unknown>;
}

type Exclusive = <T>(
  work: () => Promise<T>,
  signal?: AbortSignal,
) => Promise<T>;

/**
 * Talks to a machine that belongs to this process alone, on connections that
 * stay open.
 *
 * @param dir The machine's directory.
 * @param qmp The connection to QEMU; closed with the monitor.
 * @param connecting The connection to the guest agent, which has answered, or may
 * do so yet; closed with the monitor. `undefined` if the guest has none.
 * @returns The monitor.
 */
export function ownMonitor(
  dir: string,
  qmp: Qmp,
  connecting: Agent | undefined | Promise<Agent | undefined>,
): Monitor {
  const turn = serialQueue();
  const exclusive = serialQueue();
  const background = backgroundWork(exclusive);
  let clean = true;
  return {
    dir,
    exclusive,
    runInBackground: background.run,
    qemu: (commands, signal) => abortable(qmp.send(...commands), signal),
    agent: (command, signal) =>
      turn(async () => {
        const agent = await connecting;
        if (!agent) {
          throw new ToolsmithError(
            "guest_not_ready",
            "The guest has no agent to run commands with",
            { hint: "the image needs qemu-guest-agent, started at boot" },
          );
        }
        if (!clean) await sync(agent, signal);
        clean = false;
        const answer = await agent.send(command, { signal });
        clean = true;
        return answer;
      }, signal),
    async [Symbol.asyncDispose]() {
      await background.done();
      await turn(() => Promise.resolve());
      qmp[Symbol.dispose]();
      const agent = await Promise.resolve(connecting).catch(() => undefined);
      agent?.[Symbol.dispose]();
      await Promise.all([qmp.closed, agent?.closed]);
    },
  };
}

/**
 * Talks to a machine that several processes may use, on a connection for each
 * turn.
 *
 * Needs `--allow-read`, `--allow-write` and `--allow-net=unix:…` for the directory.
 *
 * @param dir The machine's directory.
 * @returns The monitor.
 */
export function sharedMonitor(dir: string): Monitor {
  const locking = (name: string): Exclusive => {
    const turn = serialQueue();
    return (work, signal) =>
      turn(async () => {
        try {
          // Once it has ended, another user can make a directory of its name.
          if (await whyUntrusted(dir)) throw new VmDisconnectedError();
          using _lock = await lock(join(dir, name), { signal });
          return await work();
        } catch (error) {
          throw isGone(error) ? new VmDisconnectedError() : error;
        }
      }, signal);
  };
  const locked = locking(MACHINE_FILES.lock);
  const exclusive = locking(MACHINE_FILES.exclusive);
  const background = backgroundWork(exclusive);
  return {
    dir,
    exclusive,
    runInBackground: background.run,
    qemu: (commands, signal) =>
      locked(async () => {
        using qmp = await openQmp(join(dir, MACHINE_FILES.qmp), { signal });
        const answers = await abortable(qmp.send(...commands), signal);
        qmp[Symbol.dispose]();
        await qmp.closed;
        return answers;
      }, signal),
    agent: (command, signal) =>
      locked(async () => {
        using agent = await openAgent(join(dir, MACHINE_FILES.agent));
        await sync(agent, signal);
        const answer = await agent.send(command, { signal });
        agent[Symbol.dispose]();
        await agent.closed;
        return answer;
      }, signal),
    [Symbol.asyncDispose]: background.done,
  };
}

async function sync(agent: Agent, signal?: AbortSignal) {
  using limit = timeLimit(SYNC_MS, "The guest agent", signal);
  try {
    await agent.sync(limit.signal);
  } catch (error) {
    signal?.throwIfAborted();
    if (!limit.signal.aborted) throw error;
    throw new ToolsmithError(
      "guest_failed",
      `The guest agent did not answer within ${SYNC_MS / 1000} s`,
    );
  }
}

/** A machine that has ended took its directory along, or listens no more. */
function isGone(error: unknown): boolean {
  return error instanceof Deno.errors.NotFound || isDisconnection(error);
}

function backgroundWork(exclusive: Exclusive) {
  const pending = new Set<Promise<void>>();
  return {
    run(work: (signal: AbortSignal) => Promise<void>) {
      const limit = timeLimit(BACKGROUND_MS, "Work in the background");
      const done = exclusive(() => work(limit.signal), limit.signal)
        .catch(() => {})
        .finally(() => {
          limit[Symbol.dispose]();
          pending.delete(done);
        });
      pending.add(done);
    },
    async done() {
      await Promise.all(pending);
    },
  };
}

/**
 * Lets one piece of work run at a time, in the order of the calls. What is
 * aborted while it waits for its turn never runs.
 */
function serialQueue(): Exclusive {
  let last: Promise<unknown> = Promise.resolve();
  return (work, signal) => {
    const mine = abortable(last, signal).then(work);
    last = Promise.allSettled([last, mine]).then(() => {});
    return mine;
  };
}
