/**
 * One boot attempt: its plan, the VM that it has started, and its console input.
 */
import type { SnapshotStaging } from "../cache/snapshots.ts";
import type { Emit, EventFields } from "../events.ts";
import type { WarmShell } from "../guest/warm_shell.ts";
import type { GuestNetwork } from "../net/network.ts";
import { resolve } from "../path.ts";
import type { AgentConnection } from "../qemu/agent.ts";
import type { Monitor } from "../qemu/monitor.ts";
import type { QemuPlan, QemuProcess } from "../qemu/qemu_process.ts";
import { clearSetIdBits } from "../qemu/set_id_bits.ts";
import type { BootOptions } from "./boot_options.ts";
import { watchGuest } from "./_readiness.ts";
import type { SnapshotSlot } from "./_snapshot_slot.ts";
import type { VmFacts } from "./vm.ts";

export interface BootAttempt {
  plan: QemuPlan;
  options: BootOptions;
  emit: Emit;
  timer: BootTimer;
  /** `undefined` for a VM that cannot have a snapshot. */
  slot: SnapshotSlot | undefined;
  /** Where the booted VM is saved. */
  staging?: SnapshotStaging;
  /** Name and version of the guest agent, once it is identified. */
  agentName?: string;
  /** When the booted VM was paused to save it. */
  pausedAtMs?: number;
}

export class StartingVm {
  readonly consoleInput: ConsoleInput;
  readonly facts: Omit<VmFacts, "shares">;
  readonly size: Pick<VmFacts, "version" | "accelerator" | "memory" | "cpus">;
  readonly watch: ReturnType<typeof watchGuest>;
  /** Set when the guest runs. */
  monitor!: Monitor;
  /** May not have answered yet; `undefined` for a guest with only a console. */
  agent: AgentConnection | Promise<AgentConnection> | undefined;
  /** Waits in a guest that is saved or restored. */
  warmShell: WarmShell | undefined;
  /** Writable directories on the host that the guest has had access to. */
  exportDirs: string[] = [];
  network: GuestNetwork | undefined;

  constructor(
    readonly attempt: BootAttempt,
    readonly qemu: QemuProcess,
    readonly how: "boot" | "restore",
  ) {
    const { options } = attempt;
    const { pid, dir, qmp: { version }, plan } = qemu;
    const { accelerator, memory, cpus } = plan;
    const image = resolve(options.image);
    const network = Boolean(options.network);
    this.size = { version, accelerator, memory, cpus };
    this.facts = { image, pid, dir, ...this.size, network };
    this.watch = watchGuest(qemu, how, options);
    this.consoleInput = new ConsoleInput(options.console?.input, qemu);
  }

  emitVmBoot(): void {
    const { attempt: { emit }, facts: { image }, how, size } = this;
    emit({ type: "vm_boot", image, how, backend: "qemu", ...size });
  }

  async endQemu(): Promise<void> {
    this.warmShell?.disconnect();
    await this.qemu[Symbol.asyncDispose]();
    await this.network?.[Symbol.asyncDispose]();
    await this.consoleInput.pause();
  }

  /** Ends QEMU, clears set-ID bits in exports and waits for the snapshot's commit. */
  async endAndClearSetIdBits(signal?: AbortSignal): Promise<void> {
    await this.endQemu();
    // Unlike QEMU's supervisor, nobody would do this if this process were killed now.
    await clearSetIdBits(this.exportDirs, { signal });
    await this.attempt.slot?.waitForCommit();
  }
}

type Phases = EventFields["boot_ready"]["phases"];

/** Measures the phases of a boot, in whole milliseconds. */
export class BootTimer {
  readonly phases: Phases = { start: 0, guest: 0, save: 0, attach: 0 };
  #phaseStart = performance.now();

  endPhase(phase: keyof Phases): void {
    const now = performance.now();
    this.phases[phase] += Math.round(now - this.#phaseStart);
    this.#phaseStart = now;
  }
}

/** Forwards a stream to the guest's serial console until QEMU ends. */
export class ConsoleInput {
  hasForwarded = false;
  #stop = new AbortController();
  #forwarding: Promise<void> | undefined;

  constructor(
    private readonly input: ReadableStream<Uint8Array> | undefined,
    private readonly qemu: QemuProcess,
  ) {
    this.resume();
  }

  /** Stops forwarding and leaves further input to another reader. */
  async pause(): Promise<void> {
    this.#stop.abort();
    await this.#forwarding;
    this.#forwarding = undefined;
  }

  resume(): void {
    if (this.#forwarding || !this.input) return;
    const console = new WritableStream<Uint8Array>({
      write: (chunk) => {
        this.hasForwarded = true;
        return this.qemu.writeToConsole(chunk);
      },
    });
    this.#stop = new AbortController();
    const how = { signal: this.#stop.signal, preventCancel: true };
    this.#forwarding = this.input.pipeTo(console, how).catch(() => {});
  }

  /** Stops forwarding and cancels the stream. */
  async cancel(): Promise<void> {
    if (!this.#forwarding) return;
    await this.pause();
    await this.input?.cancel().catch(() => {});
  }
}
