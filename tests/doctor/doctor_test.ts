import { assert, assertEquals, assertRejects } from "@std/assert";
import { join } from "@std/path";
import {
  doctor,
  type DoctorOptions,
  type Finding,
} from "../../lib/doctor/doctor.ts";
import { readFreeDiskBytes } from "../../lib/system/free_space.ts";
import { temporaryDir } from "../support/directory.ts";
import { foundTools, requires } from "../support/parts.ts";
import { startRegistry } from "../support/registry.ts";
import { makeQcow2, orasPush, TYPE } from "../support/workspace.ts";

const DIGEST = "a".repeat(64);

/** Runs doctor() in a directory, with a manifest if an image is given. */
async function examine(
  dir: string,
  options: DoctorOptions & {
    qcow2?: string;
    variables?: Record<string, string>;
  } = {},
) {
  const { qcow2, variables = {}, ...rest } = options;
  if (qcow2 !== undefined) {
    const image = { name: "demo", qcow2, qcow2_sha256: DIGEST };
    await Deno.mkdir(join(dir, ".toolsmith"), { recursive: true });
    await Deno.writeTextFile(
      join(dir, ".toolsmith", "tools.json"),
      JSON.stringify({ image }),
    );
  }
  const env = new Map(
    Object.entries({ TOOLSMITH_ORAS: "/none", ...variables }),
  );
  const findings = await doctor({ cwd: dir, env, ...rest });
  return Object.fromEntries(findings.map((it) => [it.check, it]));
}

/** Writes a fake oras that prints this version. */
async function writeFakeOras(dir: string, version: string): Promise<string> {
  const path = join(dir, `oras-${version}`);
  const script = `#!/bin/sh\necho "Version:        ${version}"\n`;
  await Deno.writeTextFile(path, script, { mode: 0o755 });
  return path;
}

const level = (finding: Finding | undefined) => finding?.level;

Deno.test({
  name: "doctor() reports ok and what it found on a complete host",
  ...requires("oras", "registry", "qemuImg"),
  async fn() {
    await using dir = await temporaryDir();
    await using registry = await startRegistry();
    const cwd = join(dir.path, "dist");
    await makeQcow2(join(cwd, "image.qcow2"));
    const reference = `${registry.host}/owner/repo:1.0`;
    await orasPush(reference, [`image.qcow2:${TYPE}`], { cwd });
    const found = await examine(dir.path, {
      qcow2: `oci://${reference}`,
      variables: { TOOLSMITH_ORAS: foundTools.oras! },
    });
    for (const check of ["manifest", "credentials", "registry", "cache"]) {
      assertEquals(level(found[check]), "ok", found[check].found);
    }
    assert(found.manifest.found.includes(`demo from oci://${reference}`));
    assert(/^serves sha256:[0-9a-f]{64}$/.test(found.registry.found));
    assert(/^1\.\d+\.\d+/.test(found.oras.found), found.oras.found);
    assert(/GiB free at \//.test(found.space.found), found.space.found);
    // doctor changes nothing.
    const left = await Array.fromAsync(
      Deno.readDir(join(dir.path, ".toolsmith")),
    );
    assertEquals(left.map(({ name }) => name), ["tools.json"]);
  },
});

Deno.test({
  name:
    "doctor() fails only the registry check when the image is missing or the registry is down",
  ...requires("oras", "registry"),
  async fn() {
    await using dir = await temporaryDir();
    await using registry = await startRegistry();
    const variables = { TOOLSMITH_ORAS: foundTools.oras! };
    const qcow2 = `oci://${registry.host}/owner/none:1`;
    const options = { qcow2, variables };
    const missing = await examine(dir.path, options);
    assertEquals(level(missing.registry), "fail");
    assert(missing.registry.found.includes("Not found"));
    await registry.stop();
    const gone = await examine(dir.path, options);
    assertEquals(level(gone.registry), "fail");
    assert(gone.registry.found.includes("Cannot connect"));
    assert(gone.registry.hint, "no hint");
    assertEquals(level(gone.cache), "ok");
  },
});

Deno.test("doctor() reports a missing oras and still runs the other checks", async () => {
  await using dir = await temporaryDir();
  const qcow2 = "oci://127.0.0.1:1/owner/repo:1.0";
  const found = await examine(dir.path, { qcow2 });
  assertEquals(level(found.oras), "fail");
  assert(found.oras.found.startsWith("oras not found"), found.oras.found);
  assert(found.oras.hint?.includes("set TOOLSMITH_ORAS"));
  assertEquals(level(found.cache), "ok");
});

Deno.test("doctor() does not require oras for an image from a file or HTTPS", async () => {
  await using dir = await temporaryDir();
  const found = await examine(dir.path, { qcow2: "image.qcow2" });
  assertEquals(level(found.oras), "warn");
  assertEquals(found.registry, undefined);
  assertEquals(found.credentials, undefined);
});

Deno.test({
  name:
    "doctor() fails for oras older than 1.3.0 and warns for oras older than 1.3.3",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    const versions: [string, Finding["level"]][] = [
      ["1.2.9", "fail"],
      ["0.16.0", "fail"],
      ["1.3.0", "warn"],
      ["1.3.0+unreleased", "warn"],
      ["1.3.2", "warn"],
      ["1.3.3", "ok"],
      ["1.10.0", "ok"],
      ["2.0.0-beta.1", "ok"],
    ];
    for (const [version, expected] of versions) {
      const TOOLSMITH_ORAS = await writeFakeOras(dir.path, version);
      const found = await examine(dir.path, {
        variables: { TOOLSMITH_ORAS },
      });
      assertEquals(level(found.oras), expected, version);
      assert(found.oras.found.startsWith(version.replace("+unreleased", "")));
      assertEquals(found.oras.hint === undefined, expected === "ok");
    }
    const variables = { TOOLSMITH_ORAS: "true" };
    const other = await examine(dir.path, { variables });
    assertEquals(level(other.oras), "fail");
  },
});

Deno.test("doctor() reports credentials without printing the token", async () => {
  await using dir = await temporaryDir();
  const qcow2 = "oci://ghcr.io/owner/repo:1.0";
  const cases: [Record<string, string>, Finding["level"], string][] = [
    [{}, "ok", "none in the environment"],
    [{ GHCR_TOKEN: "s3cr3t" }, "warn", "GHCR_TOKEN is ignored"],
    [{ GITHUB_ACTOR: "jane" }, "ok", "none in the environment"],
    [
      { GHCR_TOKEN: "s3cr3t", GITHUB_ACTOR: "jane" },
      "ok",
      "GHCR_TOKEN for jane at ghcr.io",
    ],
    [
      { GHCR_TOKEN: "s3cr3t", GITHUB_ACTOR: "jane", GHCR_USERNAME: "joe" },
      "ok",
      "GHCR_TOKEN for joe at ghcr.io",
    ],
  ];
  for (const [variables, expected, words] of cases) {
    const found = await examine(dir.path, { qcow2, variables });
    assertEquals(level(found.credentials), expected, words);
    assert(found.credentials.found.includes(words), found.credentials.found);
    assert(!JSON.stringify(found).includes("s3cr3t"));
  }
});

Deno.test("doctor() warns of a missing manifest, and fails if options or TOOLSMITH_MANIFEST name one that is missing", async () => {
  await using dir = await temporaryDir();
  const none = await examine(dir.path);
  assertEquals(level(none.manifest), "warn");
  assert(none.manifest.hint?.includes("toolsmith init"));
  const named = await examine(dir.path, { manifest: "lost.json" });
  assertEquals(level(named.manifest), "fail");
  const variables = { TOOLSMITH_MANIFEST: "lost.json" };
  const variable = await examine(dir.path, { variables });
  assertEquals(level(variable.manifest), "fail");
  assertEquals([named.oras.check, named.cache.check], ["oras", "cache"]);
});

Deno.test("doctor() fails for an invalid manifest and names the wrong field", async () => {
  await using dir = await temporaryDir();
  const found = await examine(dir.path, { qcow2: "" });
  assertEquals(level(found.manifest), "fail");
  assert(found.manifest.found.includes("image.qcow2: empty"));
});

Deno.test("doctor() fails for a cache that is not writable and names its path", async () => {
  await using dir = await temporaryDir();
  const cache = join(dir.path, "file");
  await Deno.writeTextFile(cache, "");
  for (const path of [cache, join(cache, "deeper")]) {
    const found = await examine(dir.path, { cache: path });
    assertEquals(level(found.cache), "fail");
    assert(found.cache.hint?.includes("TOOLSMITH_CACHE"));
  }
  assertEquals((await Deno.stat(cache)).isFile, true);
});

Deno.test("doctor() checks the given cache, else TOOLSMITH_CACHE, else the workspace's", async () => {
  await using dir = await temporaryDir();
  const at = (name: string) => join(dir.path, name);
  const variables = { TOOLSMITH_CACHE: at("variable") };
  const given = await examine(dir.path, { cache: at("given"), variables });
  assertEquals(given.cache.found, `${at("given")} is writable`);
  const variable = await examine(dir.path, { variables });
  assertEquals(variable.cache.found, `${at("variable")} is writable`);
  const usual = await examine(dir.path);
  assertEquals(usual.cache.found, `${at(".toolsmith/cache")} is writable`);
  assertEquals(await Array.fromAsync(Deno.readDir(dir.path)), []);
});

Deno.test("doctor() measures free space at the nearest existing parent of the cache", async () => {
  await using dir = await temporaryDir();
  const freeGib = async () => (await readFreeDiskBytes(dir.path))! / 2 ** 30;
  let found, before, gib: number;
  // Other processes write at the same time: wait until they hardly do.
  do {
    before = await freeGib();
    found = await examine(dir.path, { cache: join(dir.path, "a", "b") });
    gib = await freeGib();
  } while (Math.abs(gib - before) > 0.1);
  const [, shown] = /^(\d+\.\d) GiB free at (.*)$/.exec(found.space.found) ??
    [];
  assert(Math.abs(Number(shown) - gib) < 1, `${shown} is not ${gib}`);
  assert(found.space.found.endsWith(` at ${dir.path}`), found.space.found);
  const { level: said, hint } = found.space;
  assertEquals(hint !== undefined, said === "warn", hint);
});

Deno.test("doctor() throws the reason of a signal that is already aborted", async () => {
  await using dir = await temporaryDir();
  const signal = AbortSignal.abort(new Error("enough"));
  await assertRejects(
    () => examine(dir.path, { signal }),
    Error,
    "enough",
  );
});

Deno.test("doctor() reports missing UEFI and arm64 support as ok, not as a failure", async () => {
  await using dir = await temporaryDir();
  const none = join(dir.path, "qemu-system-x86_64");
  const missing = await examine(dir.path, {
    variables: { TOOLSMITH_QEMU: none },
  });
  for (const check of ["UEFI images", "arm64 images"]) {
    assertEquals(missing[check].level, "ok");
    assert(missing[check].found.includes("QEMU not found"), check);
  }
  assert(missing["arm64 images"].hint?.includes("qemu-system-arm"));
  const script = "#!/bin/sh\necho QEMU emulator version 9.9.9\n";
  for (const path of [none, none.replace("x86_64", "aarch64")]) {
    await Deno.writeTextFile(path, script, { mode: 0o755 });
  }
  const found = await examine(dir.path, {
    variables: { TOOLSMITH_QEMU: none },
  });
  assert(
    /9\.9\.9, firmware |firmware_not|UEFI/.test(found["arm64 images"].found),
  );
});

/** Whether this host has KVM for x86-64. */
const kvm = await Deno.stat("/dev/kvm").then(() => true, () => false) &&
  Deno.build.os === "linux" && Deno.build.arch === "x86_64";

Deno.test({
  name: "doctor() probes the host's accelerator again on each call",
  ignore: !kvm,
  async fn() {
    await using dir = await temporaryDir();
    const accelerator = async (variables: Record<string, string>) =>
      (await examine(dir.path, { variables })).accelerator;
    // On a slow host, emulation is started too: it must not end before KVM.
    const program = async (
      name: string,
      kvm: string,
      tcg = "exec sleep 600",
    ) => {
      const path = join(dir.path, name);
      const script =
        `case $* in *accel=kvm*) ${kvm} ;; *accel=tcg*) ${tcg} ;; esac`;
      await Deno.writeTextFile(path, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
      return await accelerator({ TOOLSMITH_QEMU: path, TMPDIR: dir.path });
    };
    assertEquals(await program("good", "exit 0"), {
      check: "accelerator",
      level: "ok",
      found: "kvm",
    });
    const denied = await program(
      "denied",
      "echo 'Could not access KVM kernel module: Permission denied' >&2; exit 1",
    );
    assertEquals(denied.level, "warn");
    assert(denied.hint?.includes("usermod"), denied.hint);
    const path = join(dir.path, "broken");
    const variables = { TOOLSMITH_QEMU: path, TMPDIR: dir.path };
    const broken = await program(
      "broken",
      '[ -e "$TMPDIR/repaired" ] || { echo kvm run failed >&2; exit 1; }',
    );
    assertEquals(broken.level, "warn");
    assert(broken.found.includes("kvm run failed"), broken.found);
    await Deno.writeTextFile(join(dir.path, "repaired"), "");
    assertEquals((await accelerator(variables)).found, "kvm");
    const slow = await program("slow", "exec sleep 600", "exit 0");
    assertEquals(
      slow.found,
      "KVM is available but slower than emulation on this host: guests are emulated",
    );
    assert(slow.hint?.includes("nested virtualisation"), slow.hint);
    const wanted = await accelerator({ TOOLSMITH_ACCEL: "tcg" });
    assertEquals(wanted.found, "tcg, set by TOOLSMITH_ACCEL");
    const wrong = await accelerator({ TOOLSMITH_ACCEL: "xen" });
    assertEquals([wrong.level, wrong.found], [
      "warn",
      "Unknown accelerator: TOOLSMITH_ACCEL=xen",
    ]);
  },
});
