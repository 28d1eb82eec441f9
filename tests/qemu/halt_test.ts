import { assertEquals } from "@std/assert";
import { haltOfAnswers, haltOfEvent } from "../../lib/qemu/halt.ts";

const halted = { status: "io-error" };

Deno.test("QEMU's event says whether a disk is full or broken", () => {
  const event = (data?: Record<string, unknown>, name = "BLOCK_IO_ERROR") =>
    haltOfEvent({ event: name, data });
  const full = event({ action: "stop", nospace: true, reason: "x" });
  assertEquals(full?.code, "disk_full");
  const broken = event({
    action: "stop",
    nospace: false,
    reason: "bad\nblock",
  });
  assertEquals(broken?.code, "guest_failed");
  assertEquals(broken?.message, "The guest's disk failed: bad block");
  assertEquals(event({ action: "report", nospace: true }), undefined);
  assertEquals(event({ action: "stop" }, "RESUME"), undefined);
  assertEquals(event(), undefined);
});

Deno.test("QEMU's answers say the same to whoever asks later", () => {
  const block = (status: string) => [{ device: "a" }, { "io-status": status }];
  assertEquals(haltOfAnswers([halted, block("nospace")])?.code, "disk_full");
  assertEquals(haltOfAnswers([halted, block("failed")])?.code, "guest_failed");
  assertEquals(haltOfAnswers([halted, null])?.code, "guest_failed");
  const running = { status: "running" };
  assertEquals(haltOfAnswers([running, block("nospace")]), undefined);
  for (const answers of [[], [null], ["io-error"], [[]]]) {
    assertEquals(haltOfAnswers(answers), undefined);
  }
});
