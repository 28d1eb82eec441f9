import { assertEquals } from "@std/assert";
import { diskErrorFromEvent, diskErrorFromStatus } from "../../lib/qemu/qmp.ts";

const halted = { status: "io-error" };

Deno.test("diskErrorFromEvent() distinguishes a full disk from a failed one", () => {
  const event = (data: Record<string, unknown>, name = "BLOCK_IO_ERROR") =>
    diskErrorFromEvent({ event: name, data });
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
  assertEquals(event({}), undefined);
});

Deno.test("diskErrorFromStatus() distinguishes a full disk from a failed one", () => {
  const block = (status: string) => [{ device: "a" }, { "io-status": status }];
  assertEquals(
    diskErrorFromStatus([halted, block("nospace")])?.code,
    "disk_full",
  );
  assertEquals(
    diskErrorFromStatus([halted, block("failed")])?.code,
    "guest_failed",
  );
  assertEquals(diskErrorFromStatus([halted, null])?.code, "guest_failed");
  const running = { status: "running" };
  assertEquals(diskErrorFromStatus([running, block("nospace")]), undefined);
  for (const answers of [[], [null], ["io-error"], [[]]]) {
    assertEquals(diskErrorFromStatus(answers), undefined);
  }
});
