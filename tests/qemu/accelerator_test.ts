import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { accelerators, rememberBroken } from "../../lib/qemu/accelerator.ts";
import { temporaryDir } from "../support/directory.ts";

Deno.test("KVM and HVF are tried where they may work, TCG everywhere", async () => {
  await using dir = await temporaryDir();
  const kvm = join(dir.path, "kvm");
  const env = new Map([["TMPDIR", dir.path]]);
  const names = (
    os: "linux" | "darwin" | "windows",
    arch: "x86_64" | "aarch64",
  ) => accelerators("qemu", { os, arch, kvm, env });
  assertEquals(await names("linux", "x86_64"), ["tcg"]);
  await Deno.writeTextFile(kvm, "");
  assertEquals(await names("linux", "x86_64"), ["kvm", "tcg"]);
  assertEquals(await names("darwin", "x86_64"), ["hvf", "tcg"]);
  assertEquals(await names("linux", "aarch64"), ["tcg"]);
  assertEquals(await names("windows", "x86_64"), ["tcg"]);
});

Deno.test("an accelerator that did not work is not tried again for a day", async () => {
  await using dir = await temporaryDir();
  const kvm = join(dir.path, "kvm");
  await Deno.writeTextFile(kvm, "");
  const options = {
    ...{ os: "linux", arch: "x86_64", kvm } as const,
    env: new Map([["TMPDIR", dir.path]]),
  };
  await rememberBroken("kvm", "qemu", options);
  assertEquals(await accelerators("qemu", options), ["tcg"]);
  assertEquals(await accelerators("other-qemu", options), ["kvm", "tcg"]);
  const [note] = Array.from(Deno.readDirSync(dir.path), (it) => it.name)
    .filter((name) => name.startsWith("toolsmith-"));
  const yesterday = Date.now() / 1000 - 25 * 3600;
  await Deno.utime(join(dir.path, note), yesterday, yesterday);
  assertEquals(await accelerators("qemu", options), ["kvm", "tcg"]);
});
