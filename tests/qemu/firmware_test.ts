import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import fc from "fast-check";
import { findUefi, readDescriptor } from "../../lib/qemu/firmware.ts";
import { planTarget } from "../../lib/qemu/target.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";

/** A descriptor, as QEMU's specification has it. */
function descriptor(name: string, change: Record<string, unknown> = {}) {
  return {
    "interface-types": ["uefi"],
    mapping: {
      device: "flash",
      executable: { filename: `${name}.code`, format: "raw" },
      "nvram-template": { filename: `${name}.vars`, format: "raw" },
    },
    targets: [{ architecture: "x86_64", machines: ["pc-q35-*"] }],
    features: ["acpi-s3"],
    ...change,
  };
}

const ARM = [{ architecture: "aarch64", machines: ["virt-*"] }];

/** A directory with firmware, and descriptors by their place. */
async function host(descriptors: Record<string, unknown>) {
  const dir = await temporaryDir();
  for (const [place, value] of Object.entries(descriptors)) {
    const path = join(dir.path, place);
    await Deno.mkdir(join(path, ".."), { recursive: true });
    const text = typeof value === "string" ? value : JSON.stringify(value);
    await Deno.writeTextFile(path, text.replaceAll("@", dir.path));
  }
  const find = (arch: "x86_64" | "aarch64" = "x86_64") =>
    findUefi(arch, {
      program: "qemu",
      dirs: [join(dir.path, "etc"), join(dir.path, "usr")],
    });
  return { dir, find, [Symbol.asyncDispose]: dir[Symbol.asyncDispose] };
}

/** The files of a firmware that is there. */
function files(...names: string[]) {
  return Object.fromEntries(
    names.flatMap((name) => [[`${name}.code`, ""], [`${name}.vars`, ""]]),
  );
}

Deno.test("the firmware is the first that a plain machine can use", async () => {
  await using bench = await host({
    "usr/10-smm.json": descriptor("@/smm", { features: ["requires-smm"] }),
    "usr/20-keys.json": descriptor("@/keys", { features: ["enrolled-keys"] }),
    "usr/30-arm.json": descriptor("@/arm", { targets: ARM }),
    "usr/40-bios.json": descriptor("@/bios", { "interface-types": ["bios"] }),
    "usr/50-broken.json": "{",
    "usr/55-gone.json": descriptor("@/gone"),
    "usr/60-good.json": descriptor("@/good"),
    "usr/70-late.json": descriptor("@/late"),
    ...files("smm", "keys", "arm", "bios", "good", "late"),
  });
  const { path } = bench.dir;
  const of = (name: string) => ({
    code: join(path, `${name}.code`),
    variables: join(path, `${name}.vars`),
  });
  assertEquals(await bench.find(), of("good"));
  assertEquals(await bench.find("aarch64"), of("arm"));
});

Deno.test("an administrator's descriptor hides one of the same name, also by being empty", async () => {
  await using bench = await host({
    "usr/10-first.json": descriptor("@/first"),
    "usr/20-second.json": descriptor("@/second"),
    "etc/10-first.json": "",
    "etc/20-second.json": descriptor("@/other"),
    ...files("first", "second", "other"),
  });
  const { code } = await bench.find();
  assertEquals(code, join(bench.dir.path, "other.code"));
});

Deno.test("a firmware that is missing says what to install", async () => {
  await using bench = await host({ "usr/10-gone.json": descriptor("@/gone") });
  const x86 = await failure("firmware_not_found", () => bench.find());
  assertStringIncludes(x86.hint!, "ovmf");
  assertEquals(x86.exitStatus, 77);
  const arm = await failure("firmware_not_found", () => bench.find("aarch64"));
  assertStringIncludes(arm.hint!, "qemu-efi-aarch64");
  assertStringIncludes(arm.message, join(bench.dir.path, "usr"));
  const rom = join(bench.dir.path, "none.fd");
  const given = { arch: "x86_64", firmware: rom } as const;
  const none = await failure("firmware_not_found", () => planTarget("", given));
  assertStringIncludes(none.message, rom);
});

Deno.test("any descriptor is read or passed over", () => {
  fc.assert(fc.property(fc.jsonValue(), fc.jsonValue(), (value, field) => {
    for (const key of ["mapping", "targets", "features", "interface-types"]) {
      readDescriptor(descriptor("x", { [key]: field }), "x86_64");
    }
    assertEquals(readDescriptor(value, "aarch64"), undefined);
  }));
});

Deno.test("what a caller knows of an image is not looked up in it", async () => {
  const env = new Map([["TOOLSMITH_QEMU", "/opt/bin/qemu-system-x86_64"]]);
  const rom = Deno.execPath();
  const target = (options: Parameters<typeof planTarget>[1]) =>
    planTarget("/no/such/image.qcow2", { env, ...options });
  assertEquals(await target({ loader: {} }), {
    arch: "x86_64",
    program: "/opt/bin/qemu-system-x86_64",
    firmware: undefined,
  });
  assertEquals(
    await target({ loader: { arch: "aarch64" }, firmware: rom }),
    {
      arch: "aarch64",
      program: "/opt/bin/qemu-system-aarch64",
      firmware: { rom },
    },
  );
  const { arch } = await target({
    loader: { arch: "aarch64", firmware: "uefi" },
    arch: "x86_64",
    firmware: "bios",
  });
  assertEquals(arch, "x86_64");
  const both = await target({ loader: { firmware: "uefi" }, firmware: rom });
  assertEquals(both.arch, Deno.build.arch);
  await failure("usage", () => target({ arch: "aarch64", firmware: "bios" }));
  await assertThrowsNotFound(() => target({ arch: "x86_64" }));
});

async function assertThrowsNotFound(work: () => Promise<unknown>) {
  const error = await work().catch((error) => error);
  assert(error instanceof Deno.errors.NotFound, String(error));
}
