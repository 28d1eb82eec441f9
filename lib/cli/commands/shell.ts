/** `toolsmith shell`: runs a shell on a terminal in the guest. */
import { defineSubcommand } from "../subcommand.ts";
import { usageError } from "../flag.ts";
import { COMMAND_FLAGS, PROGRESS_FLAGS, VM_FLAGS } from "../shared_flags.ts";
import {
  hasInteractiveTerminal,
  runInVmOnThisTerminal,
} from "../run_on_terminal.ts";

/** bash if the guest has one, else sh. */
const DEFAULT_SHELL_COMMAND = [
  "sh",
  "-c",
  "command -v bash >/dev/null && exec bash; exec sh",
];

export const shellCommand = defineSubcommand({
  name: "shell",
  usage: "[flags] [-- COMMAND [ARG…]]",
  summary: "open a shell in the image and exit with its status",
  details:
    "The guest's terminal follows the window size; Ctrl-C and Ctrl-Z go to the guest.\nThe shell starts in the workspace, as commands of toolsmith run do.",
  example: "shell --memory 2G",
  argumentPlaceholders: ["TOOL", "FILE"],
  flags: { ...COMMAND_FLAGS, ...VM_FLAGS, ...PROGRESS_FLAGS },
  passThrough: "dashes",
  run(given, io, { rest }) {
    if (hasInteractiveTerminal()) {
      return runInVmOnThisTerminal(
        rest.length > 0 ? rest : DEFAULT_SHELL_COMMAND,
        given,
        io,
      );
    }
    throw usageError(
      "shell needs a terminal on standard input and output",
      "use toolsmith run COMMAND, which needs no terminal",
    );
  },
});
