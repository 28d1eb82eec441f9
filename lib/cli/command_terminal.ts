/**
 * Attaches this terminal to a command in the guest. A helper shell sets raw mode
 * and restores the terminal, even if this process is killed.
 */
import { ToolsmithError } from "../errors.ts";
import type { HostTerminal } from "../guest/terminal.ts";
import { type RunningProcess, spawnProcess } from "../system/process.ts";
import type { QueuedOutput } from "./queued_output.ts";

/** A terminal that a command in the guest uses; disposing it restores it. */
export interface CommandTerminal extends HostTerminal, AsyncDisposable {}

/**
 * Resets the modes that an interrupted program may have left set (XTerm Control
 * Sequences), without moving the cursor.
 */
const TERMINAL_RESET_SEQUENCES = [
  // Leave the alternate screen; entered first, so that there is a saved cursor.
  String.raw`\033[?1049h\033[?1049l`,
  // The scroll region.
  String.raw`\0337\033[r\0338`,
  // Cursor visibility, line wrapping, character set, colours.
  String.raw`\033[?25h\033[?7h\033(B\017\033[m`,
  // Bracketed paste, focus events, mouse reporting, application keys.
  String.raw`\033[?2004l\033[?1004l\033[?1000l\033[?1002l\033[?1003l`,
  String.raw`\033[?1005l\033[?1006l\033[?1015l\033[?1l\033>`,
].join("");

/**
 * Sets the terminal on stdout to raw mode, and restores it when stdin delivers a
 * line or ends. If its mode has changed by then, another shell owns the terminal
 * and its mode is kept.
 */
const RAW_MODE_SCRIPT = `
trap '' HUP INT QUIT TERM TSTP TTIN TTOU
exec 3<&1
was=$(stty -g <&3) && stty raw -echo -iexten <&3 && raw=$(stty -g <&3) || exit
echo >&2
read -r word
[ "$(stty -g <&3)" != "$raw" ] || {
  printf '${TERMINAL_RESET_SEQUENCES}'
  stty "$was" <&3
}
`;

/**
 * Attaches this process's terminal. The guest owns it from the call of `keystrokes()`
 * until its command has ended; before and after, Ctrl-C is a signal. `onChange` is
 * called with whether the guest owns the terminal from now on.
 */
export function createCommandTerminal(
  output: QueuedOutput,
  onChange: (taken: boolean) => void,
): CommandTerminal {
  let keeper: RunningProcess | undefined;
  let released: Promise<void> | undefined;
  const release = async () => {
    await keeper?.detach();
    await keeper?.ended;
    onChange(false);
  };
  return {
    async keystrokes() {
      onChange(true);
      keeper = await startRawModeShell();
      return Deno.stdin.readable;
    },
    output: (chunk) => output.write(chunk),
    size: () => Deno.consoleSize(),
    onResize(changed, signal) {
      Deno.addSignalListener("SIGWINCH", changed);
      const stop = () => {
        Deno.removeSignalListener("SIGWINCH", changed);
        // The command has ended; only its exports are still to be synced.
        released ??= release();
      };
      signal.addEventListener("abort", stop, { once: true });
    },
    [Symbol.asyncDispose]: () => released ??= release(),
  };
}

/** Starts the helper shell and waits until the terminal is in raw mode. */
async function startRawModeShell(): Promise<RunningProcess> {
  const set = Promise.withResolvers<string>();
  const keeper = spawnProcess("sh", {
    args: ["-c", RAW_MODE_SCRIPT],
    input: "held",
    stdout: "inherit",
    stderr: (chunk) => set.resolve(new TextDecoder().decode(chunk).trim()),
  });
  keeper.ended.then(() => set.resolve("stty failed"));
  const failure = await set.promise;
  if (failure === "") return keeper;
  throw new ToolsmithError(
    "file_unreadable",
    `Cannot set the terminal to raw mode: ${failure}`,
    { hint: "use toolsmith run without --tty, which needs no terminal" },
  );
}
