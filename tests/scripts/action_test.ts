import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import { VERSION } from "../../lib/version.ts";
import { ACTION, installProgram, testAction } from "../support/action.ts";

testAction(
  "action.yml runs a command in the guest, and the next job restores the snapshot",
  async (it) => {
    const done = await it.use({
      "inputs.run": 'echo "in the $(uname -n)" guest',
    });
    assertEquals(done.failed, undefined, done.log);
    assertMatch(done.log, /^in the toolsmith guest$/m);
    const { "hydrate.path": path, "hydrate.digest": digest } = done.outputs;
    assertEquals(digest, it.digest);
    assertEquals(
      `sha256:${await sha256OfChunks(readFileChunks(path))}`,
      it.digest,
    );
    assertMatch(done.summary, new RegExp(it.digest));
    assertMatch(done.log, /^snapshots adopted: 0$/m);
    const later = await it.use({ "inputs.run": "uname -n" });
    assertEquals(later.failed, undefined, later.log);
    assertMatch(later.log, /^snapshots adopted: 1$/m);
    assertMatch(later.log, /^toolsmith$/m);
    assertMatch(later.log, /^restored in /m);
  },
);

for (
  const [machine, packages] of [
    ["x86_64", "qemu-system-x86 ovmf"],
    ["aarch64", "qemu-system-arm qemu-efi-aarch64"],
  ]
) {
  testAction(
    `action.yml installs QEMU and firmware on a ${machine} runner`,
    async ({ bin, use, rootCalls }) => {
      await installProgram(bin, "uname", `echo ${machine}`);
      await installProgram(bin, "apt-get", "exit 1");
      await Deno.symlink("/bin/bash", join(bin, "bash"));
      const env = { PATH: bin, KVM: join(bin, "none") };
      const only = ["Prepare QEMU and KVM"];
      const done = await use({ "inputs.run": "true" }, { env, only });
      assertEquals(done.failed, undefined, done.log);
      assertEquals(
        await rootCalls(),
        `apt-get update -qq\napt-get install -y -qq --no-install-recommends ${packages}\n`,
      );
      // A job in a container.
      await Deno.remove(join(bin, "sudo"));
      await installProgram(bin, "apt-get", `echo "own $*"`);
      const own = await use({ "inputs.run": "true" }, { env, only });
      assertMatch(own.log, new RegExp(`^own install .* ${packages}$`, "m"));
    },
  );
}

testAction(
  "action.yml gives the job access to KVM only where that is missing",
  async ({ bin, use, rootCalls }) => {
    const KVM = join(bin, "kvm");
    await Deno.writeTextFile(KVM, "");
    // Root without capabilities cannot write to a read-only file.
    const drop = "/usr/bin/setpriv --inh-caps=-all --bounding-set=-all";
    const isRoot = Deno.uid() === 0;
    await installProgram(
      bin,
      "bash",
      `exec ${isRoot ? drop : ""} /bin/bash "$@"`,
    );
    const prepare = () =>
      use({ "inputs.run": "true" }, {
        env: { KVM },
        only: ["Prepare QEMU and KVM"],
      });
    const usable = await prepare();
    assertEquals(usable.failed, undefined, usable.log);
    assertEquals(await rootCalls(), "");
    await Deno.chmod(KVM, 0o400);
    const readOnly = await prepare();
    assertEquals(readOnly.failed, undefined, readOnly.log);
    assertMatch(readOnly.log, /^KERNEL=="kvm".*MODE="0666"/m);
    assertMatch(await rootCalls(), /udevadm trigger --name-match=kvm/);
    await installProgram(bin, "sudo", "exit 1");
    const denied = await prepare();
    assertEquals(denied.failed, undefined, denied.log);
    assertMatch(denied.log, /^::warning::.*kvm may not be used/m);
  },
);

testAction(
  "action.yml uses the program of its own repository when called from another one",
  async (it) => {
    const done = await it.use({
      "github.action_repository": "owner/toolsmith",
      "github.repository": "consumer/app",
    });
    assertEquals(done.failed, undefined, done.log);
    assertEquals(done.outputs["hydrate.digest"], it.digest);
  },
);

testAction(
  "action.yml only hydrates when run is not requested",
  async (it) => {
    const done = await it.use();
    assertEquals(done.failed, undefined, done.log);
    assert(done.outputs["hydrate.path"].endsWith(".qcow2"));
    assertEquals(await it.rootCalls(), "");
  },
);

testAction(
  "action.yml rejects a download that does not match its pinned digest",
  async (it) => {
    it.files["/oras.tar.gz"] = new Uint8Array(10);
    const oras = await it.use();
    assertEquals(oras.failed, "Install Toolsmith and oras");
    assertMatch(oras.log, /FAILED|did NOT match/);
    assertEquals(oras.outputs, {});
  },
);

testAction(
  "action.yml rejects a hostile version and a manifest without a digest",
  async (it) => {
    const version = await it.use({ "inputs.version": "1.0.0/../../evil" });
    assertEquals(version.failed, "Install Toolsmith and oras");
    assertMatch(version.log, /::error::the version is not one such as/);
    const manifest = join(it.checkout, ".toolsmith", "tools.json");
    await Deno.writeTextFile(manifest, '{"image":{"qcow2_sha256":"x\\ny=z"}}');
    const digest = await it.use();
    assertEquals(digest.failed, "Read the image's digest");
    assertEquals(digest.outputs, {});
  },
);

Deno.test("action.yml caches image and snapshots by digest and sets its outputs", () => {
  const [image, machine, ...more] = ACTION.runs.steps
    .filter(({ uses }) => uses?.includes("cache@"))
    .map((step) => step.with!.key);
  assertEquals(more, []);
  assertMatch(image, /-\$\{\{ steps\.image\.outputs\.sha256 \}\}$/);
  assertMatch(machine, /steps\.image\.outputs\.sha256.*steps\.host\./);
  assertEquals(Object.keys(ACTION.outputs), ["path", "digest"]);
  assertEquals(ACTION.inputs.version.default, VERSION);
});
