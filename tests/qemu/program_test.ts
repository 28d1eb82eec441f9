import { assert, assertEquals } from "@std/assert";
import { qemuProgram, queryQemuVersion } from "../../lib/qemu/program.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { foundTools, requires } from "../support/parts.ts";

Deno.test({
  name: "queryQemuVersion() returns the version of the installed QEMU",
  ...requires("qemu"),
  async fn() {
    assert(/^\d+\.\d+/.test(await queryQemuVersion(foundTools.qemu!)));
  },
});

Deno.test("queryQemuVersion() reports a missing or wrong program with a hint to install QEMU", async () => {
  for (const program of ["/nowhere/qemu", Deno.execPath()]) {
    const error = await expectFailure(
      "qemu_not_found",
      () => queryQemuVersion(program),
    );
    assert(error.message.includes(program));
    assert(error.hint?.includes("TOOLSMITH_QEMU"));
  }
  assertEquals(
    qemuProgram(new Map([["TOOLSMITH_QEMU", "/my/qemu"]])),
    "/my/qemu",
  );
  assertEquals(qemuProgram(new Map()), "qemu-system-x86_64");
  const arm = await expectFailure(
    "qemu_not_found",
    () => queryQemuVersion("/nowhere/qemu-system-aarch64"),
  );
  assert(arm.hint?.includes("qemu-system-arm"));
});

Deno.test("qemuProgram() derives the program for the other processor from TOOLSMITH_QEMU", () => {
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
