/**
 * The processes of this host.
 *
 * @module
 */
import { run } from "../../lib/system/process.ts";
import { sleep } from "../../lib/system/time.ts";

/** A running process. */
export interface Running {
  /** Its id. */
  pid: number;
  /** Its command line, the words apart by blanks. */
  line: string;
}

/**
 * Finds the processes whose command line holds a text; this one is left out.
 *
 * @param text For instance a directory of the test's own.
 */
export async function processesOf(text: string): Promise<Running[]> {
  const all = Deno.build.os === "linux" ? fromProc() : await fromPs();
  return all.filter(({ pid, line }) => pid !== Deno.pid && line.includes(text));
}

/** Demands that a process ends soon; a zombie, which has no command line, has. */
export async function assertEnded(pid: number): Promise<void> {
  if (!(pid > 1)) throw new Error(`${pid} is no process of a test`);
  for (let tries = 0; tries < 100; tries++) {
    const found = await processesOf("");
    if (!found.some((it) => it.pid === pid && it.line !== "")) return;
    await sleep(20);
  }
  Deno.kill(pid, "SIGKILL");
  throw new Error(`Process ${pid} was still there`);
}

/** Kills a process, unless it has ended by itself meanwhile. */
export function killUnlessEnded(pid: number): void {
  try {
    Deno.kill(pid, "SIGKILL");
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

/** A small host need not have `ps`. */
function fromProc(): Running[] {
  return [...Deno.readDirSync("/proc")]
    .map(({ name }) => Number(name))
    .filter((pid) => pid > 0)
    .map((pid) => {
      try {
        const words = Deno.readTextFileSync(`/proc/${pid}/cmdline`);
        return { pid, line: words.replaceAll("\0", " ") };
      } catch {
        // It ended in between.
        return { pid, line: "" };
      }
    });
}

async function fromPs(): Promise<Running[]> {
  const args = ["-eo", "pid=,args=", "-ww"];
  const { stdout } = await run("ps", { args });
  return stdout.trim().split("\n").map((row) => {
    const [, pid, line] = /^\s*(\d+)\s+(.*)$/.exec(row) ?? [];
    return { pid: Number(pid), line: line ?? "" };
  });
}
