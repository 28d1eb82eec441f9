/**
 * Guests that are slow, or do nothing: real ones, whose time passes sooner than the
 * host's. It moves when they do something, not with the host's clock.
 */
import { assert, assertMatch } from "@std/assert";
import { boot } from "../../lib/vm/boot.ts";
import { failure } from "../support/failure.ts";
import { env, guest, needsGuest } from "../support/guest.ts";
import { hurriedTimers } from "../support/timers.ts";

/** Lets time pass that nobody waits for. */
function movingClock() {
  const now = performance.now.bind(performance);
  let passed = 0;
  performance.now = () => now() + passed;
  return {
    pass: (ms: number) => passed += ms,
    [Symbol.dispose]: () => void (performance.now = now),
  };
}

Deno.test({
  name: "boot() waits for a guest that takes minutes and shows what it does",
  ...needsGuest,
  async fn() {
    using clock = movingClock();
    let passed = 0;
    const output = () => {
      // It prints often, but has a limit in all.
      if (passed < 600_000) passed = clock.pass(100_000);
    };
    await using vm = await boot({
      ...{ image: await guest(), env, accelerator: "tcg" },
      console: { output },
    });
    assert(passed >= 300_000, `${passed}`);
    const { code } = await vm.exec("true");
    assert(code === 0);
  },
});

Deno.test({
  name: "boot() reports what a guest did that does nothing any more",
  ...needsGuest,
  async fn() {
    using clock = movingClock();
    using _timers = hurriedTimers((ms) => ms > 1000 && ms <= 5000 ? 50 : ms);
    const decoder = new TextDecoder();
    let said = "";
    let idle: ReturnType<typeof setInterval> | undefined;
    const output = (chunk: Uint8Array) => {
      said += decoder.decode(chunk, { stream: true });
      if (!said.includes("/ #")) return;
      idle ??= setInterval(() => clock.pass(10_000), 20);
    };
    const error = await failure("guest_not_ready", async () =>
      boot({
        ...{ image: await guest("noAgent"), env, accelerator: "tcg" },
        console: { output },
      })).finally(() => clearInterval(idle));
    assertMatch(
      error.message,
      /read [1-9][\d.]+ MiB of its disk, then did nothing for 120 s; its console ends with:\n[^]*\/ #/,
    );
  },
});
