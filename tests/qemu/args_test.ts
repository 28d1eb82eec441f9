import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { accelerators, rememberBroken } from "../../lib/qemu/accelerator.ts";
import { parseExport, planShares } from "../../lib/vm/shares.ts";
import {
  type MachineOptions,
  qemuArgs,
  qemuProgram,
  qemuVersion,
} from "../../lib/qemu/args.ts";
import { failure } from "../support/failure.ts";
import { temporaryDir } from "../support/directory.ts";
import { needs, parts } from "../support/parts.ts";

const machine: MachineOptions = {
  disk: "/cache/image.qcow2",
  ephemeral: true,
  dir: "/tmp/toolsmith-x",
  accelerator: "tcg",
  memory: 512,
  cpus: 2,
  shares: [],
  extra: [],
  os: "linux",
};

/** The values of a flag. */
function values(flag: string, args: string[]): string[] {
  return args.flatMap((arg, at) => arg === flag ? [args[at + 1]] : []);
}

Deno.test("the disk is never written, and its format is never guessed", () => {
  const [drive] = values("-drive", qemuArgs(machine));
  assert(drive.includes("snapshot=on"));
  assert(drive.includes("format=qcow2"));
  const [kept] = values("-drive", qemuArgs({ ...machine, ephemeral: false }));
  assert(kept.includes("snapshot=off"));
});

Deno.test("a machine has no network and no graphics", () => {
  const args = qemuArgs(machine);
  assertEquals(values("-nic", args), ["none"]);
  assertEquals(values("-display", args), ["none"]);
  assertEquals(values("-netdev", args), []);
});

Deno.test("QEMU confines itself where it can", () => {
  const [rules] = values("-sandbox", qemuArgs(machine));
  for (const rule of ["on", "spawn=deny", "elevateprivileges=deny"]) {
    assert(rules.split(",").includes(rule));
  }
  assertEquals(values("-sandbox", qemuArgs({ ...machine, os: "darwin" })), []);
});

Deno.test("directories are read-only unless they are exports", () => {
  const shares = [
    { path: "/home/me/work", tag: "work", writable: false },
    { path: "/home/me/out", tag: "out", writable: true },
  ];
  const [work, out] = values("-fsdev", qemuArgs({ ...machine, shares }));
  assert(work.includes("path=/home/me/work,") && work.endsWith("readonly=on"));
  assert(out.includes("path=/home/me/out,") && out.endsWith("readonly=off"));
});

Deno.test("a comma in a path does not become an option", () => {
  const path = "/a,readonly=off,b";
  const args = qemuArgs({
    ...machine,
    disk: `${path}.qcow2`,
    dir: path,
    shares: [{ path, tag: "work", writable: false }],
  });
  const quoted = "/a,,readonly=off,,b";
  assert(values("-drive", args)[0].startsWith(`file=${quoted}.qcow2,`));
  assert(values("-fsdev", args)[0].includes(`path=${quoted},`));
  for (const chardev of values("-chardev", args)) {
    assert(chardev.includes(`path=${quoted}/`));
  }
});

Deno.test("the processor is the host's own where it runs the guest", () => {
  const cpu = (accelerator: "kvm" | "hvf" | "tcg") =>
    values("-cpu", qemuArgs({ ...machine, accelerator }));
  assertEquals(["tcg", "kvm", "hvf"].map((it) => cpu(it as "kvm")[0]), [
    "max",
    "host",
    "host",
  ]);
});

Deno.test("arguments of the user come last, as they are", () => {
  const extra = ["-device", "ich9-intel-hda,id=a b"];
  assertEquals(qemuArgs({ ...machine, extra }).slice(-2), extra);
});

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

Deno.test("an export is a directory, and a tag where one is given", () => {
  assertEquals(parseExport("out"), { path: "out" });
  assertEquals(parseExport("out:here"), { path: "out", tag: "here" });
  assertEquals(parseExport("a:b/c"), { path: "a:b/c" });
  assertEquals(parseExport("a:b/c:d"), { path: "a:b/c", tag: "d" });
});

Deno.test("exports that cannot be mounted are refused before a boot", async () => {
  await using dir = await temporaryDir();
  const { path } = dir;
  const file = join(path, "file");
  await Deno.writeTextFile(file, "");
  await Deno.mkdir(join(path, "with space"));
  const plan = (...exports: { path: string; tag?: string }[]) =>
    planShares(path, exports);
  await failure("file_unreadable", () => plan({ path: file }));
  await failure("file_unreadable", () => plan({ path: join(path, "none") }));
  await failure("usage", () => plan({ path, tag: "work" }));
  await failure("usage", () => plan({ path, tag: "a" }, { path, tag: "a" }));
  await failure("usage", () => plan({ path, tag: "../up" }));
  const error = await failure(
    "usage",
    () => plan({ path: join(path, "with space") }),
  );
  assert(error.hint?.includes(":TAG"));
  const many = Array.from({ length: 9 }, (_, n) => ({ path, tag: `t${n}` }));
  await failure("usage", () => plan(...many));
  assertEquals(await plan({ path, tag: "out" }), [
    { path, tag: "work", writable: false },
    { path, tag: "out", writable: true },
  ]);
});
