/**
 * `toolsmith run` and `toolsmith shell`: run a command in the image and exit with its
 * status.
 */
import { loadManifest } from "../../manifest/manifest.ts";
import { assertToolAllowed } from "../../manifest/tools.ts";
import { runOnHost } from "../../run/run_on_host.ts";
import { runInVm, runOnTerminal } from "../../run/workspace_vm.ts";
import { defineSubcommand } from "../subcommand.ts";
import { defineFlags, type FlagValues } from "../flag.ts";
import * as shared from "../shared_flags.ts";
import { parseChoice, usageError } from "../usage_error.ts";
import type { CliIo } from "../io.ts";

const RUN_FLAGS = {
  ...defineFlags("Command", {
    execution:
      "--execution vm|host  where to run (default: TOOLSMITH_EXECUTION, then vm)",
    tty: "--tty  run the command on this terminal, as shell does",
  }),
  ...shared.COMMAND,
  ...shared.VM,
  ...shared.OUTPUT,
};

/** bash if the guest has one, else sh. */
const DEFAULT_SHELL_COMMAND = [
  "sh",
  "-c",
  "command -v bash >/dev/null && exec bash; exec sh",
];

export const runCommand = defineSubcommand({
  name: "run",
  usage: "[flags] COMMAND [ARG…]",
  summary: "run a command in the image and exit with its status",
  details:
    "Runs COMMAND in the VM that boot --detach started, else in a new one. The workspace is\nmounted read-only at /mnt/work. Flags after COMMAND belong to the command.",
  example: "run --export build/out:out -- make DESTDIR=/mnt/out",
  passedOn: ["TOOL", "FILE"],
  flags: RUN_FLAGS,
  passThrough: "words",
  async run(given, io, { rest }) {
    if (rest.length === 0) {
      throw usageError(
        "run needs a command",
        "usage: toolsmith run COMMAND [ARG…]",
      );
    }
    if (given.tty && given.json) {
      throw usageError(
        "Cannot use --tty and --json together",
        "omit one of --tty and --json",
      );
    }
    if (given.tty) assertInteractiveTerminal("run --tty");
    const fromEnv = io.env.get("TOOLSMITH_EXECUTION") || "vm";
    const execution = given.execution ??
      parseChoice(["vm", "host"], fromEnv, "TOOLSMITH_EXECUTION");
    return execution === "host"
      ? await runOnThisHost(rest, given, io)
      : await runInGuest(rest, given, io);
  },
});

export const shellCommand = defineSubcommand({
  name: "shell",
  usage: "[flags] [-- COMMAND [ARG…]]",
  summary: "open a shell in the image and exit with its status",
  details:
    "The guest's terminal follows the window size; Ctrl-C and Ctrl-Z go to the guest.\nThe shell starts in the workspace, as commands of toolsmith run do.",
  example: "shell --memory 2G",
  passedOn: ["TOOL", "FILE"],
  flags: { ...shared.COMMAND, ...shared.VM, ...shared.PROGRESS },
  passThrough: "dashes",
  async run(given, io, { rest }) {
    assertInteractiveTerminal("shell");
    const command = rest.length > 0 ? rest : DEFAULT_SHELL_COMMAND;
    return await runInGuest(command, { ...given, tty: true }, io);
  },
});

function assertInteractiveTerminal(who: string) {
  if (Deno.stdin.isTerminal() && Deno.stdout.isTerminal()) return;
  throw usageError(
    `${who} needs a terminal on standard input and output`,
    "use toolsmith run COMMAND without --tty, which needs no terminal",
  );
}

/** With `tty` on this terminal, which it restores. */
export async function runInGuest(
  [command, ...args]: string[],
  given: FlagValues<typeof RUN_FLAGS>,
  io: CliIo,
): Promise<number> {
  await using hostTerminal = given.tty ? io.attachToGuestCommand() : undefined;
  const manifest = await loadManifest(given.manifest, io);
  const options = { args, ...shared.runInVmOptions(given, io) };
  if (hostTerminal) {
    const TERM = io.env.get("TERM");
    const env = TERM ? { TERM, ...given.env } : given.env;
    const onTerminal = { ...options, env, hostTerminal };
    const { code } = await runOnTerminal(manifest, command, onTerminal);
    return code;
  }
  const streams = io.guestCommandStreams();
  const ended = await runInVm(manifest, command, { ...options, ...streams });
  const { code, signal: endedBy, stdoutBytes, stderrBytes } = ended;
  io.printResult({ code, signal: endedBy, stdoutBytes, stderrBytes }, "");
  return code;
}

async function runOnThisHost(
  [command, ...args]: string[],
  { timeoutMs, env, cwd, manifest: path }: FlagValues<typeof RUN_FLAGS>,
  io: CliIo,
) {
  // The manifest's tool paths are in the guest; on the host the name is run.
  const manifest = await loadManifest(path, io);
  assertToolAllowed(manifest, command);
  const unwritten = new AbortController();
  const ended = await runOnHost(command, {
    args,
    timeoutMs,
    env,
    cwd,
    signal: AbortSignal.any([io.signal, unwritten.signal]),
    ...io.hostCommandStreams((error) => unwritten.abort(error)),
    onEvent: io.onEvent,
  });
  io.printResult(ended, "");
  return ended.code;
}
