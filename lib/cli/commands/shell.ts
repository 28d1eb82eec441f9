/**
 * `toolsmith shell`: a terminal in the image.
 *
 * @module
 */
import type { Command } from "../command.ts";
import { usage } from "../flag_values.ts";
import {
  EXEC,
  HYDRATE,
  JSON_OUTPUT,
  MACHINE,
  readExec,
  readMachine,
  readOutput,
} from "../flags.ts";
import {
  hasTerminal,
  runOnThisTerminal,
  type TerminalRequest,
} from "../on_terminal.ts";

/** The guest's bash, where it has one. */
const SHELL = [
  "sh",
  "-c",
  "command -v bash >/dev/null && exec bash; exec sh",
];

/** Runs a shell, or another command, on a terminal in the image. */
export const shell: Command<TerminalRequest> = {
  name: "shell",
  usage: "[flags] [-- COMMAND [ARG…]]",
  summary: "open a shell in the image; its exit status is the shell's",
  details:
    "The guest's terminal follows the window; Ctrl-C and Ctrl-Z are the guest's. It\nruns in the workspace, as toolsmith run does.",
  example: "shell --memory 2G",
  takes: ["TOOL", "FILE"],
  flags: [
    ...EXEC,
    ...MACHINE,
    ...HYDRATE.filter((flag) => !JSON_OUTPUT.includes(flag)),
  ],
  positionals: [0, 0],
  rest: "dashes",
  parse(given) {
    const [command, ...args] = given.rest.length > 0 ? given.rest : SHELL;
    return {
      manifest: given.text("manifest"),
      command,
      args,
      vm: readMachine(given),
      ...readExec(given),
      output: readOutput(given),
    };
  },
  run(request, io) {
    if (hasTerminal()) return runOnThisTerminal(request, io);
    throw usage("shell needs a terminal", "toolsmith run COMMAND needs none");
  },
};
