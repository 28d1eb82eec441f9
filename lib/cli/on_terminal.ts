/**
 * A command in the guest on this terminal: what `toolsmith shell` and
 * `toolsmith run --tty` do.
 *
 * @module
 */
import type { ToolsmithEvent } from "../events.ts";
import { loadManifest } from "../manifest/manifest.ts";
import { runOnTerminal, type WorkspaceVmOptions } from "../run/workspace_vm.ts";
import type { ExecFlags, OutputFlags } from "./flags.ts";
import type { Io } from "./io.ts";

/** What runs on the terminal. */
export interface TerminalRequest extends ExecFlags {
  /** The manifest's path. */
  manifest?: string;
  /** The command. */
  command: string;
  /** Its arguments. */
  args: string[];
  /** Its machine. */
  vm: WorkspaceVmOptions;
  /** What is printed until it has the terminal. */
  output: OutputFlags;
}

/** Whether a person types here and reads. */
export function hasTerminal(): boolean {
  return Deno.stdin.isTerminal() && Deno.stdout.isTerminal();
}

/**
 * Runs a command in the guest on this terminal, and gives that back.
 *
 * @param request The command.
 * @param io The terminal.
 * @returns The command's exit status.
 */
export async function runOnThisTerminal(
  request: TerminalRequest,
  io: Io,
): Promise<number> {
  const { manifest, command, vm, env, output, ...exec } = request;
  const term = io.env.get("TERM");
  let view = io.view(output);
  /** What happens while the screen is the guest's, to be shown afterwards. */
  let held: ToolsmithEvent[] | undefined;
  const show = (event: ToolsmithEvent) => {
    if (held) held.push(event);
    else view.onEvent(event);
  };
  try {
    await using screen = io.screen((taken) => {
      view.close();
      const late = held ?? [];
      held = taken ? [] : undefined;
      if (!taken) view = io.view(output);
      late.forEach(show);
    });
    const { code } = await runOnTerminal(
      await loadManifest(manifest),
      command,
      {
        ...exec,
        hostCwd: Deno.cwd(),
        env: term ? { TERM: term, ...env } : env,
        signal: io.signal,
        screen,
        vm: { ...vm, env: io.env, onEvent: show },
      },
    );
    return code;
  } finally {
    view.close();
  }
}
