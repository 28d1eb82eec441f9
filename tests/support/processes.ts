/** The processes of this host. */
import { runProcess } from "../../lib/system/process.ts";
import { waitUntil } from "./wait_until.ts";

/** A running process. */
export interface RunningProcess {
  /** Its id. */
  pid: number;
  /** Its command line, joined by blanks. */
  line: string;
}

/**
 * Finds other processes whose command line contains a text.
 *
 * @param text For instance the test's directory.
 */
export async function findProcesses(text: string): Promise<RunningProcess[]> {
  const all = Deno.build.os === "linux"
    ? processesFromProc()
    : await processesFromPs();
  return all.filter(({ pid, line }) => pid !== Deno.pid && line.includes(text));
}

/** Waits for a process to end; a zombie, which has no command line, has ended. */
export async function assertEnded(pid: number): Promise<void> {
  if (!(pid > 1)) throw new Error(`${pid} is no process of a test`);
  await waitUntil(`the end of process ${pid}`, async () => {
    const found = await findProcesses("");
    return !found.some((it) => it.pid === pid && it.line !== "");
  });
}

/**
 * Waits until no process has a text in its command line. QEMU's supervisor outlives
 * QEMU for a moment.
 */
export async function assertAllEnded(text: string): Promise<void> {
  let found: RunningProcess[] = [];
  await waitUntil(
    () => `still running: ${JSON.stringify(found)}`,
    async () => (found = await findProcesses(text)).length === 0,
  );
}

/** Waits, on Linux, until a process has opened a file. */
export async function untilOpened(pid: number, path: string): Promise<void> {
  const links = () =>
    namesIn(`/proc/${pid}/fd`).map((fd) => linkOf(`/proc/${pid}/fd/${fd}`));
  await waitUntil(`${path} open in process ${pid}`, () => {
    if (links().includes(path)) return true;
    assertAlive(pid);
    return false;
  });
}

/** Waits, on Linux, until a process blocks on writing to standard output. */
export async function untilOutputBlocks(pid: number): Promise<void> {
  // A thread's current system call and its first argument (proc(5)).
  const writes = /^\d+ 0x1 /;
  const blocked = () =>
    namesIn(`/proc/${pid}/task`).some((thread) =>
      writes.test(textOf(`/proc/${pid}/task/${thread}/syscall`)) &&
      /pipe_w/.test(textOf(`/proc/${pid}/task/${thread}/wchan`))
    );
  await waitUntil(`output of process ${pid} that blocks`, () => {
    if (blocked()) return true;
    assertAlive(pid);
    return false;
  });
}

function assertAlive(pid: number) {
  const [, state] = /\) (\w)/.exec(textOf(`/proc/${pid}/stat`)) ?? [];
  if (!state || state === "Z") throw new Error(`process ${pid} has ended`);
}

function namesIn(path: string): string[] {
  try {
    return Array.from(Deno.readDirSync(path), ({ name }) => name);
  } catch {
    return [];
  }
}

function linkOf(path: string): string | undefined {
  try {
    return Deno.readLinkSync(path);
  } catch {
    return undefined;
  }
}

function textOf(path: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return "";
  }
}

/** Kills a process unless it has already ended. */
export function killUnlessEnded(
  pid: number,
  name: Deno.Signal = "SIGKILL",
): void {
  try {
    Deno.kill(pid, name);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/** Reads /proc, as a small host may not have `ps`. */
function processesFromProc(): RunningProcess[] {
  return [...Deno.readDirSync("/proc")]
    .map(({ name }) => Number(name))
    .filter((pid) => pid > 0)
    .map((pid) => ({ pid, line: commandLineOf(pid) }));
}

/** Empty if the process has ended meanwhile. */
function commandLineOf(pid: number): string {
  for (;;) {
    const line = textOf(`/proc/${pid}/cmdline`).replaceAll("\0", " ");
    if (line !== "" || !becomesProgram(pid)) return line;
  }
}

/**
 * Has a process no command line because it is just becoming another program? On a busy
 * host that takes milliseconds. Processes that end and kernel threads never have one.
 */
function becomesProgram(pid: number): boolean {
  // Flags of proc(5): PF_EXITING and PF_KTHREAD.
  const [, flags] = /\) [^Z](?: -?\d+){5} (\d+)/
    .exec(textOf(`/proc/${pid}/stat`)) ?? [];
  return flags !== undefined && (Number(flags) & 0x20_0004) === 0;
}

async function processesFromPs(): Promise<RunningProcess[]> {
  const args = ["-eo", "pid=,args=", "-ww"];
  const { stdout } = await runProcess("ps", { args });
  return stdout.trim().split("\n").map((row) => {
    const [, pid, line] = /^\s*(\d+)\s+(.*)$/.exec(row) ?? [];
    return { pid: Number(pid), line: line ?? "" };
  });
}
