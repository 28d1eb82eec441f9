/**
 * Boot timeouts with a simulated clock: each poll of the guest takes as long as the test
 * says.
 */
import { assertEquals } from "@std/assert";
import type { ToolsmithError } from "../../lib/errors.ts";
import type { BootOptions } from "../../lib/vm/boot_options.ts";
import { watchGuest } from "../../lib/vm/_readiness.ts";
import { fakeVm } from "../support/fake_vm.ts";
import { replaceMethod } from "../support/replace_method.ts";
import { changeTimerDelays } from "../support/timers.ts";

const MIB = 2 ** 20;
const MESSAGE_PATTERN = / within ([\d.]+) s.*; (.*); its console is empty$/;

/** The guest's activity up to a poll. */
interface Doing {
  console?: number;
  agent?: boolean;
  /** `null`: QEMU does not answer. */
  read?: number | null;
}

/** Watches a guest with one poll per `everyMs` of simulated time. */
async function watched(
  doing: (look: number) => Doing,
  { everyMs = 5000, ...options }:
    & Partial<BootOptions>
    & { everyMs?: number; restored?: boolean } = {},
) {
  let [looks, time] = [0, 0];
  const { restored, ...rest } = options;
  await using fake = await fakeVm({
    machine: {
      consoleByteCount: () => doing(looks).console ?? 0,
      agentHasConnected: () => doing(looks).agent ?? false,
    },
    qemu([name]) {
      if (name !== "query-blockstats") return undefined;
      time += everyMs;
      const { read = 0 } = doing(++looks);
      if (read === null) return new Error("gone");
      return [{ stats: { rd_bytes: read } }, { stats: { rd_bytes: 0 } }];
    },
  });
  await fake.vm.watch[Symbol.asyncDispose]();
  using _timers = changeTimerDelays(() => 0);
  using _clock = replaceMethod(performance, { now: () => time });
  const how = restored ? "restore" : "boot";
  await using watch = watchGuest(fake.vm.qemu, how, rest);
  const { signal } = watch;
  if (!signal.aborted) {
    await new Promise((done) => signal.addEventListener("abort", done));
  }
  const { message } = signal.reason as ToolsmithError;
  const [, seconds, activity] = MESSAGE_PATTERN.exec(message)!;
  return [Number(seconds), activity];
}

const READ = "the guest read 12.0 MiB of its disk";

function test(name: string, fn: () => Promise<void>) {
  Deno.test({ name, ignore: Deno.build.os === "windows", fn });
}

test("watchGuest() times out 120 s after the guest's last activity", async () => {
  const nothing = `${READ}, then did nothing for 120 s`;
  const signs: ((look: number) => Doing)[] = [
    (look) => ({ console: Math.min(look, 60), read: 12 * MIB }),
    (look) => ({ read: 12 * MIB - Math.max(60 - look, 0) }),
    (look) => ({ agent: look >= 60, read: 12 * MIB }),
  ];
  // The first two are active until the 60th poll, after 300 s.
  assertEquals(await watched(signs[0]), [420, nothing]);
  assertEquals(await watched(signs[1]), [420, nothing]);
  assertEquals(await watched(signs[2]), [125, nothing]);
  const agent = (look: number) => ({ agent: look >= 20, read: 12 * MIB });
  assertEquals(await watched(agent), [220, nothing]);
});

test("watchGuest() times out after 30 minutes of constant activity", async () => {
  const busy = (look: number) => ({ console: look, read: 12 * MIB });
  assertEquals(await watched(busy), [1800, READ]);
});

test("watchGuest() times out after bootTimeoutMs, whatever the guest does", async () => {
  const idle = () => ({ read: 12 * MIB });
  const busy = (look: number) => ({ console: look, read: 12 * MIB });
  for (const doing of [idle, busy]) {
    const bootTimeoutMs = 600_000;
    assertEquals(await watched(doing, { bootTimeoutMs }), [600, READ]);
    assertEquals(await watched(doing, { bootTimeoutMs: 150 }), [0.15, READ]);
  }
});

test("watchGuest() times out after 120 s when the agent is optional", async () => {
  const busy = (look: number) => ({ console: look, read: 12 * MIB });
  const agentOptional = true;
  assertEquals(await watched(busy, { agentOptional }), [120, READ]);
});

test("watchGuest() times out a restored guest after 60 s idle or 5 minutes", async () => {
  const restored = true;
  const idle = () => ({ read: 12 * MIB });
  const nothing = `${READ}, then did nothing for 60 s`;
  assertEquals(await watched(idle, { restored }), [65, nothing]);
  const busy = (look: number) => ({ console: look, read: 12 * MIB });
  assertEquals(await watched(busy, { restored }), [300, READ]);
  const bootTimeoutMs = 10_000;
  assertEquals(await watched(busy, { restored, bootTimeoutMs }), [10, READ]);
});

test("watchGuest() treats a silent QEMU as an idle guest", async () => {
  const silent = (look: number) => ({ read: look < 10 ? 12 * MIB : null });
  const nothing = `${READ}, then did nothing for 120 s`;
  assertEquals(await watched(silent), [125, nothing]);
});

test("watchGuest() forwards the caller's abort and stops when disposed", async () => {
  const stop = new AbortController();
  const { signal } = stop;
  await using fake = await fakeVm();
  {
    await using watch = watchGuest(fake.vm.qemu, "boot", { signal });
    stop.abort("enough");
    assertEquals(watch.signal.reason, "enough");
  }
  assertEquals(fake.actions, []);
});
