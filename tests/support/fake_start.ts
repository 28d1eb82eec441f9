/**
 * A machine that is being started, without QEMU: its monitor answers as a test
 * says, its agent is that of a fake machine, and what is done to it is noted.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import type { SnapshotStaging } from "../../lib/cache/snapshots.ts";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { closePorts } from "../../lib/guest/waiting_shell.ts";
import { DISK } from "../../lib/qemu/devices.ts";
import type { Machine, MachinePlan } from "../../lib/qemu/machine.ts";
import type { Command, Qmp } from "../../lib/qemu/qmp.ts";
import { bringUp } from "../../lib/vm/_bring_up.ts";
import {
  type Start,
  startClock,
  type StartedMachine,
} from "../../lib/vm/_course.ts";
import type { SnapshotSlot } from "../../lib/vm/_snapshot.ts";
import type { BootedVm } from "../../lib/vm/vm.ts";
import {
  type FakeMachine,
  fakeMachine,
  type FakeMachineOptions,
  honest,
  type Request,
} from "./fake_machine.ts";
import { type WaitingGuestOptions, waitInGuest } from "./waiting_guest.ts";

/** The image that such a machine has below its temporary disk. */
export const IMAGE = "/images/a.qcow2";

/** What QEMU puts above a disk that is not kept. */
export const TEMPORARY = "/var/tmp/vl.1";

/** What the start is like. */
export interface FakeStartOptions extends Omit<FakeMachineOptions, "qemu"> {
  /** What QEMU answers to a command; `undefined` for the usual. */
  qemu?: (command: Command) => unknown;
  /** What the shell does that waits in it, if it was saved. */
  waiting?: WaitingGuestOptions;
  /** Replaces what the machine says of itself. */
  machine?: Partial<Machine>;
  /** Replaces parts of the start. */
  start?: (fake: FakeStart) => Partial<Start>;
}

/** The start; disposing it ends the fake machine. */
export interface FakeStart extends AsyncDisposable {
  /** The start, for what is tested. */
  start: Start;
  /** The machine behind the agent's socket. */
  guest: FakeMachine;
  /** What was done, in order: commands of QEMU, and what was ended. */
  done: string[];
  /** The events without their times. */
  events: Record<string, unknown>[];
  /** Ends QEMU. */
  end(code?: number): void;
}

/** An agent whose scripts end at once, and well. */
export function ready(request: Request): unknown {
  if (request.execute === "guest-info") return { version: "7.2.22" };
  if (request.execute !== "guest-exec-status") return honest(request);
  return { exited: true, exitcode: 0 };
}

/** Makes a start. */
export async function fakeStart(
  options: FakeStartOptions = {},
): Promise<FakeStart> {
  const { agent = ready } = options;
  const how = { prepared: true, ...options, agent, qemu: undefined };
  const guest = await fakeMachine(how);
  const done: string[] = [];
  const events: Record<string, unknown>[] = [];
  const ended = Promise.withResolvers<{ code: number; signal: null }>();
  const noted = (what: string) => () => {
    done.push(what);
    return Promise.resolve();
  };
  const answer = (command: Command) => {
    const [name, args] = command;
    done.push(name);
    const said = options.qemu?.(command);
    if (said instanceof Error) throw said;
    if (said !== undefined) return said;
    if (name === "query-status") return { status: "paused" };
    if (name === "query-block") return [drive(TEMPORARY, IMAGE)];
    if (name === "query-migrate") return { status: "completed" };
    if (name === "migrate") {
      const path = String(args!.uri).replace("unix:", "");
      Deno.connect({ transport: "unix", path }).then((it) => it.close());
    }
    return {};
  };
  const qmp: Qmp = {
    version: "7.2.22",
    closed: Promise.resolve(),
    // deno-lint-ignore require-await -- a refusal rejects.
    send: async (...commands) => commands.map(answer),
    [Symbol.dispose]: noted("qmp closed"),
  };
  const fake: Omit<FakeStart, "start"> = {
    guest,
    done,
    events,
    end: (code = 0) => ended.resolve({ code, signal: null }),
    async [Symbol.asyncDispose]() {
      // Where it failed, its caller would do that.
      start.waiting?.close();
      if (start.claim) closePorts(start.claim);
      // A stop has removed it.
      await Deno.mkdir(guest.dir, { recursive: true });
      await guest[Symbol.asyncDispose]();
    },
  };
  const machine: Machine = {
    load: noted("loaded"),
    ...{ pid: 4242, accelerator: "tcg", qmp, ended: ended.promise },
    agentSeen: () => false,
    consoleBytes: () => 0,
    stopped: () => false,
    halted: new Promise<never>(() => {}),
    consoleFailure: () => undefined,
    tail: () => "",
    stderrTail: () => "",
    type: () => Promise.resolve(),
    release: noted("machine released"),
    [Symbol.asyncDispose]: noted("machine ended"),
    ...options.machine,
  };
  const plan: MachinePlan = {
    ...{ program: "qemu", disk: IMAGE, ephemeral: true },
    ...{ accelerator: "tcg", memory: 512, cpus: 2, shares: [], extra: [] },
  };
  const start: Start = {
    plan,
    qemu: { ...plan, dir: guest.dir },
    startSuccessor: () => Promise.resolve(fakeSuccessor(done)),
    options: { image: IMAGE },
    // deno-lint-ignore no-explicit-any -- an event has its time added.
    emit: (event: any) => {
      events.push(event satisfies Omit<ToolsmithEvent, "timestamp">);
    },
    clock: startClock(),
    machine,
    typing: {
      used: () => false,
      leave: noted("typing left"),
      stop: noted("typing stopped"),
    },
  };
  Object.assign(start, options.start?.({ ...fake, start }));
  if (start.files) waitInGuest(guest, options.waiting).catch(() => {});
  return { ...fake, start };
}

/** A QEMU that waits for what is saved; it notes only its end. */
export function fakeSuccessor(done: string[]): StartedMachine {
  const machine = {
    [Symbol.asyncDispose]: () =>
      Promise.resolve(void done.push("successor ended")),
  } as unknown as Machine;
  const qemu = { dir: "/nonexistent/successor" } as StartedMachine["qemu"];
  return { machine, qemu };
}

/** QEMU's description of a disk: each file lies above the next. */
export function drive(...files: string[]): Record<string, unknown> {
  const image = files.reduceRight<unknown>(
    (below, filename) => ({ filename, "backing-image": below }),
    undefined,
  );
  return { device: DISK, inserted: { image } };
}

/** A slot that notes what is put into it. */
export function fakeSlot(
  done: string[],
  more: Partial<SnapshotSlot> = {},
): SnapshotSlot {
  return {
    ...{ key: "key", mapped: false, found: undefined },
    unchanged: () => Promise.resolve(true),
    drop: (reason) => Promise.resolve(void done.push(`dropped: ${reason}`)),
    hasRoom: () => Promise.resolve(true),
    stage: () => Promise.resolve(undefined),
    place: (_, ms) => void done.push(`placed: ${ms >= 0 && ms < 60_000}`),
    fail: (error) => void done.push(`failed: ${(error as Error).message}`),
    settled: () => Promise.resolve(void done.push("slot settled")),
    ...more,
  };
}

/** Where such a machine is saved: beside its sockets. */
export function fakeStaging({ guest, done }: FakeStart): SnapshotStaging {
  const at = (name: string) => join(guest.dir, name);
  return {
    ...{ dir: at("staging"), state: at("state"), memory: at("memory") },
    disk: at("disk"),
    place: () => Promise.reject(new Error("the slot does this")),
    [Symbol.asyncDispose]() {
      done.push("staging removed");
      return Promise.resolve();
    },
  };
}

/**
 * Brings a machine up, and looks at it before it ends.
 *
 * @param options The machine.
 * @param look Looks at it.
 * @returns What was done and said, to the end.
 */
export async function bringUpFake(
  options: FakeStartOptions,
  look: (vm: BootedVm, fake: FakeStart) => unknown = () => {},
): Promise<FakeStart> {
  await using fake = await fakeStart(options);
  const vm = await bringUp(fake.start);
  assert("facts" in vm, "it was saved and ended");
  try {
    await look(vm, fake);
  } finally {
    fake.end();
    await vm.stop();
  }
  return fake;
}

/** What was said of a machine that is ready; its phases have to add up. */
export function readyEvent({ events }: FakeStart): Record<string, unknown> {
  const { phases, elapsedMs, ...rest } = events.find(({ type }) =>
    type === "boot_ready"
  )!;
  const parts = Object.values(phases as Record<string, number>);
  assertEquals(elapsedMs, parts.reduce((sum, ms) => sum + ms));
  return rest;
}
