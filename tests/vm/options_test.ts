import { assertEquals } from "@std/assert";
import { parseArch, sizes } from "../../lib/vm/options.ts";
import { failure } from "../support/failure.ts";

Deno.test("a processor has the names that people and programs give it", async () => {
  const names = { amd64: "x86_64", x86_64: "x86_64", arm64: "aarch64" };
  for (const [name, arch] of Object.entries({ ...names, aarch64: "aarch64" })) {
    assertEquals<string>(parseArch(name), arch);
  }
  for (const name of ["riscv64", "", "toString"]) {
    const error = await failure("usage", () => parseArch(name));
    assertEquals(error.message, `Not a processor of a guest: ${name}`);
    assertEquals(error.hint, "it is amd64 or arm64");
  }
});

Deno.test("a machine has 512 MiB and two processors, or what was asked for", async () => {
  const image = "/a.qcow2";
  const cpus = Math.min(2, navigator.hardwareConcurrency);
  assertEquals(sizes({ image }), { memory: 512, cpus });
  const asked = { memory: 1, cpus: 1 };
  assertEquals(sizes({ image, ...asked }), asked);
  for (const value of [0, -1, 1.5, NaN, 2 ** 53]) {
    for (const name of ["memory", "cpus"]) {
      const error = await failure(
        "usage",
        () => sizes({ image, [name]: value }),
      );
      assertEquals(error.message, `Not a usable ${name}: ${value}`);
    }
  }
});
