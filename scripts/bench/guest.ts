/** Measures starting guests and their I/O, compared with plain QEMU. */
import { readFileChunks, sha256OfChunks } from "../../lib/system/digest.ts";
import { runProcess, spawnProcess } from "../../lib/system/process.ts";
import {
  cleanEnvironment,
  cliCommand,
  type Workspace,
  workspace,
} from "../../tests/support/workspace.ts";
import { restoreWithPlainQemu } from "./plain_qemu.ts";
import { addReportSection, type Contender, measureInTurns } from "./measure.ts";

const MIB = 2 ** 20;
/** Bytes sent through a stream, or read from the workspace. */
const STREAM_BYTES = 128 * MIB;
const PARALLEL_RUNS = 8;
const CLONE_COUNT = 16;

/** A guest with a snapshot, and a workspace that runs commands in it. */
interface GuestBench {
  name: string;
  qemu: string;
  work: Workspace;
  /** Runs `toolsmith run`, and returns its events. */
  toolsmith(flags: string[], command?: string[]): Promise<BootReadyFields>;
}

/** Fields of the `boot_ready` event. */
interface BootReadyFields {
  how: string;
  phases: Record<string, number>;
  /** What ran the guest's processor; from `vm_boot`. */
  accelerator?: string;
}

/**
 * Measures one guest.
 *
 * @param name Its name in the report.
 * @param image Its QCOW2.
 * @param qemu The QEMU program.
 */
export async function measureGuest(name: string, image: string, qemu: string) {
  await using work = await workspace();
  const digest = await sha256OfChunks(readFileChunks(image));
  await work.manifest({ qcow2: image, qcow2_sha256: digest });
  const env = { ...cleanEnvironment(), TOOLSMITH_QEMU: qemu };
  const site: GuestBench = {
    name,
    qemu,
    work,
    async toolsmith(flags, command = ["true"]) {
      const words = ["run", "--json", ...flags, "--", ...command];
      const args = await cliCommand(words, ["-A"]);
      const cwd = work.dir;
      const { code, stdout } = await runProcess(Deno.execPath(), {
        args,
        cwd,
        env,
      });
      if (code !== 0) throw new Error(stdout);
      const events = stdout.trim().split("\n").map((it) => JSON.parse(it));
      const event = (name: string) => events.find(({ type }) => type === name);
      const { accelerator } = event("vm_boot") ?? {};
      return { ...event("boot_ready"), accelerator };
    },
  };
  await measureFirstStart(site);
  await measureStarts(site);
  await measureParallelRuns(site);
  await measureStreams(site, env);
}

/** Measures the first boot, and what saving the snapshot adds. */
async function measureFirstStart({ name, toolsmith }: GuestBench) {
  const { phases, accelerator } = await toolsmith([]);
  addReportSection(
    `the first start of ${name}`,
    [
      { name: "until it has booted", values: [phases.guest] },
      { name: "saving: it stands still", values: [phases.save] },
    ],
    "ms",
    `Accelerator: ${accelerator}.`,
  );
}

async function measureStarts({ name, qemu, work, toolsmith }: GuestBench) {
  const large = ["--memory", "2048"];
  await toolsmith(large);
  const restored = async (...flags: string[]) => {
    const { how } = await toolsmith(flags);
    if (how !== "restored") {
      throw new Error("the VM was not restored from a snapshot");
    }
  };
  const rows: Contender[] = [
    { name: "toolsmith run -- true, restored", runOnce: () => restored() },
    {
      name: "QEMU by hand: mapped, the same work",
      runOnce: () => restoreWithPlainQemu(qemu, work.dir),
    },
    {
      name: "toolsmith run --memory 2048 -- true",
      runOnce: () => restored(...large),
    },
  ];
  await measureInTurns(`a command in ${name}, as a whole process`, rows);
}

/** Measures parallel runs, and the memory of each clone. */
async function measureParallelRuns({ name, work, toolsmith }: GuestBench) {
  await measureInTurns(`${PARALLEL_RUNS} commands in ${name} at once`, [{
    name: "toolsmith run, as many processes",
    async runOnce() {
      await Promise.all(
        Array.from({ length: PARALLEL_RUNS }, () => toolsmith([])),
      );
    },
  }]);
  const { openWorkspaceVm } = await import("../../lib/run/workspace_vm.ts");
  const { loadManifest } = await import("../../lib/manifest/manifest.ts");
  const manifest = await loadManifest(`${work.dir}/.toolsmith/tools.json`);
  await using stack = new AsyncDisposableStack();
  const pids: number[] = [];
  for (let count = 0; count < CLONE_COUNT; count++) {
    const vm = stack.use(await openWorkspaceVm(manifest));
    await vm.exec("true");
    pids.push(vm.facts.pid);
  }
  const values = await Promise.all(pids.map(proportionalMemoryMib));
  const title = `memory of each of ${CLONE_COUNT} clones of ${name}`;
  addReportSection(
    title,
    [{ name: "QEMU with its guest (PSS)", values }],
    "MiB",
  );
}

/** Returns the proportional set size (PSS): shared pages are divided among processes. */
async function proportionalMemoryMib(pid: number): Promise<number> {
  const text = await Deno.readTextFile(`/proc/${pid}/smaps_rollup`);
  return Number(/^Pss:\s+(\d+) kB/m.exec(text)?.[1]) / 1024;
}

/** Measures stream throughput; the time of an empty run is subtracted. */
async function measureStreams(
  { name, work }: GuestBench,
  env: Record<string, string>,
) {
  const bytes = new Uint8Array(STREAM_BYTES).fill(7);
  await Deno.writeFile(`${work.dir}/large`, bytes);
  const timed = async (script: string, input?: Uint8Array<ArrayBuffer>) => {
    const words = ["run", "--quiet", "--", "sh", "-c", script];
    const args = await cliCommand(words, ["-A"]);
    const begun = performance.now();
    const child = spawnProcess(Deno.execPath(), {
      args,
      cwd: work.dir,
      env,
      input: input ? { bytes: input } : "null",
      stdout: () => {},
    });
    const { code } = await child.ended;
    if (code !== 0) throw new Error(`${script}: ${code}`);
    return performance.now() - begun;
  };
  const ways: [string, string, Uint8Array<ArrayBuffer>?][] = [
    ["standard input", "cat >/dev/null", bytes],
    ["standard output", "dd if=/dev/zero bs=65536 count=2048 2>/dev/null"],
    ["the workspace, read once", "cat large >/dev/null"],
    [
      "the workspace, read five times",
      "for i in 1 2 3 4 5; do cat large; done >/dev/null",
    ],
  ];
  const rows = ways.map(([name]) => ({
    name: `toolsmith: ${name}`,
    values: [] as number[],
  }));
  for (let round = 0; round < 3; round++) {
    const nothing = await timed("true");
    for (const [at, [what, script, input]] of ways.entries()) {
      const ms = await timed(script, input) - nothing;
      const times = what.includes("five") ? 5 : 1;
      rows[at].values.push(times * STREAM_BYTES / MIB / (ms / 1000));
    }
  }
  addReportSection(`bytes in and out of ${name}`, rows, "MiB/s");
}
