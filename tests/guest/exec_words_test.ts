import fc from "fast-check";
import { execInGuest } from "../../lib/guest/exec.ts";
import type { Monitor } from "../../lib/qemu/monitor.ts";
import { failure } from "../support/failure.ts";

/** No machine is asked for anything. */
const monitor = {} as Monitor;

Deno.test("words that cannot be passed exactly are refused before a command starts", async () => {
  const half = fc.constantFrom("\ud83d", "\udc00", "\0");
  const bad = fc.tuple(fc.string(), half, fc.string()).map((it) => it.join(""));
  await fc.assert(fc.asyncProperty(bad, async (word) => {
    await failure("usage", () => execInGuest(monitor, word));
    await failure("usage", () => execInGuest(monitor, "a", { args: [word] }));
    await failure("usage", () => execInGuest(monitor, "a", { cwd: word }));
    const env = { A: word };
    await failure("usage", () => execInGuest(monitor, "a", { env }));
    const named = { [word]: "a" };
    await failure("usage", () => execInGuest(monitor, "a", { env: named }));
  }));
  await failure("usage", () => execInGuest(monitor, ""));
});
