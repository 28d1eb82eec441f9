import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import {
  accelerators,
  rememberBroken,
  tryAccelerator,
} from "../../lib/qemu/accelerator.ts";
import { temporaryDir } from "../support/directory.ts";
import { needs, parts } from "../support/parts.ts";
import { asRoot } from "../support/users.ts";

Deno.test("KVM and HVF are tried where they may work, TCG everywhere", async () => {
  await using dir = await temporaryDir();
  const kvm = join(dir.path, "kvm");
  const env = new Map([["TMPDIR", dir.path]]);
  const names = (
    os: "linux" | "darwin" | "windows",
    arch: "x86_64" | "aarch64",
    guest?: "x86_64" | "aarch64",
  ) => accelerators("qemu", { os, arch, kvm, env, guest });
  assertEquals(await names("linux", "x86_64"), ["tcg"]);
  await Deno.writeTextFile(kvm, "");
  assertEquals(await names("linux", "x86_64"), ["kvm", "tcg"]);
  assertEquals(await names("darwin", "x86_64"), ["hvf", "tcg"]);
  assertEquals(await names("linux", "aarch64"), ["tcg"]);
  assertEquals(await names("windows", "x86_64"), ["tcg"]);
  assertEquals(await names("linux", "aarch64", "aarch64"), ["kvm", "tcg"]);
  assertEquals(await names("darwin", "aarch64", "aarch64"), ["hvf", "tcg"]);
  assertEquals(await names("linux", "x86_64", "aarch64"), ["tcg"]);
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

/** The note's path is not for callers: it is what a note makes new in TMPDIR. */
async function noteIn(dir: string): Promise<string> {
  await rememberBroken("kvm", "qemu", { env: new Map([["TMPDIR", dir]]) });
  const [{ name }] = Array.from(Deno.readDirSync(dir));
  return join(dir, name);
}

asRoot("a note that another user has written says nothing", async () => {
  await using dir = await temporaryDir();
  const options = {
    ...{ os: "linux", arch: "x86_64", kvm: "/dev/null" } as const,
    env: new Map([["TMPDIR", dir.path]]),
  };
  const note = await noteIn(dir.path);
  assertEquals(await accelerators("qemu", options), ["tcg"]);
  await Deno.chown(note, 4242, 4242);
  assertEquals(await accelerators("qemu", options), ["kvm", "tcg"]);
});

Deno.test("a note is not written through a link that lies in its place", async () => {
  await using dir = await temporaryDir();
  await Deno.mkdir(join(dir.path, "tmp"));
  const note = await noteIn(join(dir.path, "tmp"));
  const victim = join(dir.path, "victim");
  await Deno.writeTextFile(victim, "mine");
  await Deno.remove(note);
  await Deno.symlink(victim, note);
  await noteIn(join(dir.path, "tmp"));
  assertEquals(await Deno.readTextFile(victim), "mine");
  assertEquals((await Deno.lstat(note)).mode! & 0o777, 0o600);
});

Deno.test({
  name: "emulation works where QEMU does",
  ...needs("qemu"),
  async fn() {
    await using dir = await temporaryDir();
    const env = new Map([["TMPDIR", dir.path]]);
    assertEquals(await tryAccelerator(parts.qemu!, "tcg", { env }), undefined);
    assertEquals(Array.from(Deno.readDirSync(dir.path)), []);
  },
});

Deno.test("an accelerator that fails at once is said to, and noted", async () => {
  await using dir = await temporaryDir();
  const env = new Map([["TMPDIR", dir.path]]);
  const program = join(dir.path, "qemu");
  const broken = "#!/bin/sh\necho 'failed to set MSR' >&2\nkill -ABRT $$\n";
  await Deno.writeTextFile(program, broken, { mode: 0o755 });
  const first = await tryAccelerator(program, "kvm", { env });
  assertEquals(first, "failed to set MSR");
  const again = await tryAccelerator(program, "kvm", { env });
  assertEquals(again, "it did not work within the last day");
});
