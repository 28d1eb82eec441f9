/**
 * Runs a command in the guest on this terminal, for `toolsmith shell` and
 * `toolsmith run --tty`.
 */
import type { ToolsmithEvent } from "../events.ts";
import { loadManifest } from "../manifest/manifest.ts";
import { runOnTerminal } from "../run/workspace_vm.ts";
import type { FlagValues } from "./flag.ts";
import {
  COMMAND_FLAGS,
  pickFlagValues,
  type PROGRESS_FLAGS,
  type VM_FLAGS,
  workspaceVmOptions,
} from "./shared_flags.ts";
import type { CliIo } from "./io.ts";

/** Tells whether stdin and stdout are terminals. */
export function hasInteractiveTerminal(): boolean {
  return Deno.stdin.isTerminal() && Deno.stdout.isTerminal();
}

/**
 * Runs a command in the guest on this terminal and restores the terminal; returns the
 * exit status.
 */
export async function runInVmOnThisTerminal(
  [command, ...args]: string[],
  given: FlagValues<
    typeof COMMAND_FLAGS & typeof VM_FLAGS & typeof PROGRESS_FLAGS
  >,
  io: CliIo,
): Promise<number> {
  const { env: variables, ...exec } = pickFlagValues(COMMAND_FLAGS, given);
  const { env, signal } = io;
  const term = env.get("TERM");
  let view = io.openEventView(given);
  /** Events that wait until the guest no longer uses the screen. */
  let held: ToolsmithEvent[] | undefined;
  const show = (event: ToolsmithEvent) => {
    if (held) held.push(event);
    else view.onEvent(event);
  };
  try {
    await using screen = io.attachToGuestCommand((taken) => {
      view.close();
      const late = held ?? [];
      held = taken ? [] : undefined;
      if (!taken) view = io.openEventView(given);
      late.forEach(show);
    });
    const { code } = await runOnTerminal(
      await loadManifest(given.manifest, { env }),
      command,
      {
        args,
        ...exec,
        hostCwd: Deno.cwd(),
        env: term ? { TERM: term, ...variables } : variables,
        signal,
        hostTerminal: screen,
        vm: { ...workspaceVmOptions(given), env, onEvent: show },
      },
    );
    return code;
  } finally {
    view.close();
  }
}
