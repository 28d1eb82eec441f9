/**
 * Ctrl-C, TERM and HUP.
 *
 * @module
 */

import { run } from "../system/process.ts";

/** The signals that end the program, with the exit status of each. */
const SIGNALS: { name: Deno.Signal; number: number; windows?: boolean }[] = [
  { name: "SIGHUP", number: 1 },
  { name: "SIGINT", number: 2, windows: true },
  { name: "SIGTERM", number: 15 },
];

const STATUS = "/proc/self/status";

/** What was asked for by signals; disposing it stops the watching. */
export interface Interrupt extends Disposable {
  /** Aborted by the first signal. */
  readonly signal: AbortSignal;
  /** The exit status of that signal: 128 plus its number. */
  exitStatus(): number | undefined;
}

/**
 * Watches for signals. The first cancels what runs, so that what was begun is
 * cleaned up; a second one ends the process at once, as if nobody watched. What
 * whoever started this process has set it to ignore, as `nohup` does, stays
 * ignored.
 *
 * Needs `--allow-all` on Linux, or `--allow-run=sh`, to know what is ignored.
 *
 * @param beforeEnd Called before a second signal ends the process.
 * @returns What was asked for.
 */
export async function watchSignals(beforeEnd: () => void): Promise<Interrupt> {
  const cancel = new AbortController();
  let status: number | undefined;
  const ignored = await ignoredSignals();
  const watched = SIGNALS.filter(({ windows }) =>
    windows || Deno.build.os !== "windows"
  );
  const listeners = watched.map(({ name, number }) => {
    const listener = () => {
      // Without a listener, Deno would end the process in spite of it.
      if (ignored >> BigInt(number - 1) & 1n) return;
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
    signal: cancel.signal,
    exitStatus: () => status,
    [Symbol.dispose]: () => listeners.forEach((remove) => remove()),
  };
}

/**
 * The signals that this process was started to ignore, as the bits of `SigIgn`
 * in `/proc/pid/status` (proc(5)); 0 where that cannot be known.
 */
async function ignoredSignals(): Promise<bigint> {
  if (Deno.build.os !== "linux") return 0n;
  const status = await Deno.readTextFile(STATUS).catch(statusOfChild);
  const [, mask = "0"] = /^SigIgn:\s*([0-9a-f]+)$/m.exec(status) ?? [];
  return BigInt(`0x${mask}`);
}

/** A child process ignores the same, and a shell needs no `--allow-all`. */
async function statusOfChild(): Promise<string> {
  const shell = { name: "run", command: "sh" } as const;
  if ((await Deno.permissions.query(shell)).state !== "granted") return "";
  const args = ["-c", `while read -r line; do echo "$line"; done <${STATUS}`];
  return await run("sh", { args }).then(({ stdout }) => stdout, () => "");
}
