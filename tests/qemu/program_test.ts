import { assert, assertEquals } from "@std/assert";
import { qemuProgram, qemuVersion } from "../../lib/qemu/program.ts";
import { failure } from "../support/failure.ts";
import { needs, parts } from "../support/parts.ts";

Deno.test({
  name: "QEMU tells its version",
  ...needs("qemu"),
  async fn() {
    assert(/^\d+\.\d+/.test(await qemuVersion(parts.qemu!)));
  },
});

Deno.test("a QEMU that is missing, or is something else, says what to install", async () => {
  for (const program of ["/nowhere/qemu", Deno.execPath()]) {
    const error = await failure("qemu_not_found", () => qemuVersion(program));
    assert(error.message.includes(program));
    assert(error.hint?.includes("TOOLSMITH_QEMU"));
  }
  assertEquals(
    qemuProgram(new Map([["TOOLSMITH_QEMU", "/my/qemu"]])),
    "/my/qemu",
  );
  assertEquals(qemuProgram(new Map()), "qemu-system-x86_64");
});
