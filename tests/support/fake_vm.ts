/**
 * A fake VM that starts, without QEMU: the test chooses the monitor's answers, the agent
 * is a fake machine's, and actions are recorded.
 */
import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import type { SnapshotStaging } from "../../lib/cache/snapshots.ts";
import type { ToolsmithEvent } from "../../lib/events.ts";
import { writeOverlay } from "../../lib/image/overlay.ts";
import { DISK_ID } from "../../lib/qemu/device_ids.ts";
import type { QemuPlan, QemuProcess } from "../../lib/qemu/qemu_process.ts";
import type { QmpCommand, QmpConnection } from "../../lib/qemu/qmp.ts";
import { BootTimer, StartingVm } from "../../lib/vm/_boot_attempt.ts";
import { bootGuest, finishBoot } from "../../lib/vm/_start_vm.ts";
import { SnapshotSlot } from "../../lib/vm/_snapshot_slot.ts";
import type { BootOptions } from "../../lib/vm/boot_options.ts";
import type { BootedVm } from "../../lib/vm/vm.ts";
import { temporaryDir } from "./directory.ts";
import {
  type FakeMachine,
  fakeMachine,
  type FakeMachineOptions,
  type FakeRequest,
  honest,
} from "./fake_machine.ts";
import { makeQcow2, writeImage } from "./qcow2.ts";
import {
  runWarmShellGuest,
  type WaitingGuestOptions,
} from "./waiting_guest.ts";

/** The temporary overlay that QEMU puts above a disk. */
export const TEMPORARY_OVERLAY = "/var/tmp/vl.1";

export interface FakeVmOptions extends Omit<FakeMachineOptions, "qemu"> {
  /** QEMU's answer to a command; `undefined` for the default. */
  qemu?: (command: QmpCommand, fake: Omit<FakeVm, "vm">) => unknown;
  /** Overrides the machine's properties. */
  machine?: Partial<QemuProcess>;
  /** Overrides boot options. */
  options?: Partial<BootOptions>;
  /** How the VM starts. @default {"boot"} */
  how?: "boot" | "restore";
  /** Overrides parts of the plan. */
  plan?: Partial<QemuPlan>;
  /** The behaviour of the warm shell in a restored guest. */
  waiting?: WaitingGuestOptions;
}

/** The VM; disposing it ends the fake machine. */
export interface FakeVm extends AsyncDisposable {
  /** The VM under test. */
  vm: StartingVm;
  /** The machine behind the agent's socket. */
  guest: FakeMachine;
  /** A directory with the image, and with snapshots. */
  dir: string;
  /** Its image. */
  image: string;
  /** QEMU commands and ended parts, in order. */
  actions: string[];
  /** The events without their times. */
  events: Record<string, unknown>[];
  /** Texts of warnings. */
  warnings(): unknown[];
  /** Opens the staging of its snapshot. */
  stage(): Promise<SnapshotStaging>;
  /** Ends QEMU. */
  end(code?: number): void;
}

/** The answers of an agent whose scripts succeed at once. */
export function answerScriptsWithSuccess(request: FakeRequest): unknown {
  if (request.execute === "guest-info") return { version: "7.2.22" };
  if (request.execute !== "guest-exec-status") return honest(request);
  return { exited: true, exitcode: 0 };
}

/** Makes a fake VM that starts. */
export async function fakeVm(options: FakeVmOptions = {}): Promise<FakeVm> {
  const { agent = answerScriptsWithSuccess } = options;
  const how = { prepared: true, ...options, agent, qemu: undefined };
  const guest = await fakeMachine(how);
  const dir = await temporaryDir();
  const image = join(dir.path, "a.qcow2");
  await writeImage(image, makeQcow2({}));
  const actions: string[] = [];
  const events: Record<string, unknown>[] = [];
  const ended = Promise.withResolvers<{ code: number; signal: null }>();
  const noted = (what: string) => () => {
    actions.push(what);
    return Promise.resolve();
  };
  // deno-lint-ignore no-explicit-any -- an event has its time added.
  const emit = (event: any) => {
    events.push(event satisfies Omit<ToolsmithEvent, "timestamp">);
  };
  const plan: QemuPlan = {
    ...{ program: "qemu", disk: image, ephemeral: true },
    ...{ accelerator: "tcg", memory: 64, cpus: 2, shares: [], extra: [] },
    ...options.plan,
  };
  const snapshots = {
    ...{ dir: join(dir.path, "machines"), digest: "sha256:1" },
    ...{ memoryMib: plan.memory, emit },
  };
  const slot = new SnapshotSlot("a".repeat(64), snapshots);
  const fake: Omit<FakeVm, "vm"> = {
    ...{ guest, dir: dir.path, image, actions, events },
    warnings: () =>
      events.filter(({ type }) => type === "warning")
        .map(({ message }) => message),
    async stage() {
      const staging = (await slot.tryCreateStaging())!;
      await Deno.writeTextFile(staging.state, "", { mode: 0o600 });
      await Deno.writeTextFile(staging.memory, "", { mode: 0o600 });
      await writeOverlay(staging.disk, image);
      return staging;
    },
    end: (code = 0) => ended.resolve({ code, signal: null }),
    async [Symbol.asyncDispose]() {
      // After a failure the caller does that.
      vm.warmShell?.disconnect();
      await vm.watch[Symbol.asyncDispose]();
      // A stop has removed it.
      await Deno.mkdir(guest.dir, { recursive: true });
      await guest[Symbol.asyncDispose]();
      await dir[Symbol.asyncDispose]();
    },
  };
  const answer = (command: QmpCommand) => {
    const [name, args] = command;
    actions.push(name);
    const said = options.qemu?.(command, fake);
    if (said instanceof Error) throw said;
    if (said !== undefined) return said;
    if (name === "query-status") return { status: "paused" };
    if (name === "query-block") return [qemuDrive(TEMPORARY_OVERLAY, image)];
    if (name === "query-migrate") return { status: "completed" };
    if (name === "migrate") {
      const path = String(args!.uri).replace("unix:", "");
      Deno.connect({ transport: "unix", path }).then((it) => it.close());
    }
    return {};
  };
  const qmp: QmpConnection = {
    version: "7.2.22",
    // deno-lint-ignore require-await -- a refusal rejects.
    execute: async (...commands) => commands.map(answer),
    [Symbol.asyncDispose]: noted("qmp closed"),
  };
  const machine: QemuProcess = {
    loadSnapshot() {
      runWarmShellGuest(guest, options.waiting).catch(() => {});
      return noted("loaded")();
    },
    ...{ plan, dir: guest.dir, pid: 4242, qmp, ended: ended.promise },
    agentHasConnected: () => false,
    consoleByteCount: () => 0,
    isGuestStopped: () => false,
    haltingDiskError: new Promise<never>(() => {}),
    consoleFailure: () => undefined,
    consoleTail: () => "",
    stderrTail: () => "",
    writeToConsole: () => Promise.resolve(),
    leaveRunning: noted("machine released"),
    async [Symbol.asyncDispose]() {
      actions.push("machine ended");
      await Deno.remove(guest.dir, { recursive: true }).catch(() => {});
    },
    ...options.machine,
  };
  const vm = new StartingVm(
    {
      ...{ plan, emit, slot, timer: new BootTimer() },
      options: { image, snapshots, ...options.options },
    },
    machine,
    options.how ?? "boot",
  );
  return { ...fake, vm };
}

/** QEMU's description of a disk: each file is an overlay of the next. */
export function qemuDrive(...files: string[]): Record<string, unknown> {
  const image = files.reduceRight<unknown>(
    (below, filename) => ({ filename, "backing-image": below }),
    undefined,
  );
  return { device: DISK_ID, inserted: { image } };
}

/** Boots the fake VM and attaches its devices. */
export async function bootFake({ vm }: FakeVm): Promise<BootedVm> {
  await bootGuest(vm);
  return await finishBoot(vm);
}

/** Stops a running fake VM. */
export async function stopFake(fake: FakeVm, vm: BootedVm): Promise<void> {
  fake.end();
  await vm.stop();
}

/** Returns the boot_ready event and asserts that its phases add up. */
export function readyEvent({ events }: FakeVm): Record<string, unknown> {
  const { phases, elapsedMs, ...rest } = events.find(({ type }) =>
    type === "boot_ready"
  )!;
  const parts = Object.values(phases as Record<string, number>);
  assertEquals(elapsedMs, parts.reduce((sum, ms) => sum + ms));
  return rest;
}
