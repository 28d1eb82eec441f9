import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "@std/path";
import { fileChunks, sha256 } from "../../lib/system/digest.ts";
import { VERSION } from "../../lib/version.ts";
import { ACTION, program, testAction } from "../support/action.ts";

testAction(
  "the action runs a command in the guest, and the next job restores it",
  async (it) => {
    const done = await it.use({
      "inputs.run": 'echo "in the $(uname -n)" guest',
    });
    assertEquals(done.failed, undefined, done.log);
    assertMatch(done.log, /^in the toolsmith guest$/m);
    const { "hydrate.path": path, "hydrate.digest": digest } = done.outputs;
    assertEquals(digest, it.digest);
    assertEquals(`sha256:${await sha256(fileChunks(path))}`, it.digest);
    assertMatch(done.summary, new RegExp(it.digest));
    assertMatch(done.log, /^snapshots accepted: 0$/m);
    const later = await it.use({ "inputs.run": "uname -n" });
    assertEquals(later.failed, undefined, later.log);
    assertMatch(later.log, /^snapshots accepted: 1$/m);
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
    `the action installs QEMU for a runner of ${machine}, and its firmware`,
    async ({ bin, use, rootCalls }) => {
      await program(bin, "uname", `echo ${machine}`);
      await program(bin, "apt-get", "exit 1");
      await Deno.symlink("/bin/bash", join(bin, "bash"));
      const env = { PATH: bin, KVM: join(bin, "none") };
      const only = ["Prepare QEMU and KVM"];
      const done = await use({ "inputs.run": "true" }, { env, only });
      assertEquals(done.failed, undefined, done.log);
      assertEquals(
        await rootCalls(),
        `apt-get update -qq\napt-get install -y -qq --no-install-recommends ${packages}\n`,
      );
      // A container's job.
      await Deno.remove(join(bin, "sudo"));
      await program(bin, "apt-get", `echo "own $*"`);
      const own = await use({ "inputs.run": "true" }, { env, only });
      assertMatch(own.log, new RegExp(`^own install .* ${packages}$`, "m"));
    },
  );
}

testAction(
  "the action lets the job use KVM where it may not, and only there",
  async ({ bin, use, rootCalls }) => {
    const KVM = join(bin, "kvm");
    await Deno.writeTextFile(KVM, "");
    // Root without its capabilities may not write to what is read-only.
    const drop = "/usr/bin/setpriv --inh-caps=-all --bounding-set=-all";
    const isRoot = Deno.uid() === 0;
    await program(bin, "bash", `exec ${isRoot ? drop : ""} /bin/bash "$@"`);
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
    await program(bin, "sudo", "exit 1");
    const denied = await prepare();
    assertEquals(denied.failed, undefined, denied.log);
    assertMatch(denied.log, /^::warning::.*kvm may not be used/m);
  },
);

testAction(
  "the action in another repository takes the program from its own",
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
  "the action only fetches where there is nothing to run",
  async (it) => {
    const done = await it.use();
    assertEquals(done.failed, undefined, done.log);
    assert(done.outputs["hydrate.path"].endsWith(".qcow2"));
    assertEquals(await it.rootCalls(), "");
  },
);

testAction(
  "the action refuses other bytes than those that are pinned",
  async (it) => {
    it.files["/oras.tar.gz"] = new Uint8Array(10);
    const oras = await it.use();
    assertEquals(oras.failed, "Install Toolsmith and oras");
    assertMatch(oras.log, /FAILED|did NOT match/);
    assertEquals(oras.outputs, {});
  },
);

testAction(
  "the action refuses a hostile version, and a manifest without a digest",
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

Deno.test("the action keeps image and machine by the digest, and its outputs are those of a step", () => {
  const [image, machine, ...more] = ACTION.runs.steps
    .filter(({ uses }) => uses?.includes("cache@"))
    .map((step) => step.with!.key);
  assertEquals(more, []);
  assertMatch(image, /-\$\{\{ steps\.image\.outputs\.sha256 \}\}$/);
  assertMatch(machine, /steps\.image\.outputs\.sha256.*steps\.host\./);
  assertEquals(Object.keys(ACTION.outputs), ["path", "digest"]);
  assertEquals(ACTION.inputs.version.default, VERSION);
});
