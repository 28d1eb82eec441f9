/** A real terminal in tmux: types, resizes, and reads the screen. */
import { join } from "@std/path";
import { runProcess } from "../../lib/system/process.ts";
import { waitUntil } from "./wait_until.ts";

/** What {@linkcode openTerminal} takes. */
export interface TerminalOptions {
  /** The shell's working directory, which also holds tmux's socket. */
  cwd: string;
  /** The environment of its shell. */
  env: Record<string, string>;
  /** The shell. @default {"sh"} */
  shell?: string;
}

/** A terminal of 90 columns and 30 rows; disposing it closes its window. */
export interface TestTerminal extends AsyncDisposable {
  /** Types a line, and Enter. */
  type(line: string): Promise<void>;
  /** Types a text. */
  write(text: string): Promise<void>;
  /** Pastes a text, bracketed if the program asked for that. */
  paste(text: string): Promise<void>;
  /** Presses a key, such as `C-c`. */
  press(...keys: string[]): Promise<void>;
  /** Changes the size of the window. */
  resize(columns: number, rows: number): Promise<void>;
  /**
   * Waits until the screen matches.
   *
   * @param pattern Matched against all lines of the screen.
   * @param style `coloured` includes colour codes in the text.
   */
  shows(pattern: RegExp, style?: "coloured"): Promise<void>;
  /**
   * Waits until a program has asked where the cursor is, last of all: busybox's shell
   * does at its prompt. The answer precedes whatever is typed then.
   */
  asksForCursor(): Promise<void>;
  /** Returns all lines of the screen with colour codes. */
  screen(): Promise<string>;
  /** Expands a tmux format, such as `#{alternate_on}`. */
  ask(format: string): Promise<string>;
}

/** Opens a terminal with a shell on it. */
export async function openTerminal(
  { cwd, env, shell = "sh" }: TerminalOptions,
): Promise<TestTerminal> {
  const socket = join(cwd, "tmux");
  const tmux = async (...args: string[]) => {
    const { code, stdout, stderr } = await runProcess("tmux", {
      args: ["-u", "-S", socket, "-f", "/dev/null", ...args],
      cwd,
      env,
    });
    if (code !== 0) throw new Error(`tmux ${args[0]}: ${stderr}`);
    return stdout;
  };
  await tmux("new-session", "-d", "-x", "90", "-y", "30", shell);
  const printed = join(cwd, "tmux.printed");
  await tmux("pipe-pane", `cat >'${printed}'`);
  const write = async (text: string) => {
    await tmux("send-keys", "-l", text);
  };
  return {
    write,
    async type(line) {
      await write(line);
      await tmux("send-keys", "Enter");
    },
    async paste(text) {
      await tmux("set-buffer", text);
      await tmux("paste-buffer", "-p");
    },
    async press(...keys) {
      await tmux("send-keys", ...keys);
    },
    async resize(columns, rows) {
      await tmux("resize-window", "-x", `${columns}`, "-y", `${rows}`);
    },
    async shows(pattern, style) {
      let screen = "";
      await waitUntil(
        () => `no ${pattern} on the screen:\n${screen}`,
        async () => {
          screen = await tmux("capture-pane", "-p", ...style ? ["-e"] : []);
          return pattern.test(screen);
        },
        100,
      );
    },
    asksForCursor: () =>
      waitUntil("a question for the cursor", async () => {
        const text = await Deno.readTextFile(printed).catch(() => "");
        return text.endsWith("\x1b[6n");
      }),
    screen: () => tmux("capture-pane", "-p", "-e"),
    ask: (format) => tmux("display-message", "-p", format),
    async [Symbol.asyncDispose]() {
      await tmux("kill-server");
    },
  };
}
