import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { parseManifest } from "../../lib/manifest/manifest.ts";
import {
  detachedVmPath,
  openWorkspaceVm,
  planWorkspaceVm,
  runInVm,
} from "../../lib/run/workspace_vm.ts";
import { fileChunks, sha256 } from "../../lib/system/digest.ts";
import { lock } from "../../lib/system/lock.ts";
import { failure } from "../support/failure.ts";
import { temporaryDir } from "../support/directory.ts";
import { collect, env, guest, needsGuest } from "../support/guest.ts";

/** A manifest of an image, in a workspace of its own. */
async function manifestOf(
  dir: string,
  image: string,
  rules: Record<string, unknown> = {},
) {
  await Deno.mkdir(join(dir, ".toolsmith"));
  const digest = await sha256(fileChunks(image));
  const fields = { name: "guest", qcow2: image, qcow2_sha256: digest };
  const text = JSON.stringify({ image: fields, ...rules });
  const path = join(dir, ".toolsmith", "tools.json");
  await Deno.writeTextFile(path, text);
  return parseManifest(text, path);
}

Deno.test({
  name: "a program runs a tool of the manifest in three lines",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const rules = { tools: { lister: "/bin/ls" }, operations: ["lister"] };
    const manifest = await manifestOf(dir.path, await guest(), rules);
    await Deno.writeTextFile(join(dir.path, "here.txt"), "");
    const vm = { env, save: false };
    const { code, stdout } = await runInVm(manifest, "lister", { vm });
    assertEquals([code, stdout], [0, "here.txt\n"]);
    const hydrated = collect("cache_placed");
    const { onEvent } = hydrated;
    await failure(
      "tool_forbidden",
      () => runInVm(manifest, "ls", { vm: { ...vm, onEvent } }),
    );
    assertEquals(hydrated.events, []);
  },
});

Deno.test({
  name: "the time limit of a command counts from the start of its machine",
  ...needsGuest,
  async fn() {
    await using dir = await temporaryDir();
    const manifest = await manifestOf(dir.path, await guest("silent"));
    await using _image = await openWorkspaceVm(manifest, {
      ...{ env, agentOptional: true, bootTimeoutMs: 1 },
    });
    const begun = performance.now();
    const error = await failure(
      "timeout",
      () => runInVm(manifest, "true", { timeoutMs: 1_500, vm: { env } }),
    );
    assert(error.message.includes("within 1.5 s"), error.message);
    assert(performance.now() - begun < 10_000);
  },
});

Deno.test("a lock that another process holds does not outlast the time limit", async () => {
  await using dir = await temporaryDir();
  const image = join(dir.path, "image.qcow2");
  await Deno.writeTextFile(image, "never read");
  const manifest = await manifestOf(dir.path, image);
  const record = detachedVmPath(dir.path);
  await Deno.writeTextFile(record, "{}");
  using _held = await lock(`${record}.lock`);
  await failure("timeout", () => runInVm(manifest, "ls", { timeoutMs: 300 }));
});

Deno.test("planWorkspaceVm() reports a wrong TOOLSMITH_ACCEL before it gets the image", async () => {
  await using dir = await temporaryDir();
  const path = join(dir.path, "tools.json");
  const image = { name: "guest", qcow2: "none", qcow2_sha256: "0".repeat(64) };
  const manifest = parseManifest(JSON.stringify({ image }), path);
  const plan = (accel: string) => {
    const env = new Map([["TOOLSMITH_ACCEL", accel]]);
    return () => planWorkspaceVm(manifest, { env });
  };
  await failure("usage", plan("xen"));
  await failure("source_not_found", plan("tcg"));
});
