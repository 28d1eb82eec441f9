/**
 * This terminal, for a command in the guest. A shell beside this process sets it
 * and gives it back, so that a kill of this process does as well.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import type { TerminalScreen } from "../guest/terminal.ts";
import { type Child, spawn } from "../system/process.ts";
import type { Output } from "./output.ts";

/** A terminal that a command in the guest uses; disposing it gives it back. */
export interface Screen extends TerminalScreen, AsyncDisposable {}

/**
 * What a program that was cut off may have left (XTerm Control Sequences), and
 * how to end it without moving the cursor.
 */
const RESET = [
  // The alternate screen: entered first, so that there is a cursor to go back to.
  String.raw`\033[?1049h\033[?1049l`,
  // A region that scrolls.
  String.raw`\0337\033[r\0338`,
  // A hidden cursor, lines that do not wrap, another set of characters, colours.
  String.raw`\033[?25h\033[?7h\033(B\017\033[m`,
  // Codes for pasting and focus, for a mouse in each form, keys of applications.
  String.raw`\033[?2004l\033[?1004l\033[?1000l\033[?1002l\033[?1003l`,
  String.raw`\033[?1005l\033[?1006l\033[?1015l\033[?1l\033>`,
].join("");

/**
 * Sets the terminal on standard output so that each key is the guest's, and gives
 * it back when standard input brings a line or ends. A shell that has the
 * terminal by then has set it as it needs it.
 */
const KEEPER = `
trap '' HUP INT QUIT TERM TSTP TTIN TTOU
exec 3<&1
was=$(stty -g <&3) && stty raw -echo -iexten <&3 && raw=$(stty -g <&3) || exit
echo >&2
read -r word
[ "$(stty -g <&3)" != "$raw" ] || {
  printf '${RESET}'
  stty "$was" <&3
}
`;

/**
 * Makes a screen of this process's terminal. The guest has it from the moment
 * that its input is asked for until its command has ended; Ctrl-C is a signal
 * before and after.
 *
 * Needs `--allow-run=sh`.
 *
 * @param output Standard output.
 * @param onChange Called with whether the guest has the terminal from now on.
 * @returns The screen.
 */
export function thisScreen(
  output: Output,
  onChange: (taken: boolean) => void,
): Screen {
  let keeper: Child | undefined;
  let released: Promise<void> | undefined;
  const release = async () => {
    await keeper?.release();
    await keeper?.ended;
    onChange(false);
  };
  return {
    async input() {
      onChange(true);
      keeper = await keepTerminal();
      return Deno.stdin.readable;
    },
    output: (chunk) => output.write(chunk),
    size: () => Deno.consoleSize(),
    onResize(changed, signal) {
      Deno.addSignalListener("SIGWINCH", changed);
      const stop = () => {
        Deno.removeSignalListener("SIGWINCH", changed);
        // The command has ended: exports that are copied back come next.
        released ??= release();
      };
      signal.addEventListener("abort", stop, { once: true });
    },
    [Symbol.asyncDispose]: () => released ??= release(),
  };
}

/** Starts the shell, and waits until it has set the terminal. */
async function keepTerminal(): Promise<Child> {
  const set = Promise.withResolvers<string>();
  const keeper = spawn("sh", {
    args: ["-c", KEEPER],
    input: "held",
    stdout: "inherit",
    stderr: (chunk) => set.resolve(new TextDecoder().decode(chunk).trim()),
  });
  keeper.ended.then(() => set.resolve("stty failed"));
  const failure = await set.promise;
  if (failure === "") return keeper;
  throw new ToolsmithError(
    "file_unreadable",
    `Cannot set this terminal: ${failure}`,
    { hint: "use toolsmith run, which needs no terminal" },
  );
}
