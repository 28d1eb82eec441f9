/** Decides whether a command can run in a workspace's detached VM. */
import type { DetachedVmRecord } from "../vm/detached_record.ts";
import { type BootOptions, parseNetworkRules } from "../vm/boot_options.ts";
import { WORKSPACE_TAG } from "../vm/shares.ts";

const COMPARED_OPTIONS = ["memory", "cpus", "accelerator", "network"] as const;

/**
 * Returns why a detached VM does not match the requested options; `undefined` if it
 * does.
 */
export function detachedVmMismatch(
  asked: Partial<BootOptions>,
  vm: DetachedVmRecord,
): string | undefined {
  const { arch, firmware, overlay, exports, qemuArgs, console } = asked;
  const hasExports = vm.shares.some(({ writable }) => writable);
  const needsOwnVm = {
    // A network that Toolsmith serves ends with Toolsmith.
    network: parseNetworkRules(asked.network),
    // A guest's write access is checked for each request.
    exports: exports && (exports.length > 0 || hasExports),
    // A running VM cannot change these, and its record does not hold them.
    arch,
    firmware,
    overlay,
    qemuArgs: qemuArgs?.length,
    console,
  };
  for (const [option, value] of Object.entries(needsOwnVm)) {
    if (value) return `${option} needs a new VM`;
  }
  const wanted = { ...asked, network: asked.network && true };
  const other = COMPARED_OPTIONS.find((name) =>
    wanted[name] !== undefined && wanted[name] !== vm[name]
  );
  if (other) return `${other} is ${vm[other]}, requested ${wanted[other]}`;
  // The workspace was larger than the limit and left out.
  const hasWorkspace = vm.shares.some(({ tag }) => tag === WORKSPACE_TAG);
  return asked.copyLimit !== undefined && !hasWorkspace
    ? "the VM was booted without the workspace"
    : undefined;
}
