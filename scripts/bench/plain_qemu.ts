/** Restores a snapshot with plain QEMU, as a hand-written script would. */
import { listCache } from "../../lib/cache/maintenance.ts";
import { execInGuest } from "../../lib/guest/exec.ts";
import { seedDiskImage } from "../../lib/guest/seed_disk.ts";
import {
  connectFirstCommandPorts,
  warmShellOnPorts,
} from "../../lib/guest/warm_shell.ts";
import { connectToAgent } from "../../lib/qemu/agent.ts";
import { qemuArgs } from "../../lib/qemu/args.ts";
import { makeVmDir, VM_FILES } from "../../lib/qemu/vm_dir.ts";
import { singleProcessMonitor } from "../../lib/qemu/monitor.ts";
import { connectToQmp } from "../../lib/qemu/qmp.ts";
import { spawnProcess } from "../../lib/system/process.ts";
import { attachDevices } from "../../lib/vm/_hotplug.ts";

const MEMORY_MIB = 512;

/**
 * Starts QEMU with the snapshot's memory mapped, mounts the workspace and runs a
 * command.
 *
 * @param qemu The QEMU program.
 * @param root The workspace with the snapshot.
 */
export async function restoreWithPlainQemu(qemu: string, root: string) {
  const { image, state } = await findSnapshot(root);
  const dir = await makeVmDir();
  const seed = seedDiskImage();
  await Deno.writeFile(`${dir}/${VM_FILES.seed}`, seed);
  const plan = {
    seed,
    ...{ disk: image.path, ephemeral: true, dir, program: qemu },
    ...{ accelerator: "tcg" as const, memory: MEMORY_MIB, extra: [] },
    cpus: Math.min(2, navigator.hardwareConcurrency),
    memoryFile: { path: state.memory!, keepsWrites: false },
    shares: [{ path: root, tag: "work", writable: false }],
  };
  const script = 'exec 9<"$1"; shift; exec "$@"';
  const args = [...qemuArgs(plan), "-incoming", "defer"];
  await using _qemu = spawnProcess("sh", {
    args: ["-c", script, "sh", state.path, qemu, ...args],
  });
  const until = async <T>(connect: () => Promise<T>): Promise<T> => {
    while (true) {
      const connected = await connect().catch(() => undefined);
      if (connected) return connected;
      await new Promise((done) => setTimeout(done, 2));
    }
  };
  await using qmp = await until(() => connectToQmp(`${dir}/qmp`));
  const claim = await connectFirstCommandPorts(dir);
  const capabilities = [{ capability: "x-ignore-shared", state: true }];
  await qmp.execute(
    ["migrate-set-capabilities", { capabilities }],
    ["migrate-incoming", { uri: "fd:9" }],
  );
  while (true) {
    const [{ status }] = await qmp.execute(["query-status"]) as QmpStatus[];
    if (status !== "inmigrate") break;
  }
  await qmp.execute(["cont"]);
  await using agent = await connectToAgent(`${dir}/agent`);
  await agent.waitUntilAnswering();
  await using monitor = singleProcessMonitor(dir, qmp, agent);
  const shell = warmShellOnPorts(monitor, claim);
  await attachDevices(monitor, plan.shares, {
    setClock: true,
    warmShell: shell,
    emit: () => {},
  });
  await execInGuest(monitor, "true", { warmShell: shell });
  await qmp.execute(["quit"]).catch(() => {});
  await Deno.remove(dir, { recursive: true });
}

interface QmpStatus {
  status: string;
}

/** Finds the snapshot with this memory size, and its image. */
async function findSnapshot(root: string) {
  const [image] = await listCache(`${root}/.toolsmith/cache`);
  for (const state of image.states) {
    const { size } = await Deno.stat(state.memory!);
    if (size === MEMORY_MIB * 2 ** 20) return { image, state };
  }
  throw new Error("no snapshot was saved");
}
