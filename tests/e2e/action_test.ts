/**
 * The action, as GitHub's runner runs it: each step by bash, with a release and
 * an oras on loopback. The program in the release starts this checkout's.
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { dirname, join } from "@std/path";
import { fileChunks, sha256, sha256OfText } from "../../lib/system/digest.ts";
import { run } from "../../lib/system/process.ts";
import { VERSION } from "../../lib/version.ts";
import { ROOT } from "../../scripts/deno.ts";
import { temporaryDir } from "../support/directory.ts";
import { guest, needsGuest } from "../support/guest.ts";
import { needs, parts } from "../support/parts.ts";
import {
  type JobOptions,
  type JobResult,
  readAction,
  runJob,
} from "../support/workflow.ts";
import { cleanEnvironment, commandLine } from "../support/workspace.ts";

const ACTION = readAction();

interface Bench {
  /** The checkout, whose manifest names the guest's image. */
  checkout: string;
  /** The image's digest. */
  digest: string;
  /** What was asked of root. */
  rootCalls(): Promise<string>;
  /** What the release's server answers to a path. */
  files: Record<string, string | Uint8Array<ArrayBuffer>>;
  /** A directory of programs that are found first. */
  bin: string;
  /**
   * Runs the action with these inputs, and other parts of its context, on a new
   * runner: of an earlier job it has what actions/cache kept.
   */
  use(
    context?: Record<string, string>,
    options?: Pick<JobOptions, "env" | "only">,
  ): Promise<JobResult>;
}

function testAction(name: string, body: (bench: Bench) => Promise<void>) {
  Deno.test({
    name,
    ignore: needsGuest.ignore || needs("oras").ignore ||
      Deno.build.os !== "linux",
    async fn() {
      await using dir = await temporaryDir();
      const [checkout, action, bin, temp] = [
        "checkout",
        "action",
        "bin",
        "temp",
      ]
        .map((name) => join(dir.path, name));
      await Promise.all([bin, temp].map((path) => Deno.mkdir(path)));
      const files: Bench["files"] = {};
      await using server = Deno.serve(
        { hostname: "127.0.0.1", port: 0, onListen() {} },
        ({ url }) => {
          const file = files[new URL(url).pathname];
          return new Response(file, { status: file === undefined ? 404 : 200 });
        },
      );
      const base = `http://127.0.0.1:${server.addr.port}`;
      await writeRelease(files);
      await writeAction(action, { base, files });
      const digest = await writeCheckout(checkout);
      const calls = join(dir.path, "calls");
      await Deno.writeTextFile(calls, "");
      // Root's part is noted; tee shows what would be written.
      await Deno.writeTextFile(
        join(bin, "sudo"),
        `#!/bin/sh\necho "$*" >>"${calls}"\n[ "$1" != tee ] || /bin/cat\n`,
        { mode: 0o755 },
      );
      const caching = actionsCache(dir.path);
      await body({
        bin,
        checkout,
        digest,
        files,
        rootCalls: () => Deno.readTextFile(calls),
        async use(context = {}, { env, only } = {}) {
          await Deno.remove(temp, { recursive: true });
          await Deno.mkdir(temp);
          const done = await runJob({ steps: ACTION.runs.steps }, {
            uses: caching.restore,
            cwd: checkout,
            context: {
              "github.action_path": action,
              "github.action_repository": "",
              "github.repository": "owner/toolsmith",
              "github.server_url": base,
              "runner.temp": temp,
              ...defaults(),
              ...context,
            },
            only,
            env: {
              ...hostEnvironment(),
              TOOLSMITH_QEMU: "",
              HOME: dir.path,
              PATH: [bin, dirname(parts.qemu!), "/usr/bin", "/bin"].join(":"),
              ...env,
            },
          });
          if (!done.failed) await caching.save();
          return done;
        },
      });
    },
  });
}

/** Keeps and brings back files as actions/cache does: with their times. */
function actionsCache(dir: string) {
  const kept = new Map<string, string>();
  const used = new Map<string, string>();
  const tar = async (words: string) => {
    const args = ["-c", `tar --posix -P ${words}`];
    const { code, stderr } = await run("bash", { args });
    assertEquals(code, 0, stderr);
  };
  return {
    async restore(_action: string, { key, path }: Record<string, string>) {
      const archive = kept.get(key);
      if (archive) await tar(`-xf "${archive}"`);
      else used.set(key, path);
    },
    async save() {
      for (const [key, path] of used) {
        const archive = join(dir, `${key}.tar`);
        const words = path.trim().replace(/^!/gm, "--exclude=").split("\n");
        await tar(`-cf "${archive}" ${words.reverse().join(" ")}`);
        kept.set(key, archive);
      }
      used.clear();
    },
  };
}

/** What the steps set themselves counts, and not what a host has. */
function hostEnvironment(): Record<string, string> {
  const own = new Set(
    ACTION.runs.steps.flatMap(({ env }) => Object.keys(env ?? {})),
  );
  return Object.fromEntries(
    Object.entries(cleanEnvironment()).filter(([name]) => !own.has(name)),
  );
}

function defaults(): Record<string, string> {
  return Object.fromEntries(
    Object.entries(ACTION.inputs).map(([name, input]) => [
      `inputs.${name}`,
      input.default.startsWith("${{") ? "" : input.default,
    ]),
  );
}

/** The release's program starts this checkout's. */
async function writeRelease(files: Bench["files"]) {
  const program = `#!/bin/sh\nexec ${await commandLine([])} "$@"\n`;
  const path =
    `/owner/toolsmith/releases/download/v${VERSION}/toolsmith-${Deno.build.target}`;
  files[path] = program;
  files[`${path}.sha256`] = await sha256OfText(program);
}

/** The action's own files, but oras comes from loopback. */
async function writeAction(
  action: string,
  { base, files }: { base: string; files: Bench["files"] },
) {
  await Deno.mkdir(join(action, "tools", "oras"), { recursive: true });
  await Deno.copyFile(join(ROOT, "install.sh"), join(action, "install.sh"));
  const archive = join(action, "oras.tar.gz");
  const args = ["-I", "gzip -1", "-cf", archive, "-C", dirname(parts.oras!)];
  // Whatever its name here is, it is oras there.
  const name = parts.oras!.slice(dirname(parts.oras!).length + 1);
  const packed = await run("tar", {
    args: [...args, `--transform=s/.*/oras/`, name],
  });
  assertEquals(packed.code, 0, packed.stderr);
  files["/oras.tar.gz"] = await Deno.readFile(archive);
  const system = `linux-${Deno.build.arch}`;
  const digest = await sha256(fileChunks(archive));
  const pinned = {
    base: `${base}/`,
    archives: { [system]: { name: "oras.tar.gz", sha256: digest } },
  };
  const release = join(action, "tools", "oras", "release.json");
  await Deno.writeTextFile(release, JSON.stringify(pinned));
}

async function writeCheckout(checkout: string): Promise<string> {
  const qcow2 = await guest();
  const qcow2_sha256 = await sha256(fileChunks(qcow2));
  await Deno.mkdir(join(checkout, ".toolsmith"), { recursive: true });
  const image = { name: "demo", tarball: "", sha256: "", qcow2, qcow2_sha256 };
  await Deno.writeTextFile(
    join(checkout, ".toolsmith", "tools.json"),
    JSON.stringify({ image, tools: {}, operations: [] }),
  );
  return `sha256:${qcow2_sha256}`;
}

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

function program(bin: string, name: string, script: string) {
  const text = `#!/bin/sh\n${script}\n`;
  return Deno.writeTextFile(join(bin, name), text, { mode: 0o755 });
}

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
