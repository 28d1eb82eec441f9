/** `toolsmith stop`: powers down the detached VM. */
import { locateManifest } from "../../manifest/manifest.ts";
import { detachedVmRecordPath } from "../../run/workspace_vm.ts";
import { workspaceOf } from "../../system/ownership.ts";
import { stopDetachedVm } from "../../vm/detached.ts";
import * as shared from "../shared_flags.ts";
import { defineSubcommand } from "../subcommand.ts";

export const stopCommand = defineSubcommand({
  name: "stop",
  usage: "[flags]",
  summary: "power down the VM that boot --detach started",
  flags: { ...shared.MANIFEST, ...shared.JSON },
  async run({ manifest }, { env, signal, printResult }) {
    const file = await locateManifest(manifest, { env });
    const path = detachedVmRecordPath(workspaceOf(file));
    const { pid } = await stopDetachedVm(path, { signal });
    printResult({ outcome: "stopped", pid }, "");
  },
});
