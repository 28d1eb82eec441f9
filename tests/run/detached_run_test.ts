/**
 * Which VM a workspace's commands use: the detached VM, which a test process
 * stands in for, or a new one, whose image is missing.
 */
import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { parseManifest } from "../../lib/manifest/manifest.ts";
import type { ToolRules } from "../../lib/manifest/tools.ts";
import { registryConfigPaths } from "../../lib/oci/registry_config_paths.ts";
import { detachedVmMismatch } from "../../lib/run/_detached_vm_reuse.ts";
import {
  bootDetachedWorkspaceVm,
  hydrateAndPlanVm,
  openWorkspaceVm,
  runInVm,
  type WorkspaceVmOptions,
} from "../../lib/run/workspace_vm.ts";
import type { BootOptions } from "../../lib/vm/boot_options.ts";
import type { DetachedVmRecord } from "../../lib/vm/detached_record.ts";
import { detachedVm } from "../support/detached_vm.ts";
import { collectEvents } from "../support/guest.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { say } from "../support/fake_machine.ts";
import { requires } from "../support/parts.ts";
import { holdTimers } from "../support/timers.ts";
import { makeQcow2 } from "../support/workspace.ts";

const windows = Deno.build.os === "windows";
const SHA256 = "a".repeat(64);

/** A workspace whose manifest has an image with this digest. */
async function workspace(sha256 = SHA256, rules: Partial<ToolRules> = {}) {
  const dir = await temporaryDir();
  await Deno.mkdir(join(dir.path, ".toolsmith"));
  const path = join(dir.path, ".toolsmith", "tools.json");
  const image = { name: "demo", qcow2: "image.qcow2", qcow2_sha256: sha256 };
  const text = JSON.stringify({ image, operations: ["true"], ...rules });
  await Deno.writeTextFile(path, text);
  return { ...dir, manifest: parseManifest(text, path) };
}

Deno.test({
  name:
    "openWorkspaceVm() verifies the signature of a detached VM's image before it is used",
  ignore: windows,
  async fn() {
    await using work = await workspace();
    await using _vm = await detachedVm(work.path, `sha256:${SHA256}`);
    const signature = {
      identity: "me@example.com",
      issuer: "https://accounts.example.com",
    };
    const source = {
      kind: "oci" as const,
      registry: "localhost",
      repository: "demo",
      tag: "1.0",
    };
    const { manifest } = work;
    // The rule is newer than the VM.
    const image = { ...manifest.image, source, signature };
    const how = { hydrate: { offline: true } };
    await expectFailure(
      "offline_miss",
      () => openWorkspaceVm({ ...manifest, image }, how),
    );
  },
});

Deno.test({
  name:
    "runInVm() reuses the detached VM unless the options ask for a different VM",
  ignore: windows,
  async fn() {
    await using work = await workspace();
    const { manifest } = work;
    await using _vm = await detachedVm(work.path, `sha256:${SHA256}`);
    // Options for download, saving and waiting do not require a new VM, nor do
    // options that match the VM.
    const same: WorkspaceVmOptions[] = [
      {},
      { save: false, hydrate: { offline: true }, env: new Map() },
      { bootTimeoutMs: 60_000, agentOptional: true, memory: undefined },
      { memory: 512, cpus: 2, accelerator: "tcg", network: false },
      { exports: [], qemuArgs: [], reuseDetached: true },
    ];
    for (const vm of same) {
      const { events, onEvent } = collectEvents("warning");
      const how = { vm: { ...vm, onEvent } };
      assertEquals((await runInVm(manifest, "true", how)).code, 0);
      assertEquals(events, []);
    }
    const other: [WorkspaceVmOptions, string?][] = [
      [{ fresh: true }],
      [{ reuseDetached: false }],
      [{ memory: 1024 }, "memory is 512, requested 1024"],
      [{ cpus: 1 }, "cpus is 2, requested 1"],
      [{ accelerator: "kvm" }, "accelerator is tcg, requested kvm"],
      [{ network: "host-loopback" }, "network is false, requested true"],
      [{ network: true }, "network needs a new VM"],
      [{ network: { allow: ["a.test"] } }, "network needs a new VM"],
      [{ exports: [{ path: work.path }] }, "exports needs a new VM"],
      [{ copyLimit: 64 }, "the VM was booted without the workspace"],
      [{ arch: "x86_64" }, "arch needs a new VM"],
      [{ overlay: "kept.qcow2" }, "overlay needs a new VM"],
      [{ qemuArgs: ["-s"] }, "qemuArgs needs a new VM"],
    ];
    for (const [vm, why] of other) {
      const { events, onEvent } = collectEvents("warning");
      const how = { ...vm, onEvent };
      await expectFailure(
        "source_not_found",
        () => openWorkspaceVm(manifest, how),
      );
      const said = events.map(({ message }) => message);
      const expected = why ? [`The detached VM is not used: ${why}`] : [];
      assertEquals(said, expected);
    }
    await using _open = await openWorkspaceVm(manifest);
  },
});

Deno.test("detachedVmMismatch() requires a new VM for firmware, a console, and no exports instead of some", () => {
  const share = { path: "/out", tag: "out", writable: true };
  const record = { shares: [share] } as unknown as DetachedVmRecord;
  const why = (asked: Partial<BootOptions>) =>
    detachedVmMismatch(asked, record);
  assertEquals(why({}), undefined);
  assertEquals(why({ exports: [] }), "exports needs a new VM");
  assertEquals(why({ firmware: "uefi" }), "firmware needs a new VM");
  assertEquals(why({ console: { output() {} } }), "console needs a new VM");
});

Deno.test({
  name:
    "runInVm() runs a tool's guest path and throws tool_forbidden for other commands",
  ignore: windows,
  async fn() {
    const rules = { tools: { lister: "/bin/ls" }, operations: ["lister"] };
    await using work = await workspace(SHA256, rules);
    const ran: string[] = [];
    const vm = await detachedVm(work.path, `sha256:${SHA256}`, {
      async command({ words, marker, out, err }) {
        ran.push(...words.slice(-2));
        await say(err, `ready\n${marker}\n`);
        await say(out, `here.txt\n${marker}0\n`);
      },
    });
    const { manifest } = work;
    {
      await using _vm = vm;
      const { code, stdout } = await runInVm(manifest, "lister", {
        args: ["-1"],
      });
      assertEquals([code, stdout, ran], [0, "here.txt\n", ["/bin/ls", "-1"]]);
    }
    // A forbidden command is refused in any VM.
    await expectFailure("tool_forbidden", () => runInVm(manifest, "/bin/ls"));
    await expectFailure("source_not_found", () => runInVm(manifest, "lister"));
  },
});

Deno.test({
  name:
    "runInVm() does not use a detached VM of another image, and bootDetachedWorkspaceVm() refuses a second VM",
  ignore: windows,
  async fn() {
    await using work = await workspace();
    await using _vm = await detachedVm(work.path, `sha256:${"b".repeat(64)}`);
    const { manifest } = work;
    const { events, onEvent } = collectEvents("warning");
    const vm = { onEvent };
    await expectFailure(
      "source_not_found",
      () => runInVm(manifest, "true", { vm }),
    );
    assertEquals(events.map(({ message }) => message), [
      "The detached VM is not used: the manifest names another image",
    ]);
    await expectFailure("usage", () => bootDetachedWorkspaceVm(manifest));
  },
});

Deno.test({
  name:
    "runInVm() applies timeoutMs to a command in the detached VM and leaves the VM usable",
  ignore: windows,
  async fn() {
    await using work = await workspace();
    let commands = 0;
    const timeoutMs = 123_456;
    using clocks = holdTimers(timeoutMs);
    const digest = `sha256:${SHA256}`;
    await using _vm = await detachedVm(work.path, digest, {
      command() {
        commands++;
        clocks.expire();
        return new Promise(() => {});
      },
    });
    for (let count = 1; count <= 2; count++) {
      const run = () => runInVm(work.manifest, "true", { timeoutMs });
      const error = await expectFailure("timeout", run);
      assertEquals(error.message, "The command did not end within 123.456 s");
      assertEquals([commands, clocks.count()], [count, 0]);
    }
  },
});

Deno.test("bootDetachedWorkspaceVm() throws source_not_found without a detached VM and an image", async () => {
  await using work = await workspace();
  await expectFailure(
    "source_not_found",
    () => bootDetachedWorkspaceVm(work.manifest),
  );
});

Deno.test({
  name:
    "hydrateAndPlanVm() plans image, workspace, host-only paths and snapshots",
  ...requires("qemuImg"),
  async fn() {
    await using dir = await temporaryDir();
    const qcow2 = join(dir.path, "image.qcow2");
    const { sha256 } = await makeQcow2(qcow2, 65536);
    await using work = await workspace(sha256);
    const { path, manifest } = work;
    await Deno.copyFile(qcow2, join(path, ".toolsmith", "image.qcow2"));
    const cache = join(path, "cache");
    const entry = join(cache, "demo", sha256);
    const events: string[] = [];
    const plan = await hydrateAndPlanVm(manifest, {
      hydrate: { cache, arch: "x86_64", caFile: "/ca.pem" },
      memory: 600,
      onEvent: ({ type }) => events.push(type),
    });
    const { onEvent: _, loader: __, ...fields } = plan;
    assertEquals(fields, {
      accelerator: undefined,
      image: join(entry, "image.qcow2"),
      memory: 600,
      workspace: path,
      hostOnly: [
        manifest.path,
        cache,
        "/ca.pem",
        ...await registryConfigPaths(),
      ],
      snapshots: {
        ...{ dir: join(entry, "machines"), digest: `sha256:${sha256}` },
        ...{ restore: true, save: undefined },
      },
    });
    assertEquals(events.includes("cache_placed"), true, events.join());
    const fresh = await hydrateAndPlanVm(manifest, {
      ...{ hydrate: { cache, offline: true }, fresh: true, save: false },
    });
    const { restore, save } = fresh.snapshots!;
    assertEquals([restore, save], [false, false]);
  },
});
