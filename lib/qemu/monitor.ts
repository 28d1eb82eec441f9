/**
 * Talks to a machine: to QEMU and to the agent in its guest. Both serve one
 * connection at a time, so whoever talks takes turns: within this process by a
 * queue, among processes that share a machine by a lock.
 *
 * @module
 */
import { join } from "@std/path";
import { ToolsmithError } from "../errors.ts";
import { lock } from "../system/lock.ts";
import { type Agent, openAgent } from "./agent.ts";
import { MACHINE_FILES } from "./machine_dir.ts";
import { type Command, openQmp, type Qmp } from "./qmp.ts";
import { VmDisconnectedError } from "./errors.ts";

const SYNC_MS = 10_000;

/** The way to talk to a machine. */
export interface Monitor extends AsyncDisposable {
  /** The machine's directory, where its sockets are. */
  readonly dir: string;
  /** Sends commands to QEMU in one turn, and returns their answers. */
  qemu(...commands: Command[]): Promise<unknown[]>;
  /** Works while nobody else who asks this way does, in any process. */
  exclusive<T>(work: () => Promise<T>): Promise<T>;
  /** The same, without waiting for it: what is left to do after a command. */
  runInBackground(work: () => Promise<void>): void;
  /** Sends a command to the guest agent, and returns its answer. */
  agent(command: Command): Promise<unknown>;
}

/**
 * Talks to a machine that belongs to this process alone, on connections that
 * stay open.
 *
 * @param dir The machine's directory.
 * @param qmp The connection to QEMU; closed with the monitor.
 * @param agent The connection to the guest agent, which has answered; closed
 * with the monitor. `undefined` if the guest has none.
 * @returns The monitor.
 */
export function ownMonitor(
  dir: string,
  qmp: Qmp,
  agent: Agent | undefined,
): Monitor {
  const turn = serialQueue();
  const exclusive = serialQueue();
  let clean = true;
  return {
    dir,
    exclusive,
    runInBackground: (work) => void exclusive(work).catch(() => {}),
    qemu: (...commands) => qmp.send(...commands),
    agent: (command) =>
      turn(async () => {
        if (!agent) {
          throw new ToolsmithError(
            "guest_not_ready",
            "The guest has no agent to run commands with",
            { hint: "the image needs qemu-guest-agent, started at boot" },
          );
        }
        if (!clean) await sync(agent);
        clean = false;
        const answer = await agent.send(command);
        clean = true;
        return answer;
      }),
    async [Symbol.asyncDispose]() {
      await exclusive(() => Promise.resolve());
      await turn(() => Promise.resolve());
      qmp[Symbol.dispose]();
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
  const locking = (name: string) => {
    const turn = serialQueue();
    return <T>(work: () => Promise<T>) =>
      turn(async () => {
        try {
          using _lock = await lock(join(dir, name));
          return await work();
        } catch (error) {
          throw isGone(error) ? new VmDisconnectedError() : error;
        }
      });
  };
  const locked = locking(MACHINE_FILES.lock);
  const exclusive = locking(MACHINE_FILES.exclusive);
  const background = new Set<Promise<void>>();
  return {
    dir,
    exclusive,
    runInBackground(work) {
      const done = exclusive(work).catch(() => {})
        .finally(() => background.delete(done));
      background.add(done);
    },
    qemu: (...commands) =>
      locked(async () => {
        using qmp = await openQmp(join(dir, MACHINE_FILES.qmp));
        const answers = await qmp.send(...commands);
        qmp[Symbol.dispose]();
        await qmp.closed;
        return answers;
      }),
    agent: (command) =>
      locked(async () => {
        using agent = await openAgent(join(dir, MACHINE_FILES.agent));
        await sync(agent);
        const answer = await agent.send(command);
        agent[Symbol.dispose]();
        await agent.closed;
        return answer;
      }),
    async [Symbol.asyncDispose]() {
      await Promise.all(background);
    },
  };
}

async function sync(agent: Agent) {
  try {
    await agent.sync(AbortSignal.timeout(SYNC_MS));
  } catch (cause) {
    if (!(cause instanceof DOMException)) throw cause;
    throw new ToolsmithError(
      "guest_failed",
      `The guest agent did not answer within ${SYNC_MS / 1000} s`,
      { cause },
    );
  }
}

/** A machine that has ended took its directory along, or listens no more. */
function isGone(error: unknown): boolean {
  return error instanceof Deno.errors.NotFound ||
    error instanceof Deno.errors.ConnectionRefused;
}

/** Lets one piece of work run at a time, in the order of the calls. */
function serialQueue() {
  let last: Promise<unknown> = Promise.resolve();
  return <T>(work: () => Promise<T>): Promise<T> => {
    const mine = last.then(work);
    last = mine.catch(() => {});
    return mine;
  };
}
