/** Handles SIGINT (Ctrl-C), SIGTERM and SIGHUP. */
import { isPermissionGranted } from "../environment.ts";
import { runProcess } from "../system/process.ts";

/** The signals that stop the program; it exits with 128 plus the number. */
const TERMINATION_SIGNALS: [Deno.Signal, number][] = Deno.build.os === "windows"
  ? [["SIGINT", 2]]
  : [["SIGHUP", 1], ["SIGINT", 2], ["SIGTERM", 15]];

const PROC_STATUS_PATH = "/proc/self/status";

/**
 * Listens for signals. The first cancels the work, so that it can clean up; the second
 * calls `beforeEnd` and kills the process at once. A signal that the parent process set
 * to be ignored, as `nohup` does, stays ignored; to find these, Linux needs
 * `--allow-all` or `--allow-run=sh`.
 */
export async function watchSignals(beforeEnd: () => void) {
  const cancel = new AbortController();
  let status: number | undefined;
  const ignored = await readIgnoredSignalMask();
  const listeners = TERMINATION_SIGNALS.map(([name, number]) => {
    if (ignored >> BigInt(number - 1) & 1n) {
      // Never removed: without a listener Deno would exit although the signal is ignored.
      Deno.addSignalListener(name, () => {});
      return () => {};
    }
    const listener = () => {
      if (status !== undefined) {
        beforeEnd();
        Deno.removeSignalListener(name, listener);
        return Deno.kill(Deno.pid, name);
      }
      status = 128 + number;
      cancel.abort(new DOMException(`Cancelled by ${name}`, "AbortError"));
    };
    Deno.addSignalListener(name, listener);
    return () => Deno.removeSignalListener(name, listener);
  });
  return {
    /** Aborted by the first signal. */
    abortSignal: cancel.signal,
    /** 128 plus the number of the first signal, or `undefined`. */
    exitStatus: () => status,
    [Symbol.dispose]: () => listeners.forEach((remove) => remove()),
  };
}

/**
 * Returns the ignored signals as the bit mask `SigIgn` of `/proc/self/status`
 * (proc(5)); 0 if it cannot be read.
 */
async function readIgnoredSignalMask(): Promise<bigint> {
  if (Deno.build.os !== "linux") return 0n;
  const status = readProcStatus() ?? await readProcStatusInChild();
  const [, mask = "0"] = /^SigIgn:\s*([0-9a-f]+)$/m.exec(status) ?? [];
  return BigInt(`0x${mask}`);
}

/** Half a second after its start, Deno itself catches these signals: read at once. */
function readProcStatus(): string | undefined {
  try {
    return Deno.readTextFileSync(PROC_STATUS_PATH);
  } catch {
    return undefined;
  }
}

/** A child process inherits ignored signals, and reading its status needs no `--allow-all`. */
async function readProcStatusInChild(): Promise<string> {
  if (!isPermissionGranted({ name: "run", command: "sh" })) return "";
  const args = [
    "-c",
    `while read -r line; do echo "$line"; done <${PROC_STATUS_PATH}`,
  ];
  return await runProcess("sh", { args }).then(
    ({ stdout }) => stdout,
    () => "",
  );
}
