/**
 * `toolsmith run` and `toolsmith shell`: run a command in the image and exit with its
 * status.
 */
import type { Environment } from "../../environment.ts";
import { loadManifest } from "../../manifest/manifest.ts";
import { assertToolAllowed } from "../../manifest/tools.ts";
import { runOnHost } from "../../run/run_on_host.ts";
import { runInVm, runOnTerminal } from "../../run/workspace_vm.ts";
import { defineSubcommand } from "../subcommand.ts";
import { defineFlags, type FlagValues } from "../flag.ts";
import {
  COMMAND_FLAGS,
  OUTPUT_FLAGS,
  PROGRESS_FLAGS,
  VM_FLAGS,
  workspaceVmOptions,
} from "../shared_flags.ts";
import { usageError } from "../usage_error.ts";
import type { CliIo } from "../io.ts";

const SHELL_FLAGS = { ...COMMAND_FLAGS, ...VM_FLAGS, ...PROGRESS_FLAGS };

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
  flags: {
    ...defineFlags("Command", {
      execution:
        "--execution vm|host  where to run (default: TOOLSMITH_EXECUTION, then vm)",
      tty: "--tty  run the command on this terminal, as shell does",
    }),
    ...COMMAND_FLAGS,
    ...VM_FLAGS,
    ...OUTPUT_FLAGS,
  },
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
    if (given.tty && !hasInteractiveTerminal()) {
      throw usageError(
        "run --tty needs a terminal on standard input and output",
        "omit --tty: without it, toolsmith run needs no terminal",
      );
    }
    const execution = given.execution ?? vmOrHostFromEnv(io.env);
    if (execution === "host") return await runOnThisHost(rest, given, io);
    return given.tty
      ? await runInVmOnThisTerminal(rest, given, io)
      : await runInVmWithStreams(rest, given, io);
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
  flags: SHELL_FLAGS,
  passThrough: "dashes",
  run(given, io, { rest }) {
    if (hasInteractiveTerminal()) {
      const command = rest.length > 0 ? rest : DEFAULT_SHELL_COMMAND;
      return runInVmOnThisTerminal(command, given, io);
    }
    throw usageError(
      "shell needs a terminal on standard input and output",
      "use toolsmith run COMMAND, which needs no terminal",
    );
  },
});

function hasInteractiveTerminal(): boolean {
  return Deno.stdin.isTerminal() && Deno.stdout.isTerminal();
}

type RunFlagValues = FlagValues<
  typeof COMMAND_FLAGS & typeof VM_FLAGS & typeof OUTPUT_FLAGS
>;

async function runInVmWithStreams(
  [command, ...args]: string[],
  { timeoutMs, env: variables, cwd, ...given }: RunFlagValues,
  io: CliIo,
) {
  const { env, signal, onEvent } = io;
  const manifest = await loadManifest(given.manifest, { env });
  const ended = await runInVm(manifest, command, {
    args,
    timeoutMs,
    env: variables,
    cwd,
    hostCwd: Deno.cwd(),
    signal,
    ...io.guestCommandStreams(),
    vm: { ...workspaceVmOptions(given), env, onEvent },
  });
  const { code, signal: endedBy, stdoutBytes, stderrBytes } = ended;
  io.printResult({ code, signal: endedBy, stdoutBytes, stderrBytes }, "");
  return code;
}

async function runOnThisHost(
  [command, ...args]: string[],
  { timeoutMs, env, cwd, manifest: path }: RunFlagValues,
  io: CliIo,
) {
  // The manifest's tool paths are in the guest; on the host the name is run.
  const manifest = await loadManifest(path, { env: io.env });
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

/** Also restores the terminal. */
export async function runInVmOnThisTerminal(
  [command, ...args]: string[],
  { timeoutMs, env: variables, cwd, ...given }: FlagValues<typeof SHELL_FLAGS>,
  io: CliIo,
): Promise<number> {
  const { env, signal, onEvent } = io;
  const term = env.get("TERM");
  await using hostTerminal = io.attachToGuestCommand();
  const manifest = await loadManifest(given.manifest, { env });
  const { code } = await runOnTerminal(manifest, command, {
    args,
    timeoutMs,
    env: term ? { TERM: term, ...variables } : variables,
    cwd,
    hostCwd: Deno.cwd(),
    signal,
    hostTerminal,
    vm: { ...workspaceVmOptions(given), env, onEvent },
  });
  return code;
}

function vmOrHostFromEnv(env: Environment): "vm" | "host" {
  const execution = env.get("TOOLSMITH_EXECUTION") || "vm";
  if (execution === "vm" || execution === "host") return execution;
  throw usageError(
    `TOOLSMITH_EXECUTION is "${execution}", expected vm or host`,
    "set TOOLSMITH_EXECUTION=vm, or =host to run without a VM",
  );
}
