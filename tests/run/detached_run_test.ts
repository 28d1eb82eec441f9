/**
 * Which machine a workspace's commands take: its detached VM, which a process of
 * the test stands in for, or one of their own, for which the image is missing.
 */
import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { parseManifest } from "../../lib/manifest/manifest.ts";
import { registryFiles } from "../../lib/oci/host_files.ts";
import {
  detachWorkspaceVm,
  openWorkspaceVm,
  planWorkspaceVm,
  runInVm,
  type WorkspaceVmOptions,
} from "../../lib/run/workspace_vm.ts";
import { detachedVm } from "../support/detached_vm.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { needs } from "../support/parts.ts";
import { makeQcow2 } from "../support/workspace.ts";

const windows = Deno.build.os === "windows";
const SHA256 = "a".repeat(64);

/** A workspace with a manifest of an image of this digest. */
async function workspace(sha256 = SHA256) {
  const dir = await temporaryDir();
  await Deno.mkdir(join(dir.path, ".toolsmith"));
  const path = join(dir.path, ".toolsmith", "tools.json");
  const image = { name: "demo", qcow2: "image.qcow2", qcow2_sha256: sha256 };
  const text = JSON.stringify({ image, operations: ["true"] });
  await Deno.writeTextFile(path, text);
  return { ...dir, manifest: parseManifest(text, path) };
}

Deno.test({
  name:
    "a command takes the detached VM, unless it asks for another machine or the image has changed",
  ignore: windows,
  async fn() {
    await using work = await workspace();
    const { manifest } = work;
    await using _vm = await detachedVm(work.path, `sha256:${SHA256}`);
    // How to get an image, and to save a machine, asks for no other one.
    const same: WorkspaceVmOptions[] = [
      {},
      { save: false, hydrate: { offline: true }, env: new Map() },
      { onEvent: () => {}, memory: undefined, fresh: false },
    ];
    for (const vm of same) {
      assertEquals((await runInVm(manifest, "true", { vm })).code, 0);
    }
    const other: WorkspaceVmOptions[] = [
      { fresh: true },
      { memory: 1024 },
      { network: false },
      { exports: [] },
    ];
    for (const vm of other) {
      await failure(
        "source_not_found",
        () => runInVm(manifest, "true", { vm }),
      );
      await failure("source_not_found", () => openWorkspaceVm(manifest, vm));
    }
    await using _open = await openWorkspaceVm(manifest);
    // What the manifest forbids is not tried.
    await failure("tool_forbidden", () => runInVm(manifest, "ls"));
  },
});

Deno.test({
  name:
    "a detached VM of another image is no machine of a command's, and none can be detached beside it",
  ignore: windows,
  async fn() {
    await using work = await workspace();
    await using _vm = await detachedVm(work.path, `sha256:${"b".repeat(64)}`);
    const { manifest } = work;
    await failure("source_not_found", () => runInVm(manifest, "true"));
    await failure("source_not_found", () => openWorkspaceVm(manifest));
    await failure("usage", () => detachWorkspaceVm(manifest));
  },
});

Deno.test({
  name:
    "a time limit holds for a command in the detached VM, which stays usable",
  ignore: windows,
  async fn() {
    await using work = await workspace();
    let commands = 0;
    const digest = `sha256:${SHA256}`;
    await using _vm = await detachedVm(work.path, digest, {
      command: () => new Promise(() => commands++),
    });
    for (let count = 1; count <= 2; count++) {
      const run = () => runInVm(work.manifest, "true", { timeoutMs: 500 });
      const error = await failure("timeout", run);
      assertEquals(error.message, "The command did not end within 0.5 s");
      assertEquals(commands, count);
    }
  },
});

Deno.test("a workspace without a detached VM gets its image first, when one is to be detached", async () => {
  await using work = await workspace();
  await failure("source_not_found", () => detachWorkspaceVm(work.manifest));
});

Deno.test({
  name:
    "a workspace's machine has its image, its directory without what is the host's, and its snapshots",
  ...needs("qemuImg"),
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
    const plan = await planWorkspaceVm(manifest, {
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
      hostOnly: [manifest.path, cache, "/ca.pem", ...await registryFiles()],
      snapshots: {
        ...{ dir: join(entry, "machines"), digest: `sha256:${sha256}` },
        ...{ restore: true, save: undefined },
      },
    });
    assertEquals(events.includes("cache_placed"), true, events.join());
    const fresh = await planWorkspaceVm(manifest, {
      ...{ hydrate: { cache, offline: true }, fresh: true, save: false },
    });
    const { restore, save } = fresh.snapshots!;
    assertEquals([restore, save], [false, false]);
  },
});
