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
  const arm = await failure(
    "qemu_not_found",
    () => qemuVersion("/nowhere/qemu-system-aarch64"),
  );
  assert(arm.hint?.includes("qemu-system-arm"));
});

Deno.test("TOOLSMITH_QEMU implies the program for the other processor beside it", () => {
  const program = (given: string, arch: "x86_64" | "aarch64") =>
    qemuProgram(new Map([["TOOLSMITH_QEMU", given]]), arch);
  const beside = "/opt/qemu/bin/qemu-system-x86_64";
  assertEquals(program(beside, "x86_64"), beside);
  assertEquals(
    program(beside, "aarch64"),
    "/opt/qemu/bin/qemu-system-aarch64",
  );
  assertEquals(program("qemu-system-aarch64", "x86_64"), "qemu-system-x86_64");
  assertEquals(program("/my/qemu", "aarch64"), "qemu-system-aarch64");
  assertEquals(qemuProgram(new Map(), "aarch64"), "qemu-system-aarch64");
});
