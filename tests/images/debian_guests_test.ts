/**
 * Guest images that take minutes to boot, tested with QEMU alone: they report
 * their own properties.
 */
import { assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { connectToAgent } from "../../lib/qemu/agent.ts";
import {
  type RunningProcess,
  runProcess,
  spawnProcess,
} from "../../lib/system/process.ts";
import { sleep } from "../../lib/system/time.ts";
import { buildDebian } from "../../scripts/guest/debian.ts";
import { temporaryDir } from "../support/directory.ts";
import { foundTools, requires } from "../support/parts.ts";

/** cloud-init's last step reports to the host over a virtio-serial port. */
const USER_DATA = `#cloud-config
runcmd:
  - |
    for name in /sys/class/virtio-ports/*/name; do
      [ "$(cat "$name")" = report ] || continue
      {
        uname -r
        hostname
        if [ -e /sys/firmware/efi ]; then echo uefi; else echo bios; fi
        command -v qemu-ga || echo no agent
        modprobe 9p 2>/dev/null || echo no 9p
        echo done
      } >"/dev/$(basename "$(dirname "$name")")"
    done
`;

/** A NoCloud seed: a FAT file system that cloud-init recognizes by its label. */
async function seed(dir: string): Promise<string> {
  const image = join(dir, "seed.img");
  const files = {
    "meta-data": "instance-id: one\nlocal-hostname: seeded\n",
    "network-config": "version: 2\nethernets: {}\n",
    "user-data": USER_DATA,
  };
  await Deno.writeFile(image, new Uint8Array(2 ** 20));
  const env = { PATH: `${Deno.env.get("PATH")}:/usr/sbin:/sbin` };
  const steps = [["mkfs.vfat", "-n", "CIDATA", image]];
  for (const [name, text] of Object.entries(files)) {
    await Deno.writeTextFile(join(dir, name), text);
    steps.push(["mcopy", "-i", image, join(dir, name), "::/"]);
  }
  for (const [program, ...args] of steps) {
    const { code, stderr } = await runProcess(program, { args, env });
    assertEquals(code, 0, stderr);
  }
  return image;
}

/** QEMU arguments that all VMs here share. */
function machine(image: string, dir: string): string[] {
  return [
    ...["-m", "512", "-smp", "2", "-nodefaults", "-display", "none"],
    ...["-nic", "none", "-no-reboot", "-serial", `file:${dir}/console`],
    ...["-drive", `file=${image},format=qcow2,if=virtio,snapshot=on`],
    ...["-device", "virtio-serial-pci", "-device", "virtio-rng-pci"],
  ];
}

/** UEFI code, read-only, and a copy of its variables. */
async function firmware(code: string, vars: string, dir: string) {
  await Deno.copyFile(vars, join(dir, "vars.fd"));
  return [
    ...["-drive", `if=pflash,format=raw,readonly=on,file=${code}`],
    ...["-drive", `if=pflash,format=raw,file=${dir}/vars.fd`],
  ];
}

/** Polls until `find` returns a value; fails with the console's end if QEMU exits. */
async function until<T>(
  qemu: RunningProcess,
  dir: string,
  find: () => Promise<T | undefined>,
): Promise<T> {
  const ended = qemu.ended.then(() => true);
  do {
    const found = await find();
    if (found !== undefined) return found;
  } while (!await Promise.race([ended, sleep(250)]));
  const console = await Deno.readTextFile(join(dir, "console"));
  throw new Error(`QEMU has ended: ${console.slice(-2000)}`);
}

for (const kind of ["cloud", "cloud-uefi"] as const) {
  Deno.test({
    name:
      `the ${kind} guest runs cloud-init from a seed, and has no agent and no 9p`,
    ...requires("qemu", "qemuImg", "debian", "uefi"),
    async fn() {
      await using dir = await temporaryDir();
      const { path } = dir;
      const report = join(path, "report");
      const uefi = kind === "cloud-uefi"
        ? await firmware(
          "/usr/share/OVMF/OVMF_CODE_4M.fd",
          "/usr/share/OVMF/OVMF_VARS_4M.fd",
          path,
        )
        : [];
      await using qemu = spawnProcess(foundTools.qemu!, {
        args: [
          ...["-machine", "q35,accel=tcg", "-cpu", "max"],
          ...machine(await buildDebian(kind), path),
          ...uefi,
          "-drive",
          `file=${await seed(path)},format=raw,if=virtio,readonly=on`,
          ...["-smbios", "type=1,serial=ds=nocloud"],
          ...["-chardev", `file,id=report,path=${report}`],
          ...["-device", "virtserialport,chardev=report,name=report"],
        ],
      });
      const text = await until(qemu, path, async () => {
        const text = await Deno.readTextFile(report).catch(() => "");
        return text.endsWith("done\n") ? text : undefined;
      });
      const [kernel, ...rest] = text.trim().split("\n");
      assertMatch(kernel, /-cloud-amd64$/);
      const booted = kind === "cloud" ? "bios" : "uefi";
      assertEquals(rest, ["seeded", booted, "no agent", "no 9p", "done"]);
    },
  });
}

Deno.test({
  name: "the arm64 guest boots with UEFI, and its agent runs commands",
  ...requires("qemu", "qemuImg", "debian", "guest", "arm64"),
  async fn() {
    await using dir = await temporaryDir();
    const { path } = dir;
    const socket = join(path, "agent.sock");
    await using qemu = spawnProcess(foundTools.arm64!, {
      args: [
        ...["-machine", "virt,accel=tcg", "-cpu", "max"],
        ...machine(await buildDebian("arm64"), path),
        ...await firmware(
          "/usr/share/AAVMF/AAVMF_CODE.fd",
          "/usr/share/AAVMF/AAVMF_VARS.fd",
          path,
        ),
        "-chardev",
        `socket,id=agent,path=${socket},server=on,wait=off`,
        "-device",
        "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
      ],
    });
    await using agent = await until(
      qemu,
      path,
      () => connectToAgent(socket).catch(() => undefined),
    );
    await agent.waitUntilAnswering();
    const { pid } = await agent.execute(["guest-exec", {
      path: "/bin/sh",
      arg: ["-c", "uname -m; ls -d /sys/firmware/efi; exit 5"],
      "capture-output": true,
    }]) as { pid: number };
    const ended = await until(qemu, path, async () => {
      const status = await agent.execute(["guest-exec-status", { pid }]) as {
        exited: boolean;
        exitcode: number;
        "out-data": string;
      };
      return status.exited ? status : undefined;
    });
    assertEquals(
      [ended.exitcode, atob(ended["out-data"])],
      [5, "aarch64\n/sys/firmware/efi\n"],
    );
  },
});
