/**
 * What is done before a machine runs, and left when it does not: its QEMU is a
 * script that ends. tests/boots/ boots real ones.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { run } from "../../lib/system/process.ts";
import { boot } from "../../lib/vm/boot.ts";
import type { BootOptions } from "../../lib/vm/options.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { needs } from "../support/parts.ts";

interface Bench {
  dir: string;
  options: BootOptions;
  /** What the script has noted. */
  notes(): string[];
}

function test(name: string, script: string, fn: (on: Bench) => Promise<void>) {
  Deno.test({
    name,
    ...needs("qemuImg"),
    async fn() {
      await using dir = await temporaryDir();
      const at = (name: string) => join(dir.path, name);
      const args = ["create", "-q", "-f", "qcow2", at("a.qcow2"), "1M"];
      assertEquals((await run("qemu-img", { args })).code, 0);
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
  "a machine has a directory with a seed, its size and what was asked for, and leaves none",
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
  "an accelerator that was asked for and does not work is no reason for another",
  "echo kvm is broken >&2; echo and more >&2; echo run",
  async ({ options, notes }) => {
    const error = await failure(
      "boot_failed",
      () => boot({ ...options, accelerator: "kvm" }),
    );
    assertEquals(error.message, "KVM does not work here: kvm is broken");
    assertEquals(
      error.hint,
      "leave the choice of the accelerator to Toolsmith",
    );
    assertEquals(notes().filter((line) => line === "run").length, 1);
  },
);

test(
  "boot() takes TOOLSMITH_ACCEL for the accelerator, unless an option names one",
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
      "Not an accelerator: TOOLSMITH_ACCEL=xen",
    ]);
    assertEquals(notes().length, 2);
  },
);

test(
  "what is wrong with a machine is said before anything is made for it",
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
      // A firmware is the host's own, too.
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
