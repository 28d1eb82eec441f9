/**
 * What boot() does before QEMU runs, and what a failure leaves: QEMU is a script that
 * exits. tests/boots/ boots real VMs.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { runProcess } from "../../lib/system/process.ts";
import { boot } from "../../lib/vm/boot.ts";
import type { BootOptions } from "../../lib/vm/boot_options.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { requires } from "../support/parts.ts";

interface Bench {
  dir: string;
  options: BootOptions;
  /** Lines that the script has printed. */
  notes(): string[];
}

function test(name: string, script: string, fn: (on: Bench) => Promise<void>) {
  Deno.test({
    name,
    ...requires("qemuImg"),
    async fn() {
      await using dir = await temporaryDir();
      const at = (name: string) => join(dir.path, name);
      const args = ["create", "-q", "-f", "qcow2", at("a.qcow2"), "1M"];
      assertEquals((await runProcess("qemu-img", { args })).code, 0);
      const noting = `{ ${script}; } >>'${at("notes")}'`;
      const text = `#!/bin/sh\n${noting}\nexit 1\n`;
      await Deno.writeTextFile(at("qemu"), text, { mode: 0o755 });
      await Deno.mkdir(at("tmp"));
      const env = new Map([
        ["TMPDIR", at("tmp")],
        ["TOOLSMITH_QEMU", at("qemu")],
        ["PATH", Deno.env.get("PATH")!],
      ]);
      await fn({
        dir: dir.path,
        options: { image: at("a.qcow2"), env },
        notes: () => Deno.readTextFileSync(at("notes")).trim().split("\n"),
      });
      const left = Array.from(Deno.readDirSync(at("tmp")), ({ name }) => name);
      assertEquals(left.filter((name) => !name.includes("-verdict-")), []);
    },
  });
}

test(
  "boot() passes image, workspace, memory and overlay to QEMU and removes the VM's directory",
  "stat -c '%a %n' . seed; echo \"$*\"",
  async ({ options, notes, dir }) => {
    await Deno.mkdir(join(dir, "work"));
    const { code } = await boot({
      ...options,
      accelerator: "tcg",
      workspace: join(dir, "work"),
    }).catch((error) => error);
    assertEquals(code, "boot_failed");
    const [own, seed, args] = notes();
    assertEquals([own, seed], ["700 .", "600 seed"]);
    const said = [
      ...["accel=tcg", "snapshot=on", "ds=nocloud", "mount_tag=work"],
      `file=${options.image}`,
    ];
    for (const word of said) assert(args.includes(word), `${word}: ${args}`);
    await boot({
      ...options,
      ...{ accelerator: "tcg", memory: 100, cpus: 1 },
      qemuArgs: ["-device", "virtio-balloon-pci"],
      overlay: join(dir, "kept.qcow2"),
    }).catch(() => {});
    const kept = notes().at(-1)!;
    assertMatch(kept, / -m 100M? .*-device virtio-balloon-pci$/);
    assert(kept.includes("kept.qcow2") && kept.includes("snapshot=off"), kept);
  },
);

test(
  "boot() tries no other accelerator when the requested one fails",
  "echo kvm is broken >&2; echo and more >&2; echo run",
  async ({ options, notes }) => {
    const error = await expectFailure(
      "boot_failed",
      () => boot({ ...options, accelerator: "kvm" }),
    );
    assertEquals(
      error.message,
      "KVM does not work on this host: kvm is broken",
    );
    assertEquals(
      error.hint,
      "omit --accel and TOOLSMITH_ACCEL to let Toolsmith choose",
    );
    assertEquals(notes().filter((line) => line === "run").length, 1);
  },
);

test(
  "boot() uses TOOLSMITH_ACCEL unless options.accelerator is set",
  'echo "$*"',
  async ({ options, notes }) => {
    const started = async (accel: string, more: Partial<BootOptions> = {}) => {
      const variables = options.env as Map<string, string>;
      const env = new Map([...variables, ["TOOLSMITH_ACCEL", accel]]);
      const error = await boot({ ...options, ...more, env })
        .catch((error) => error);
      return { error, said: notes().at(-1)! };
    };
    assertMatch((await started("tcg")).said, /accel=tcg/);
    const flag = { accelerator: "hvf" } as const;
    assertMatch((await started("tcg", flag)).said, /accel=hvf/);
    const wrong = await started("xen");
    assertEquals([wrong.error.code, wrong.error.message], [
      "usage",
      "Unknown accelerator: TOOLSMITH_ACCEL=xen",
    ]);
    assertEquals(notes().length, 2);
  },
);

test(
  "boot() rejects invalid options before it starts QEMU",
  "echo run",
  async ({ options, dir }) => {
    const export_ = (path: string) => ({ exports: [{ path, tag: "out" }] });
    await Deno.writeTextFile(join(dir, "rom"), "");
    await Deno.mkdir(join(dir, "roms"));
    await Deno.rename(join(dir, "rom"), join(dir, "roms", "rom"));
    const rom = join(dir, "roms", "rom");
    const input = new ReadableStream<Uint8Array>();
    input.getReader();
    const cases: [Partial<BootOptions>, string][] = [
      [{ console: { input, output() {} } }, "usage"],
      [{ memory: 0 }, "usage"],
      [{ workspace: join(dir, "none") }, "file_unreadable"],
      [export_(dir), "usage"],
      // Firmware is protected, too.
      [{ ...export_(join(dir, "roms")), firmware: rom }, "usage"],
      [{ ...export_(join(dir, "roms")), hostOnly: [rom] }, "usage"],
      [
        { image: join(dir, "none.qcow2"), arch: "x86_64", firmware: "bios" },
        "source_not_found",
      ],
    ];
    for (const [more, code] of cases) {
      const error = await boot({ ...options, ...more }).catch((error) => error);
      assertEquals(error.code, code, `${error}`);
    }
    const signal = AbortSignal.abort(new Error("enough"));
    const error = await boot({ ...options, signal }).catch((error) => error);
    assertEquals(error.message, "enough");
    const noted = await Deno.stat(join(dir, "notes")).catch(() => "none");
    assertEquals(noted, "none");
  },
);
