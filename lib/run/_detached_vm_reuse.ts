/** Decides whether a command can run in a workspace's detached VM. */
import type { DetachedVmRecord } from "../vm/detached_record.ts";
import type { BootOptions } from "../vm/boot_options.ts";
import { WORKSPACE_TAG } from "../vm/shares.ts";

const COMPARED_OPTIONS = ["memory", "cpus", "accelerator", "network"] as const;
/** Options that a running VM cannot change and its record does not hold. */
const OPTIONS_NEEDING_OWN_VM = [
  "arch",
  "firmware",
  "overlay",
  "qemuArgs",
  "console",
] as const;

/**
 * Returns why a detached VM does not match the requested options; `undefined` if it
 * does.
 */
export function detachedVmMismatch(
  asked: Partial<BootOptions>,
  vm: DetachedVmRecord,
): string | undefined {
  // A network that Toolsmith serves ends with Toolsmith.
  const { network } = asked;
  if (network === true || typeof network === "object") {
    return needsOwnVmReason("network");
  }
  const wanted = { ...asked, network: network && true };
  const other = COMPARED_OPTIONS.find((name) =>
    wanted[name] !== undefined && wanted[name] !== vm[name]
  );
  if (other) return `${other} is ${vm[other]}, requested ${wanted[other]}`;
  const { exports, copyLimit } = asked;
  const hasExports = vm.shares.some(({ writable }) => writable);
  // A guest's write access is checked for each request.
  if (exports?.length || exports && hasExports) {
    return needsOwnVmReason("exports");
  }
  // The workspace was larger than the limit and left out.
  const hasWorkspace = vm.shares.some(({ tag }) => tag === WORKSPACE_TAG);
  if (copyLimit !== undefined && !hasWorkspace) {
    return "the VM was booted without the workspace";
  }
  const own = OPTIONS_NEEDING_OWN_VM.find((name) => {
    const value = asked[name];
    return Array.isArray(value) ? value.length > 0 : value !== undefined;
  });
  return own && needsOwnVmReason(own);
}

function needsOwnVmReason(option: string): string {
  return `${option} needs a new VM`;
}
