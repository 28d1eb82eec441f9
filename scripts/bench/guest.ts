/**
 * Starting guests and talking to them, beside QEMU by hand.
 *
 * @module
 */
import { fileChunks, sha256 } from "../../lib/system/digest.ts";
import { run, spawn } from "../../lib/system/process.ts";
import {
  cleanEnvironment,
  cliCommand,
  type Workspace,
  workspace,
} from "../../tests/support/workspace.ts";
import { restoreByHand } from "./by_hand.ts";
import { compare, record, type Rival } from "./measure.ts";

const MIB = 2 ** 20;
/** Bytes that pass through a stream, or are read from the workspace. */
const STREAM = 128 * MIB;
const AT_ONCE = 8;
const CLONES = 16;

/** A guest whose machine was saved, and a workspace that runs commands in it. */
interface Site {
  name: string;
  qemu: string;
  work: Workspace;
  /** Runs `toolsmith run`, and returns its events. */
  toolsmith(flags: string[], command?: string[]): Promise<Ready>;
}

/** What a run's `boot_ready` says. */
interface Ready {
  how: string;
  phases: Record<string, number>;
}

/**
 * Measures one guest.
 *
 * @param name What it is called.
 * @param image Its QCOW2.
 * @param qemu The QEMU program.
 */
export async function guestRows(name: string, image: string, qemu: string) {
  await using work = await workspace();
  const digest = await sha256(fileChunks(image));
  await work.manifest({ qcow2: image, qcow2_sha256: digest });
  const env = { ...cleanEnvironment(), TOOLSMITH_QEMU: qemu };
  const site: Site = {
    name,
    qemu,
    work,
    async toolsmith(flags, command = ["true"]) {
      const words = ["run", "--json", ...flags, "--", ...command];
      const args = await cliCommand(words, ["-A"]);
      const cwd = work.dir;
      const { code, stdout } = await run(Deno.execPath(), { args, cwd, env });
      if (code !== 0) throw new Error(stdout);
      const events = stdout.trim().split("\n").map((it) => JSON.parse(it));
      return events.find(({ type }) => type === "boot_ready");
    },
  };
  await firstRows(site);
  await startRows(site);
  await crowdRows(site);
  await streamRows(site, env);
}

/** A first start, which says how fast the host is, and what saving adds to it. */
async function firstRows({ name, toolsmith }: Site) {
  const { phases } = await toolsmith([]);
  record(`the first start of ${name}`, [
    { name: "until it has booted", values: [phases.guest] },
    { name: "saving: it stands still", values: [phases.save] },
  ]);
}

async function startRows({ name, qemu, work, toolsmith }: Site) {
  const large = ["--memory", "2048"];
  await toolsmith(large);
  const restored = async (...flags: string[]) => {
    const { how } = await toolsmith(flags);
    if (how !== "restored") throw new Error("it was not restored");
  };
  const rows: Rival[] = [
    { name: "toolsmith run -- true, restored", once: () => restored() },
    {
      name: "QEMU by hand: mapped, the same work",
      once: () => restoreByHand(qemu, work.dir),
    },
    {
      name: "toolsmith run --memory 2048 -- true",
      once: () => restored(...large),
    },
  ];
  await compare(`a command in ${name}, as a whole process`, rows);
}

/** Many at once, and what each takes of the host's memory. */
async function crowdRows({ name, work, toolsmith }: Site) {
  await compare(`${AT_ONCE} commands in ${name} at once`, [{
    name: "toolsmith run, as many processes",
    async once() {
      await Promise.all(Array.from({ length: AT_ONCE }, () => toolsmith([])));
    },
  }]);
  const { openWorkspaceVm } = await import("../../lib/run/workspace_vm.ts");
  const { loadManifest } = await import("../../lib/manifest/manifest.ts");
  const manifest = await loadManifest(`${work.dir}/.toolsmith/tools.json`);
  await using stack = new AsyncDisposableStack();
  const pids: number[] = [];
  for (let count = 0; count < CLONES; count++) {
    const vm = stack.use(await openWorkspaceVm(manifest));
    await vm.exec("true");
    pids.push(vm.facts.pid);
  }
  const values = await Promise.all(pids.map(proportionalMib));
  const title = `memory of each of ${CLONES} clones of ${name}`;
  record(title, [{ name: "QEMU with its guest (PSS)", values }], "MiB");
}

/** What a process takes, pages that it shares divided by who shares them. */
async function proportionalMib(pid: number): Promise<number> {
  const text = await Deno.readTextFile(`/proc/${pid}/smaps_rollup`);
  return Number(/^Pss:\s+(\d+) kB/m.exec(text)?.[1]) / 1024;
}

/** How fast bytes come and go: the time of a run without any is taken off. */
async function streamRows(
  { name, work }: Site,
  env: Record<string, string>,
) {
  const bytes = new Uint8Array(STREAM).fill(7);
  await Deno.writeFile(`${work.dir}/large`, bytes);
  const timed = async (script: string, input?: Uint8Array<ArrayBuffer>) => {
    const words = ["run", "--quiet", "--", "sh", "-c", script];
    const args = await cliCommand(words, ["-A"]);
    const begun = performance.now();
    const child = spawn(Deno.execPath(), {
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
      rows[at].values.push(times * STREAM / MIB / (ms / 1000));
    }
  }
  record(`bytes in and out of ${name}`, rows, "MiB/s");
}
