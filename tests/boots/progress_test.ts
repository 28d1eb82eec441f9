/**
 * Slow or hanging real guests, with a clock that runs faster than the host's: it
 * advances with the guest's activity.
 */
import { assertEquals, assertMatch } from "@std/assert";
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
      // Once: how often the output is read depends on the host.
      if (passed === 0) passed = clock.pass(600_000);
    };
    await using vm = await boot({
      ...{ image: await buildTestGuest(), env, accelerator: "tcg" },
      console: { output },
    });
    assertEquals(passed, 600_000);
    const { code } = await vm.exec("true");
    assertEquals(code, 0);
  },
});

Deno.test({
  name: "boot() reports the last activity of a guest that hangs",
  ...needsGuest,
  async fn() {
    using clock = installMovingClock();
    const decoder = new TextDecoder();
    let said = "";
    const output = (chunk: Uint8Array) => {
      said += decoder.decode(chunk, { stream: true });
    };
    using _timers = changeTimerDelays((ms) => {
      if (ms <= 1000 || ms > 5000) return ms;
      // From poll to poll, as QEMU may answer one late.
      if (said.includes("/ #")) clock.pass(10_000);
      return 50;
    });
    const error = await expectFailure("guest_not_ready", async () =>
      boot({
        ...{ image: await buildTestGuest("noAgent"), env, accelerator: "tcg" },
        console: { output },
      }));
    assertMatch(
      error.message,
      /read [1-9][\d.]+ MiB of its disk, then did nothing for 120 s; its console ends with:\n[^]*\/ #/,
    );
  },
});
