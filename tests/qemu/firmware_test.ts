import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import fc from "fast-check";
import {
  findUefiFirmware,
  firmwarePaths,
  parseFirmwareDescriptor,
} from "../../lib/qemu/firmware.ts";
import { detectTarget } from "../../lib/qemu/target.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";

/** A firmware descriptor in the format of QEMU's specification. */
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

/** A directory with firmware, and descriptors by their relative path. */
async function host(descriptors: Record<string, unknown>) {
  const dir = await temporaryDir();
  for (const [place, value] of Object.entries(descriptors)) {
    const path = join(dir.path, place);
    await Deno.mkdir(join(path, ".."), { recursive: true });
    const text = typeof value === "string" ? value : JSON.stringify(value);
    await Deno.writeTextFile(path, text.replaceAll("@", dir.path));
  }
  const find = (arch: "x86_64" | "aarch64" = "x86_64") =>
    findUefiFirmware(arch, {
      program: "qemu",
      descriptorDirs: [join(dir.path, "etc"), join(dir.path, "usr")],
    });
  return { dir, find, [Symbol.asyncDispose]: dir[Symbol.asyncDispose] };
}

/** Code and variables files of installed firmware. */
function files(...names: string[]) {
  return Object.fromEntries(
    names.flatMap((name) => [[`${name}.code`, ""], [`${name}.vars`, ""]]),
  );
}

Deno.test("findUefiFirmware() returns the first firmware without SMM or enrolled keys", async () => {
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

Deno.test("findUefiFirmware() prefers a descriptor in /etc, even an empty one, to its namesake in /usr", async () => {
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

Deno.test("findUefiFirmware() names the package to install when firmware is missing", async () => {
  await using bench = await host({ "usr/10-gone.json": descriptor("@/gone") });
  const x86 = await expectFailure("firmware_not_found", () => bench.find());
  assertStringIncludes(x86.hint!, "ovmf");
  assertEquals(x86.exitStatus, 77);
  const arm = await expectFailure(
    "firmware_not_found",
    () => bench.find("aarch64"),
  );
  assertStringIncludes(arm.hint!, "qemu-efi-aarch64");
  assertStringIncludes(arm.message, join(bench.dir.path, "usr"));
  const rom = join(bench.dir.path, "none.fd");
  const given = { arch: "x86_64", firmware: rom } as const;
  const none = await expectFailure(
    "firmware_not_found",
    () => detectTarget("", given),
  );
  assertStringIncludes(none.message, rom);
});

Deno.test("parseFirmwareDescriptor() never throws, for any JSON", () => {
  fc.assert(fc.property(fc.jsonValue(), fc.jsonValue(), (value, field) => {
    for (const key of ["mapping", "targets", "features", "interface-types"]) {
      parseFirmwareDescriptor(descriptor("x", { [key]: field }), "x86_64");
    }
    assertEquals(parseFirmwareDescriptor(value, "aarch64"), undefined);
  }));
});

Deno.test("detectTarget() does not read the image when the caller passes its boot loader", async () => {
  const env = new Map([["TOOLSMITH_QEMU", "/opt/bin/qemu-system-x86_64"]]);
  const rom = Deno.execPath();
  const target = (options: Parameters<typeof detectTarget>[1]) =>
    detectTarget("/no/such/image.qcow2", { env, ...options });
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
  await expectFailure(
    "usage",
    () => target({ arch: "aarch64", firmware: "bios" }),
  );
  await assertThrowsNotFound(() => target({ arch: "x86_64" }));
});

async function assertThrowsNotFound(work: () => Promise<unknown>) {
  const error = await work().catch((error) => error);
  assert(error instanceof Deno.errors.NotFound, String(error));
}

Deno.test("parseFirmwareDescriptor() accepts a descriptor only if every required field matches", () => {
  const flash = {
    device: "flash",
    executable: { filename: "/code", format: "raw" },
    "nvram-template": { filename: "/vars", format: "raw" },
  };
  const x86 = (machines: unknown) => ({
    targets: [{ architecture: "x86_64", machines }],
  });
  const cases: [change: Record<string, unknown>, fits: boolean][] = [
    [{}, true],
    [{ mapping: { ...flash, mode: "split" } }, true],
    [{ mapping: { ...flash, mode: "combined" } }, false],
    [{ mapping: { ...flash, device: "memory" } }, false],
    [{ mapping: { ...flash, executable: { filename: "/code" } } }, false],
    [{
      mapping: { ...flash, executable: { filename: "/c", format: "qcow2" } },
    }, false],
    [
      { mapping: { ...flash, executable: { filename: 7, format: "raw" } } },
      false,
    ],
    [{ mapping: { ...flash, "nvram-template": undefined } }, false],
    [{ mapping: null }, false],
    [{ features: ["secure-boot"] }, false],
    [{ features: null }, true],
    [{ "interface-types": ["bios", "uefi"] }, true],
    [x86(["pc-i440fx-*", "pc-q35-*"]), true],
    [x86(["q35"]), true],
    [x86(["pc-i440fx-*"]), false],
    [x86("q35"), false],
    [{ targets: [null, ...x86(["q35"]).targets] }, true],
  ];
  for (const [change, fits] of cases) {
    const plain = descriptor("x", { mapping: flash, ...change });
    const expected = { code: "/code", variables: "/vars" };
    assertEquals(
      parseFirmwareDescriptor(plain, "x86_64"),
      fits ? expected : undefined,
      JSON.stringify(change),
    );
  }
  assertEquals(parseFirmwareDescriptor(descriptor("x"), "aarch64"), undefined);
});

Deno.test("findUefiFirmware() searches the directories of QEMU's specification and beside QEMU", async () => {
  await using bench = await host({
    "config/qemu/firmware/50-mine.json": descriptor("@/mine"),
    "home/.config/qemu/firmware/50-mine.json": descriptor("@/home"),
    "opt/share/qemu/firmware/00-own.json": descriptor("@/own"),
    ...files("mine", "home", "own"),
  });
  const at = (name: string) => join(bench.dir.path, name);
  await Deno.mkdir(at("opt/bin"), { recursive: true });
  await Deno.writeTextFile(at("opt/bin/qemu"), "", { mode: 0o755 });
  await Deno.mkdir(at("bin"));
  await Deno.symlink(at("opt/bin/qemu"), at("bin/qemu"));
  const find = async (env: Record<string, string>, program: string) =>
    (await findUefiFirmware("x86_64", {
      program,
      env: new Map(Object.entries(env)),
    }))
      .code;
  const HOME = at("home");
  const config = { HOME, XDG_CONFIG_HOME: at("config") };
  const own = at("opt/share/qemu/firmware");
  const usual = ["/etc/qemu/firmware", "/usr/share/qemu/firmware"];
  // Sorted by file name across directories: the one beside QEMU is first.
  assertEquals(await find(config, at("opt/bin/qemu")), at("own.code"));
  assertEquals(await find(config, at("bin/qemu")), at("own.code"));
  const looked = async (env: Record<string, string>, program?: string) => {
    const error = await findUefiFirmware("aarch64", {
      program: program ?? "/none/qemu",
      env: new Map(Object.entries(env)),
    }).catch((error) => error);
    return error instanceof Error
      ? error.message.split("looked in ")[1].split(", ")
      : undefined;
  };
  const dirs = await looked(config, at("bin/qemu"));
  // Skipped on hosts that have arm64 firmware.
  if (dirs) {
    assertEquals(dirs, [at("config/qemu/firmware"), ...usual, own]);
    const fallback = await looked({ HOME, XDG_CONFIG_HOME: "" });
    assertEquals(fallback, [at("home/.config/qemu/firmware"), ...usual]);
    assertEquals(await looked({}), usual);
  }
});

Deno.test("findUefiFirmware() skips descriptors above 64 KiB, missing files and other extensions", async () => {
  const sized = (name: string, size: number) => {
    const text = JSON.stringify(descriptor(name));
    return text + " ".repeat(size - text.length);
  };
  await using bench = await host({});
  const { path } = bench.dir;
  const at = (name: string) => join(path, name);
  await Deno.mkdir(at("usr"));
  for (const name of ["a", "b", "c", "d"]) {
    await Deno.writeTextFile(at(`${name}.code`), "");
    await Deno.writeTextFile(at(`${name}.vars`), "");
  }
  await Deno.remove(at("b.vars"));
  await Deno.mkdir(at("b.vars"));
  const put = (name: string, text: string) =>
    Deno.writeTextFile(at(`usr/${name}`), text);
  await put("1.json", sized(at("a"), 64 * 1024 + 1));
  await put("2.json", sized(at("b"), 1000));
  await put("3.jsonc", sized(at("c"), 1000));
  await put("4.json", sized(at("d"), 64 * 1024));
  assertEquals((await bench.find()).code, at("d.code"));
});

Deno.test("findUefiFirmware() follows a symbolic link to a descriptor", async () => {
  await using bench = await host({
    "store/good.json": descriptor("@/good"),
    ...files("good"),
  });
  const at = (name: string) => join(bench.dir.path, name);
  await Deno.mkdir(at("usr"));
  await Deno.symlink(at("none.json"), at("usr/10.json"));
  await Deno.symlink(at("store/good.json"), at("usr/20.json"));
  assertEquals((await bench.find()).code, at("good.code"));
});

Deno.test("firmwarePaths() returns the paths of code, variables or ROM", () => {
  assertEquals(firmwarePaths(undefined), []);
  assertEquals(firmwarePaths({ rom: "/rom" }), ["/rom"]);
  const flash = { code: "/code", variables: "/vars" };
  assertEquals(firmwarePaths(flash), ["/code", "/vars"]);
});

Deno.test("detectTarget() chooses the default firmware of the processor, or the requested one", async () => {
  const env = new Map([["TOOLSMITH_QEMU", "/opt/bin/qemu-system-x86_64"]]);
  const target = (options: Parameters<typeof detectTarget>[1]) =>
    detectTarget("/no/such/image.qcow2", { env, ...options });
  const bios = await expectFailure(
    "usage",
    () => target({ arch: "aarch64", firmware: "bios" }),
  );
  assertEquals(bios.message, "There is no BIOS for aarch64");
  assertEquals(
    bios.hint,
    "omit --firmware, or pass --firmware uefi",
  );
  assertEquals((await target({ loader: { firmware: "bios" } })).arch, "x86_64");
  // A directory is not a firmware file.
  const dir = join(Deno.execPath(), "..");
  const none = await expectFailure(
    "firmware_not_found",
    () => target({ arch: "x86_64", firmware: dir }),
  );
  assertEquals(none.message, `Firmware file not found: ${dir}`);
  const known = { arch: "x86_64", firmware: "bios" } as const;
  assertEquals((await target(known)).firmware, undefined);
  // arm64 needs UEFI: either it is found, or its absence is reported.
  const arm = await target({ loader: { arch: "aarch64" } })
    .catch((error) => error.code);
  assert(arm === "firmware_not_found" || "code" in arm.firmware);
});
