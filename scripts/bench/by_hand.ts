/**
 * What a person's own script would do with a saved machine.
 *
 * @module
 */
import { listCache } from "../../lib/cache/prune.ts";
import { execInGuest } from "../../lib/guest/exec.ts";
import { seedImage } from "../../lib/guest/seed.ts";
import {
  claimFirstPorts,
  restoredShell,
} from "../../lib/guest/waiting_shell.ts";
import { openAgent } from "../../lib/qemu/agent.ts";
import { qemuArgs } from "../../lib/qemu/args.ts";
import { MACHINE_FILES, makeMachineDir } from "../../lib/qemu/machine_dir.ts";
import { ownMonitor } from "../../lib/qemu/monitor.ts";
import { openQmp } from "../../lib/qemu/qmp.ts";
import { spawn } from "../../lib/system/process.ts";
import { attach } from "../../lib/vm/_hotplug.ts";

const MEMORY = 512;

/**
 * QEMU with the same machine maps the memory, the workspace is mounted, the
 * command runs.
 *
 * @param qemu The QEMU program.
 * @param root The workspace whose machine was saved.
 */
export async function restoreByHand(qemu: string, root: string) {
  const { image, state } = await snapshotOf(root);
  const dir = await makeMachineDir();
  await Deno.writeFile(`${dir}/${MACHINE_FILES.seed}`, seedImage());
  const plan = {
    seed: true,
    ...{ disk: image.path, ephemeral: true, dir, program: qemu },
    ...{ accelerator: "tcg" as const, memory: MEMORY, extra: [] },
    cpus: Math.min(2, navigator.hardwareConcurrency),
    memoryFile: { path: state.memory!, shared: false },
    shares: [{ path: root, tag: "work", writable: false }],
  };
  const script = 'exec 9<"$1"; shift; exec "$@"';
  const args = [...qemuArgs(plan), "-incoming", "defer"];
  await using _qemu = spawn("sh", {
    args: ["-c", script, "sh", state.path, qemu, ...args],
  });
  const until = async <T>(connect: () => Promise<T>): Promise<T> => {
    while (true) {
      const connected = await connect().catch(() => undefined);
      if (connected) return connected;
      await new Promise((done) => setTimeout(done, 2));
    }
  };
  using qmp = await until(() => openQmp(`${dir}/qmp`));
  const claim = await claimFirstPorts(dir);
  const capabilities = [{ capability: "x-ignore-shared", state: true }];
  await qmp.send(
    ["migrate-set-capabilities", { capabilities }],
    ["migrate-incoming", { uri: "fd:9" }],
  );
  while (true) {
    const [{ status }] = await qmp.send(["query-status"]) as Status[];
    if (status !== "inmigrate") break;
  }
  await qmp.send(["cont"]);
  using agent = await openAgent(`${dir}/agent`);
  await agent.sync();
  await using monitor = ownMonitor(dir, qmp, agent);
  const waiting = restoredShell(monitor, claim);
  await attach(monitor, plan.shares, { clock: true, waiting, emit: () => {} });
  await execInGuest(monitor, "true", { waiting });
  await qmp.send(["quit"]).catch(() => {});
  await Deno.remove(dir, { recursive: true });
}

interface Status {
  status: string;
}

/** The snapshot of the machine with as much memory, and its image. */
async function snapshotOf(root: string) {
  const [image] = await listCache(`${root}/.toolsmith/cache`);
  for (const state of image.states) {
    const { size } = await Deno.stat(state.memory!);
    if (size === MEMORY * 2 ** 20) return { image, state };
  }
  throw new Error("no machine was saved");
}
