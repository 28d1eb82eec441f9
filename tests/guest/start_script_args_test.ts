import fc from "fast-check";
import { execInGuest } from "../../lib/guest/exec.ts";
import type { Monitor } from "../../lib/qemu/monitor.ts";
import { expectFailure } from "../support/expect_failure.ts";

/** Never called: execInGuest() must fail before. */
const monitor = {} as Monitor;

Deno.test("execInGuest() rejects arguments with zero bytes or lone surrogates before the command starts", async () => {
  const half = fc.constantFrom("\ud83d", "\udc00", "\0");
  const bad = fc.tuple(fc.string(), half, fc.string()).map((it) => it.join(""));
  await fc.assert(fc.asyncProperty(bad, async (word) => {
    await expectFailure("usage", () => execInGuest(monitor, word));
    await expectFailure(
      "usage",
      () => execInGuest(monitor, "a", { args: [word] }),
    );
    await expectFailure(
      "usage",
      () => execInGuest(monitor, "a", { cwd: word }),
    );
    const env = { A: word };
    await expectFailure("usage", () => execInGuest(monitor, "a", { env }));
    const named = { [word]: "a" };
    await expectFailure(
      "usage",
      () => execInGuest(monitor, "a", { env: named }),
    );
  }));
  await expectFailure("usage", () => execInGuest(monitor, ""));
});
