/**
 * Starting a guest, beside QEMU by hand.
 *
 * @module
 */
import { listCache } from "../../lib/cache/prune.ts";
import { execInGuest } from "../../lib/guest/exec.ts";
import { openAgent } from "../../lib/qemu/agent.ts";
import { qemuArgs } from "../../lib/qemu/args.ts";
import { makeMachineDir } from "../../lib/qemu/machine_dir.ts";
import { ownMonitor } from "../../lib/qemu/monitor.ts";
import { openQmp } from "../../lib/qemu/qmp.ts";
import { fileChunks, sha256 } from "../../lib/system/digest.ts";
import { run, spawn } from "../../lib/system/process.ts";
import { attachShares } from "../../lib/vm/_hotplug.ts";
import {
  cleanEnvironment,
  cliCommand,
  workspace,
} from "../../tests/support/workspace.ts";
import { compare, record, type Rival } from "./measure.ts";

/** Starting a guest: booted, restored, and restored by hand. */
export async function guestRows(qemu: string) {
  const { buildGuest } = await import("../guest/build.ts");
  await using work = await workspace();
  const image = await buildGuest();
  Deno.env.set("TOOLSMITH_QEMU", qemu);
  const digest = await sha256(fileChunks(image));
  await work.manifest({ qcow2: image, qcow2_sha256: digest });
  const env = { ...cleanEnvironment(), TOOLSMITH_QEMU: qemu };
  const cwd = work.dir;
  const toolsmith = async (...flags: string[]) => {
    const command = ["run", "--json", ...flags, "--", "true"];
    const args = await cliCommand(command, ["-A"]);
    const { code, stdout } = await run(Deno.execPath(), { args, cwd, env });
    if (code !== 0) throw new Error(stdout);
    const events = stdout.trim().split("\n").map((line) => JSON.parse(line));
    return events.find(({ type }) => type === "boot_ready");
  };
  // Saves the machine that all others restore.
  await toolsmith();
  const ready: number[] = [];
  const byHand: number[] = [];
  const rows: Rival[] = [
    {
      name: "toolsmith run -- true, restored",
      once: async () => {
        const { how, phases } = await toolsmith();
        if (how !== "restored") throw new Error("it was not restored");
        ready.push(phases.start + phases.guest);
      },
    },
    {
      name: "QEMU by hand: the same work",
      once: async () => {
        byHand.push(await restoreByHand(qemu, work.dir));
      },
    },
    {
      name: "toolsmith run -- true, booted",
      once: async () => {
        await toolsmith("--fresh", "--no-save");
      },
    },
  ];
  await compare("a command in a guest, as a whole process", rows);
  record("until the agent answers, restored", [
    { name: "toolsmith", values: ready.slice(1) },
    { name: "QEMU by hand", values: byHand.slice(1) },
  ]);
}

/**
 * What a person's own script would do: QEMU with the same machine restores the
 * state, the workspace is mounted, the command runs. Returns the time until the
 * agent had answered, in milliseconds.
 */
async function restoreByHand(qemu: string, root: string): Promise<number> {
  const begun = performance.now();
  const [image] = await listCache(`${root}/.toolsmith/cache`);
  const dir = await makeMachineDir();
  const plan = {
    ...{ disk: image.path, ephemeral: true, dir, program: qemu },
    ...{ accelerator: "tcg" as const, memory: 512, extra: [] },
    cpus: Math.min(2, navigator.hardwareConcurrency),
    shares: [{ path: root, tag: "work", writable: false }],
  };
  const script = 'exec 9<"$1"; shift; exec "$@"';
  const args = [...qemuArgs(plan), "-incoming", "fd:9"];
  await using _qemu = spawn("sh", {
    args: ["-c", script, "sh", image.states[0].path, qemu, ...args],
  });
  const until = async <T>(connect: () => Promise<T>): Promise<T> => {
    while (true) {
      const connected = await connect().catch(() => undefined);
      if (connected) return connected;
      await new Promise((done) => setTimeout(done, 2));
    }
  };
  using qmp = await until(() => openQmp(`${dir}/qmp`));
  while (true) {
    const [{ status }] = await qmp.send(["query-status"]) as Status[];
    if (status !== "inmigrate") break;
  }
  await qmp.send(["cont"]);
  using agent = await openAgent(`${dir}/agent`);
  await agent.sync();
  const answered = performance.now() - begun;
  await using monitor = ownMonitor(dir, qmp, agent);
  await attachShares(monitor, plan.shares);
  await execInGuest(monitor, "true");
  await qmp.send(["quit"]).catch(() => {});
  await Deno.remove(dir, { recursive: true });
  return answered;
}

interface Status {
  status: string;
}
