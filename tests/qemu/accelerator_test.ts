import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import {
  accelerators,
  rememberBroken,
  tryAccelerator,
} from "../../lib/qemu/accelerator.ts";
import { failure } from "../support/failure.ts";
import { temporaryDir } from "../support/directory.ts";
import { needs, parts } from "../support/parts.ts";
import { asRoot } from "../support/users.ts";
import { hurriedTimers } from "../support/timers.ts";

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

/** Tries an accelerator with a program that is a script. */
async function tried(script: string, accelerator: "kvm" | "tcg" = "kvm") {
  await using dir = await temporaryDir();
  const env = new Map([["TMPDIR", dir.path]]);
  const program = join(dir.path, "qemu");
  const args = join(dir.path, "args");
  const text = `#!/bin/sh\necho "$*" >'${args}'\n${script}\n`;
  await Deno.writeTextFile(program, text, { mode: 0o755 });
  const why = await tryAccelerator(program, accelerator, { env });
  const notes = Array.from(Deno.readDirSync(dir.path), ({ name }) => name)
    .filter((name) => name.startsWith("toolsmith-"));
  return { why, notes, args: await Deno.readTextFile(args), program };
}

Deno.test("an accelerator is tried without a disk, and with the processor that it has", async () => {
  const fast = await tried("exit 0");
  assertEquals([fast.why, fast.notes], [undefined, []]);
  assertEquals(
    fast.args,
    "-no-user-config -nodefaults -no-reboot -machine q35,accel=kvm,graphics=off" +
      " -cpu host -m 64M -display none -nic none -boot reboot-timeout=1\n",
  );
  assert((await tried("exit 0", "tcg")).args.includes(" -cpu max "));
});

Deno.test("what is wrong with an accelerator is said, and noted unless it is a permission", async () => {
  const silent = await tried("exit 3");
  assertEquals(silent.why, "QEMU ended with status 3");
  const name = silent.program.replaceAll(/\W+/g, "_").slice(-80);
  const user = Deno.uid() ?? "user";
  assertEquals(silent.notes, [`toolsmith-${user}-no-kvm-${name}`]);
  const denied = await tried("echo Permission denied >&2; exit 1");
  assertEquals([denied.why, denied.notes], ["Permission denied", []]);
  const error = await failure(
    "qemu_not_found",
    () => tryAccelerator("/none/qemu", "kvm"),
  );
  assertEquals(error.message, "QEMU not found: /none/qemu");
});

Deno.test("an accelerator that hangs does not work, and emulation is for another processor", async () => {
  using _timers = hurriedTimers((ms) => ms === 30_000 ? 50 : ms);
  const { why } = await tried("exec sleep 60");
  assertMatch(why!, /30 s/);
  await using dir = await temporaryDir();
  const other = Deno.build.arch === "x86_64" ? "aarch64" : "x86_64";
  const env = new Map([["TMPDIR", dir.path]]);
  assertEquals(await accelerators("qemu", { guest: other, env }), ["tcg"]);
});

Deno.test("a note holds for a day, for its accelerator and its program", async () => {
  await using dir = await temporaryDir();
  const options = {
    ...{ os: "linux", arch: "x86_64", kvm: "/dev/null" } as const,
    env: new Map([["TMPDIR", dir.path]]),
  };
  const note = await noteIn(dir.path);
  const aged = async (hours: number) => {
    const time = Date.now() / 1000 - hours * 3600;
    await Deno.utime(note, time, time);
    return await accelerators("qemu", options);
  };
  assertEquals(await aged(23.9), ["tcg"]);
  assertEquals(await aged(24.1), ["kvm", "tcg"]);
  assertEquals(await aged(0), ["tcg"]);
  const hvf = { ...options, os: "darwin" } as const;
  assertEquals(await accelerators("qemu", hvf), ["hvf", "tcg"]);
  // Names that look alike in the note's are told apart by what it says.
  const alike = await accelerators("qemu", { ...options });
  await Deno.writeTextFile(note, "q/emu");
  assertEquals([alike, await accelerators("qemu", options)], [
    ["tcg"],
    ["kvm", "tcg"],
  ]);
  await Deno.remove(note);
  await Deno.mkdir(note);
  assertEquals(await accelerators("qemu", options), ["kvm", "tcg"]);
});
