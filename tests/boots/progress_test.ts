/**
 * Slow or hanging real guests, with a clock that runs faster than the host's: it
 * advances with the guest's activity.
 */
import { assert, assertMatch } from "@std/assert";
import { boot } from "../../lib/vm/boot.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { buildTestGuest, env, needsGuest } from "../support/guest.ts";
import { changeTimerDelays, installMovingClock } from "../support/timers.ts";

Deno.test({
  name: "boot() waits minutes for a slow guest that makes progress",
  ...needsGuest,
  async fn() {
    using clock = installMovingClock();
    let passed = 0;
    const output = () => {
      // The guest prints often, but the total time is limited.
      if (passed < 600_000) passed = clock.pass(100_000);
    };
    await using vm = await boot({
      ...{ image: await buildTestGuest(), env, accelerator: "tcg" },
      console: { output },
    });
    assert(passed >= 300_000, `${passed}`);
    const { code } = await vm.exec("true");
    assert(code === 0);
  },
});

Deno.test({
  name: "boot() reports the last activity of a guest that hangs",
  ...needsGuest,
  async fn() {
    using clock = installMovingClock();
    using _timers = changeTimerDelays((ms) =>
      ms > 1000 && ms <= 5000 ? 50 : ms
    );
    const decoder = new TextDecoder();
    let said = "";
    let idle: ReturnType<typeof setInterval> | undefined;
    const output = (chunk: Uint8Array) => {
      said += decoder.decode(chunk, { stream: true });
      if (!said.includes("/ #")) return;
      idle ??= setInterval(() => clock.pass(10_000), 20);
    };
    const error = await expectFailure("guest_not_ready", async () =>
      boot({
        ...{ image: await buildTestGuest("noAgent"), env, accelerator: "tcg" },
        console: { output },
      })).finally(() => clearInterval(idle));
    assertMatch(
      error.message,
      /read [1-9][\d.]+ MiB of its disk, then did nothing for 120 s; its console ends with:\n[^]*\/ #/,
    );
  },
});
