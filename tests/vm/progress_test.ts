/**
 * When a guest is not waited for any longer. The clock is the test's: each look at
 * the guest takes as long as the test says.
 */
import { assertEquals } from "@std/assert";
import type { BootOptions } from "../../lib/vm/options.ts";
import { type NoProgress, watchProgress } from "../../lib/vm/_progress.ts";
import { fakeStart, IMAGE } from "../support/fake_start.ts";
import { hurriedTimers } from "../support/timers.ts";

const MIB = 2 ** 20;

/** What a guest has done at a look at it. */
interface Doing {
  console?: number;
  agent?: boolean;
  /** `null` where QEMU does not answer. */
  read?: number | null;
}

/** Watches a guest, at which a look is taken every `everyMs` of its time. */
async function watched(
  doing: (look: number) => Doing,
  { everyMs = 5000, ...options }:
    & Partial<BootOptions>
    & { everyMs?: number; restored?: boolean } = {},
) {
  let [looks, time] = [0, 0];
  const { restored, ...rest } = options;
  await using fake = await fakeStart({
    machine: {
      consoleBytes: () => doing(looks).console ?? 0,
      agentSeen: () => doing(looks).agent ?? false,
    },
    qemu([name]) {
      if (name !== "query-blockstats") return undefined;
      time += everyMs;
      const { read = 0 } = doing(++looks);
      if (read === null) return new Error("gone");
      return [{ stats: { rd_bytes: read } }, { stats: { rd_bytes: 0 } }];
    },
    start: () => ({
      options: { image: IMAGE, ...rest },
      ...restored ? { files: { path: "/m/key", disk: "/m/disk" } } : {},
    }),
  });
  using _timers = hurriedTimers(() => 0);
  await using progress = watchProgress(fake.start, () => time);
  const { signal } = progress;
  if (!signal.aborted) {
    await new Promise((done) => signal.addEventListener("abort", done));
  }
  const { seconds, done } = signal.reason as NoProgress;
  return [seconds, done];
}

const READ = "the guest read 12.0 MiB of its disk";

function test(name: string, fn: () => Promise<void>) {
  Deno.test({ name, ignore: Deno.build.os === "windows", fn });
}

test("watchProgress() gives a guest 120 s after its last sign of work", async () => {
  const nothing = `${READ}, then did nothing for 120 s`;
  const signs: ((look: number) => Doing)[] = [
    (look) => ({ console: Math.min(look, 60), read: 12 * MIB }),
    (look) => ({ read: 12 * MIB - Math.max(60 - look, 0) }),
    (look) => ({ agent: look >= 60, read: 12 * MIB }),
  ];
  // Until its 60th look, after 300 s, each but the last moves all the time.
  assertEquals(await watched(signs[0]), [420, nothing]);
  assertEquals(await watched(signs[1]), [420, nothing]);
  assertEquals(await watched(signs[2]), [125, nothing]);
  const agent = (look: number) => ({ agent: look >= 20, read: 12 * MIB });
  assertEquals(await watched(agent), [220, nothing]);
});

test("watchProgress() gives a guest that never ceases to work 30 minutes", async () => {
  const busy = (look: number) => ({ console: look, read: 12 * MIB });
  assertEquals(await watched(busy), [1800, READ]);
});

test("watchProgress() keeps to --boot-timeout, whatever the guest does", async () => {
  const idle = () => ({ read: 12 * MIB });
  const busy = (look: number) => ({ console: look, read: 12 * MIB });
  for (const doing of [idle, busy]) {
    const bootTimeoutMs = 600_000;
    assertEquals(await watched(doing, { bootTimeoutMs }), [600, READ]);
    assertEquals(await watched(doing, { bootTimeoutMs: 150 }), [0.15, READ]);
  }
});

test("watchProgress() gives a guest with a console on a terminal 120 s", async () => {
  const busy = (look: number) => ({ console: look, read: 12 * MIB });
  const agentOptional = true;
  assertEquals(await watched(busy, { agentOptional }), [120, READ]);
});

test("watchProgress() gives a restored guest 60 s without work, and 5 minutes", async () => {
  const restored = true;
  const idle = () => ({ read: 12 * MIB });
  const nothing = `${READ}, then did nothing for 60 s`;
  assertEquals(await watched(idle, { restored }), [65, nothing]);
  const busy = (look: number) => ({ console: look, read: 12 * MIB });
  assertEquals(await watched(busy, { restored }), [300, READ]);
  const bootTimeoutMs = 10_000;
  assertEquals(await watched(busy, { restored, bootTimeoutMs }), [10, READ]);
});

test("watchProgress() takes a QEMU that does not answer for a guest that does nothing", async () => {
  const silent = (look: number) => ({ read: look < 10 ? 12 * MIB : null });
  const nothing = `${READ}, then did nothing for 120 s`;
  assertEquals(await watched(silent), [125, nothing]);
});

test("watchProgress() passes the caller's cancel on, and stops when it is disposed", async () => {
  const stop = new AbortController();
  const { signal } = stop;
  await using fake = await fakeStart({
    start: () => ({ options: { image: IMAGE, signal } }),
  });
  {
    await using progress = watchProgress(fake.start);
    stop.abort("enough");
    assertEquals(progress.signal.reason, "enough");
  }
  assertEquals(fake.done, []);
});
