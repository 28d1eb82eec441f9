/** A fake detached VM, without QEMU. */
import { join } from "@std/path";
import { VM_FILES } from "../../lib/qemu/vm_dir.ts";
import { detachedVmRecordPath } from "../../lib/run/workspace_vm.ts";
import { formatDetachedVmRecord } from "../../lib/vm/detached_record.ts";
import { fakeMachine, type FakeMachineOptions } from "./fake_machine.ts";
import type { DetachedVmRecord } from "../../lib/vm/detached_record.ts";

/** The record of a VM that does not exist. */
export const record: DetachedVmRecord = {
  ...{ layout: 1, pid: 4242, dir: "/tmp/toolsmith-x", image: "/a.qcow2" },
  ...{ version: "7.2.22", accelerator: "tcg", memory: 512, cpus: 2 },
  ...{ shares: [], network: false, graceMs: 0 },
  since: "2026-01-22T12:00:00.000Z",
};

/** A process id that no process has. */
export const FAKE_PID = 2 ** 30;

/**
 * Starts a fake VM that runs until its power button is pressed, and writes the
 * workspace's record.
 *
 * @param workspace The workspace, with a directory `.toolsmith`.
 * @param digest The digest of its image.
 * @param options The fake VM's answers.
 */
export async function detachedVm(
  workspace: string,
  digest: string,
  options: FakeMachineOptions = {},
): Promise<AsyncDisposable> {
  let running = true;
  const end = () => {
    if (running) console.close();
    running = false;
  };
  const machine = await fakeMachine({ ...options, onPowerButton: end });
  // A successful connection means that the VM runs.
  const console = Deno.listen({
    transport: "unix",
    path: join(machine.dir, VM_FILES.console),
  });
  const text = formatDetachedVmRecord({
    layout: 1,
    ...{ pid: FAKE_PID, dir: machine.dir, image: "/a.qcow2", digest },
    ...{ version: "7.2.22", accelerator: "tcg", memory: 512, cpus: 2 },
    ...{ shares: [], network: false, graceMs: 5000 },
    since: "2026-01-22T12:00:00.000Z",
  });
  const path = detachedVmRecordPath(workspace);
  await Deno.writeTextFile(path, text, { mode: 0o600 });
  return {
    async [Symbol.asyncDispose]() {
      end();
      // The process that stopped it has removed its directory.
      await Deno.mkdir(machine.dir, { recursive: true });
      await machine[Symbol.asyncDispose]();
    },
  };
}
