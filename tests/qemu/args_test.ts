import fc from "fast-check";
import { assert, assertEquals } from "@std/assert";
import { qemuArgs, type QemuOptions } from "../../lib/qemu/args.ts";

const machine: QemuOptions = {
  disk: "/cache/image.qcow2",
  ephemeral: true,
  dir: "/tmp/toolsmith-x",
  accelerator: "tcg",
  memory: 512,
  cpus: 2,
  shares: [],
  extra: [],
  hostOs: "linux",
};

/** The values of a flag. */
function values(flag: string, args: string[]): string[] {
  return args.flatMap((arg, at) => arg === flag ? [args[at + 1]] : []);
}

Deno.test("qemuArgs() opens the disk as QCOW2, with snapshot=on when ephemeral", () => {
  const [drive] = values("-drive", qemuArgs(machine));
  assert(drive.includes("snapshot=on"));
  assert(drive.includes("format=qcow2"));
  const [kept] = values("-drive", qemuArgs({ ...machine, ephemeral: false }));
  assert(kept.includes("snapshot=off"));
});

Deno.test("qemuArgs() adds no network card and no display", () => {
  const args = qemuArgs(machine);
  assertEquals(values("-nic", args), ["none"]);
  assertEquals(values("-display", args), ["none"]);
  assertEquals(values("-netdev", args), []);
});

Deno.test("qemuArgs() turns QEMU's sandbox on, on Linux only", () => {
  const [rules] = values("-sandbox", qemuArgs(machine));
  for (const rule of ["on", "spawn=deny", "elevateprivileges=deny"]) {
    assert(rules.split(",").includes(rule));
  }
  assertEquals(
    values("-sandbox", qemuArgs({ ...machine, hostOs: "darwin" })),
    [],
  );
});

Deno.test("qemuArgs() shares the workspace read-only and exports writable", () => {
  const shares = [
    { path: "/home/me/work", tag: "work", writable: false },
    { path: "/home/me/out", tag: "out", writable: true },
  ];
  const [work, out] = values("-fsdev", qemuArgs({ ...machine, shares }));
  assert(work.includes("path=/home/me/work,") && work.endsWith("readonly=on"));
  assert(out.includes("path=/home/me/out,") && out.endsWith("readonly=off"));
});

Deno.test("qemuArgs() adds a 9p device for the workspace, but none for an export", () => {
  const shares = [
    { path: "/home/me/work", tag: "work", writable: false },
    { path: "/home/me/out", tag: "out", writable: true },
  ];
  const devices = values("-device", qemuArgs({ ...machine, shares }))
    .filter((it) => it.startsWith("virtio-9p-pci"));
  assertEquals(devices, [
    "virtio-9p-pci,id=directory0,bus=slot0,fsdev=share0,mount_tag=work",
  ]);
});

Deno.test("qemuArgs() doubles commas in paths", () => {
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

Deno.test("qemuArgs() passes -cpu host with KVM and HVF, -cpu max with TCG", () => {
  const cpu = (accelerator: "kvm" | "hvf" | "tcg") =>
    values("-cpu", qemuArgs({ ...machine, accelerator }));
  assertEquals(["tcg", "kvm", "hvf"].map((it) => cpu(it as "kvm")[0]), [
    "max,-erms,-fsrm",
    "host",
    "host",
  ]);
});

Deno.test("qemuArgs() appends the user's extra arguments unchanged", () => {
  const extra = ["-device", "ich9-intel-hda,id=a b"];
  assertEquals(qemuArgs({ ...machine, extra }).slice(-2), extra);
});

Deno.test("qemuArgs() escapes any path so that no part becomes an option", () => {
  /** Reads a value as QEMU does: `,,` is a comma (qemu(1), "-drive"). */
  const options = (text: string) =>
    text.replaceAll(",,", "\0").split(",")
      .map((it) => it.replaceAll("\0", ",").split("="))
      .map(([name, ...rest]) => [name, rest.join("=")]);
  const names = fc.string({
    unit: fc.constantFrom(",", "=", "a", " ", "-", "ü"),
  });
  fc.assert(fc.property(names, (name) => {
    const path = `/x${name}`;
    const share = { path, tag: "work", writable: false };
    const args = qemuArgs({
      ...machine,
      disk: path,
      dir: path,
      shares: [share],
    });
    const of = (flag: string) =>
      new Map(
        values(flag, args).flatMap(options) as [string, string][],
      );
    assertEquals(of("-fsdev").get("path"), path);
    assertEquals(of("-fsdev").get("readonly"), "on");
    assertEquals(of("-drive").get("file"), path);
    assertEquals(of("-drive").size, 6);
    const dir = path.replace(/\/+$/, "");
    const terminals = [0, 1, 2].map((it) => `terminal${it}`);
    const ports = ["out", "err", "in"].map((it) => `toolsmith.prepared.${it}`);
    assertEquals(
      values("-chardev", args).map((it) =>
        new Map(options(it) as [string, string][]).get("path")
      ),
      ["qmp", "console", ...terminals, "agent", ...ports]
        .map((it) => `${dir}/${it}`),
    );
  }));
});

Deno.test("qemuArgs() for arm64 uses the virt machine type without x86 devices", () => {
  const arm: QemuOptions = { ...machine, arch: "aarch64" };
  const args = qemuArgs(arm);
  const [type] = values("-machine", args);
  assert(/^virt,.*gic-version=max/.test(type), type);
  assert(!type.includes("vmport"), type);
  assertEquals(values("-cpu", args), ["max,pauth-impdef=on"]);
  assert(!values("-device", args).some((it) => it.startsWith("vmgenid")));
  for (const accelerator of ["kvm", "hvf"] as const) {
    const fast = qemuArgs({ ...arm, accelerator });
    assertEquals(values("-cpu", fast), ["host"]);
  }
});

Deno.test("qemuArgs() opens firmware code read-only and its variables with snapshot=on", () => {
  const firmware = { code: "/f/CODE,1.fd", variables: "/f/VARS.fd" };
  const drives = values("-drive", qemuArgs({ ...machine, firmware }));
  const [code, variables] = drives.filter((it) => it.includes("if=pflash"));
  assert(code.includes("file=/f/CODE,,1.fd,unit=0,readonly=on"), code);
  assert(variables.includes("file=/f/VARS.fd,unit=1,snapshot=on"), variables);
  const both = { ...machine, firmware: { rom: "/f/both,1.fd" } };
  assertEquals(values("-drive", qemuArgs(both)).slice(0, 1), [
    "if=pflash,format=raw,file=/f/both,,1.fd,unit=0,snapshot=on",
  ]);
  const arm = qemuArgs({ ...both, arch: "aarch64" });
  assertEquals(values("-bios", arm), ["/f/both,1.fd"]);
});

Deno.test("qemuArgs() adds a read-only seed disk after the boot disk and announces NoCloud", () => {
  const args = qemuArgs({ ...machine, seed: new Uint8Array() });
  const drives = values("-drive", args);
  const seed = drives.find((it) => it.includes("id=seed"))!;
  assert(seed.includes("format=raw") && seed.endsWith("readonly=on"), seed);
  assert(seed.startsWith("file=/tmp/toolsmith-x/seed,"), seed);
  const disks = values("-device", args)
    .filter((it) => it.startsWith("virtio-blk-pci"));
  assertEquals(disks, [
    "virtio-blk-pci,drive=disk,bootindex=0",
    "virtio-blk-pci,drive=seed",
  ]);
  assertEquals(values("-smbios", args), ["type=1,serial=ds=nocloud"]);
  assertEquals(values("-smbios", qemuArgs(machine)), []);
});

Deno.test("qemuArgs() adds three serial terminals on x86_64, none on arm64", () => {
  const terminals = (options: Partial<QemuOptions>) =>
    values("-device", qemuArgs({ ...machine, ...options }))
      .filter((device) => device.startsWith("isa-serial,"));
  assertEquals(terminals({}).length, 3);
  assertEquals(terminals({ arch: "aarch64" }), []);
});
