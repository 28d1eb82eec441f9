import { assertEquals } from "@std/assert";
import { memoryAndCpus, parseArch } from "../../lib/vm/boot_options.ts";
import { expectFailure } from "../support/expect_failure.ts";

Deno.test("parseArch() accepts amd64, x86_64, arm64 and aarch64 and rejects other names", async () => {
  const names = { amd64: "x86_64", x86_64: "x86_64", arm64: "aarch64" };
  for (const [name, arch] of Object.entries({ ...names, aarch64: "aarch64" })) {
    assertEquals<string>(parseArch(name), arch);
  }
  for (const name of ["riscv64", "", "toString"]) {
    const error = await expectFailure("usage", () => parseArch(name));
    assertEquals(error.message, `Unsupported guest processor: ${name}`);
    assertEquals(error.hint, "use amd64 or arm64");
  }
});

Deno.test("memoryAndCpus() defaults to 512 MiB and two CPUs and rejects invalid values", async () => {
  const image = "/a.qcow2";
  const cpus = Math.min(2, navigator.hardwareConcurrency);
  assertEquals(memoryAndCpus({ image }), { memory: 512, cpus });
  const asked = { memory: 1, cpus: 1 };
  assertEquals(memoryAndCpus({ image, ...asked }), asked);
  for (const value of [0, -1, 1.5, NaN, 2 ** 53]) {
    for (const name of ["memory", "cpus"]) {
      const error = await expectFailure(
        "usage",
        () => memoryAndCpus({ image, [name]: value }),
      );
      assertEquals(error.message, `Invalid ${name}: ${value}`);
    }
  }
});
