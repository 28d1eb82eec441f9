/**
 * A workspace's detached VM, without QEMU.
 *
 * @module
 */
import { join } from "@std/path";
import { MACHINE_FILES } from "../../lib/qemu/machine_dir.ts";
import { detachedVmPath } from "../../lib/run/workspace_vm.ts";
import { formatRecord } from "../../lib/vm/detached_record.ts";
import { fakeMachine, type FakeMachineOptions } from "./fake_machine.ts";
import type { DetachedVmRecord } from "../../lib/vm/detached_record.ts";

/** The record of a machine that is none. */
export const record: DetachedVmRecord = {
  ...{ layout: 1, pid: 4242, dir: "/tmp/toolsmith-x", image: "/a.qcow2" },
  ...{ version: "7.2.22", accelerator: "tcg", memory: 512, cpus: 2 },
  ...{ shares: [], network: false, graceMs: 0 },
  since: "2026-01-22T12:00:00.000Z",
};

/** The process id in its record, which is no process's. */
export const FAKE_PID = 2 ** 30;

/**
 * Starts a machine that runs until its power button is pressed, and
 * writes the workspace's record of it.
 *
 * @param workspace The workspace, with a directory `.toolsmith`.
 * @param digest The digest of its image.
 * @param options What the machine says.
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
  // Whoever can connect to it knows that the machine runs.
  const console = Deno.listen({
    transport: "unix",
    path: join(machine.dir, MACHINE_FILES.console),
  });
  const text = formatRecord({
    layout: 1,
    ...{ pid: FAKE_PID, dir: machine.dir, image: "/a.qcow2", digest },
    ...{ version: "7.2.22", accelerator: "tcg", memory: 512, cpus: 2 },
    ...{ shares: [], network: false, graceMs: 5000 },
    since: "2026-01-22T12:00:00.000Z",
  });
  const path = detachedVmPath(workspace);
  await Deno.writeTextFile(path, text, { mode: 0o600 });
  return {
    async [Symbol.asyncDispose]() {
      end();
      // Whoever has stopped it has removed its directory.
      await Deno.mkdir(machine.dir, { recursive: true });
      await machine[Symbol.asyncDispose]();
    },
  };
}
