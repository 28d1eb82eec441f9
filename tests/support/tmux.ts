/**
 * A terminal as a person has it: tmux types, resizes, and reads the screen.
 *
 * @module
 */
import { assertMatch } from "@std/assert";
import { join } from "@std/path";
import { run } from "../../lib/system/process.ts";
import { sleep } from "../../lib/system/time.ts";

const WAIT_MS = 60_000;
const LOOK_MS = 100;

/** What {@linkcode openTerminal} takes. */
export interface TerminalOptions {
  /** Where its shell starts; the socket of tmux lies there. */
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
  /** Pastes a text, between codes where they are asked for. */
  paste(text: string): Promise<void>;
  /** Presses a key, such as `C-c`. */
  press(...keys: string[]): Promise<void>;
  /** Changes the size of the window. */
  resize(columns: number, rows: number): Promise<void>;
  /**
   * Waits until the screen shows this.
   *
   * @param pattern Looked for in all of the screen's lines.
   * @param style With the codes of colours? They are left out if not.
   */
  shows(pattern: RegExp, style?: "coloured"): Promise<void>;
  /** All lines of the screen, with the codes of colours. */
  screen(): Promise<string>;
  /** Asks tmux for what it knows, such as `#{alternate_on}`. */
  ask(format: string): Promise<string>;
}

/** Opens a terminal with a shell on it. */
export async function openTerminal(
  { cwd, env, shell = "sh" }: TerminalOptions,
): Promise<TestTerminal> {
  const socket = join(cwd, "tmux");
  const tmux = async (...args: string[]) => {
    const { code, stdout, stderr } = await run("tmux", {
      args: ["-u", "-S", socket, "-f", "/dev/null", ...args],
      cwd,
      env,
    });
    if (code !== 0) throw new Error(`tmux ${args[0]}: ${stderr}`);
    return stdout;
  };
  await tmux("new-session", "-d", "-x", "90", "-y", "30", shell);
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
      const deadline = performance.now() + WAIT_MS;
      while (true) {
        const screen = await tmux("capture-pane", "-p", ...style ? ["-e"] : []);
        if (pattern.test(screen)) return;
        if (performance.now() > deadline) assertMatch(screen, pattern);
        await sleep(LOOK_MS);
      }
    },
    screen: () => tmux("capture-pane", "-p", "-e"),
    ask: (format) => tmux("display-message", "-p", format),
    async [Symbol.asyncDispose]() {
      await tmux("kill-server");
    },
  };
}
