/**
 * `toolsmith stop`: powers down the detached VM of the workspace.
 *
 * @module
 */
import { locateManifest } from "../../manifest/manifest.ts";
import { detachedVmPath } from "../../run/workspace_vm.ts";
import { workspaceRoot } from "../../system/workspace.ts";
import { stopDetachedVm } from "../../vm/detached.ts";
import type { Command } from "../command.ts";
import { JSON_OUTPUT, MANIFEST } from "../flags.ts";

interface StopRequest {
  manifest?: string;
  json: boolean;
}

/** Powers down the detached VM. */
export const stop: Command<StopRequest> = {
  name: "stop",
  usage: "[flags]",
  summary: "power down the VM that boot --detach started",
  flags: [...MANIFEST, ...JSON_OUTPUT],
  positionals: [0, 0],
  parse: (given) => ({
    manifest: given.text("manifest"),
    json: given.has("json"),
  }),
  async run({ manifest, json }, { signal, result }) {
    const path = detachedVmPath(workspaceRoot(await locateManifest(manifest)));
    const { pid } = await stopDetachedVm(path, { signal });
    result(json, { outcome: "stopped", pid }, "");
    return 0;
  },
};
