/** `toolsmith run`: runs a command in the image and exits with its status. */
import type { Environment } from "../../environment.ts";
import type { OnEvent } from "../../events.ts";
import { loadManifest } from "../../manifest/manifest.ts";
import { assertToolAllowed } from "../../manifest/tools.ts";
import { runOnHost } from "../../run/run_on_host.ts";
import { runInVm } from "../../run/workspace_vm.ts";
import { defineSubcommand } from "../subcommand.ts";
import {
  choiceFlag,
  type FlagValues,
  switchFlag,
  usageError,
} from "../flag.ts";
import {
  COMMAND_FLAGS,
  OUTPUT_FLAGS,
  pickFlagValues,
  VM_FLAGS,
  withFlagGroup,
  workspaceVmOptions,
} from "../shared_flags.ts";
import type { CliIo } from "../io.ts";
import {
  hasInteractiveTerminal,
  runInVmOnThisTerminal,
} from "../run_on_terminal.ts";

const RUN_ONLY_FLAGS = withFlagGroup("command", {
  execution: choiceFlag(
    "execution vm|host",
    "where to run (default: TOOLSMITH_EXECUTION, then vm)",
  ),
  tty: switchFlag("tty", "run the command on this terminal, as shell does"),
});

export const runCommand = defineSubcommand({
  name: "run",
  usage: "[flags] COMMAND [ARG…]",
  summary: "run a command in the image and exit with its status",
  details:
    "Runs COMMAND in the VM that boot --detach started, else in a new one. The workspace is\nmounted read-only at /mnt/work. Flags after COMMAND belong to the command.",
  example: "run --export build/out:out -- make DESTDIR=/mnt/out",
  argumentPlaceholders: ["TOOL", "FILE"],
  flags: { ...RUN_ONLY_FLAGS, ...COMMAND_FLAGS, ...VM_FLAGS, ...OUTPUT_FLAGS },
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
    if (given.tty && execution === "vm") {
      return await runInVmOnThisTerminal(rest, given, io);
    }
    using view = io.openEventView(given);
    const request = {
      commandWords: rest,
      flagValues: given,
      io,
      onEvent: view.onEvent,
    };
    return execution === "host"
      ? await runCommandOnHost(request)
      : await runCommandInVm(request);
  },
});

interface RunRequest {
  commandWords: string[];
  flagValues: FlagValues<
    typeof COMMAND_FLAGS & typeof VM_FLAGS & typeof OUTPUT_FLAGS
  >;
  io: CliIo;
  onEvent: OnEvent;
}

async function runCommandInVm(
  { commandWords, flagValues, io, onEvent }: RunRequest,
) {
  const [command, ...args] = commandWords;
  const { env, signal } = io;
  const manifest = await loadManifest(flagValues.manifest, { env });
  const { code, signal: endedBy, stdoutBytes, stderrBytes } = await runInVm(
    manifest,
    command,
    {
      args,
      ...pickFlagValues(COMMAND_FLAGS, flagValues),
      hostCwd: Deno.cwd(),
      signal,
      ...io.guestCommandStreams(flagValues.json),
      vm: { ...workspaceVmOptions(flagValues), env, onEvent },
    },
  );
  const result = { code, signal: endedBy, stdoutBytes, stderrBytes };
  io.printResult(flagValues.json, result, "");
  return code;
}

async function runCommandOnHost(
  { commandWords, flagValues, io, onEvent }: RunRequest,
) {
  const [command, ...args] = commandWords;
  // The manifest's tool paths are in the guest; on the host the name is run.
  const manifest = await loadManifest(flagValues.manifest, { env: io.env });
  assertToolAllowed(manifest, command);
  const unwritten = new AbortController();
  const streams = io.hostCommandStreams(
    flagValues.json,
    (error) => unwritten.abort(error),
  );
  const ended = await runOnHost(command, {
    args,
    ...pickFlagValues(COMMAND_FLAGS, flagValues),
    signal: AbortSignal.any([io.signal, unwritten.signal]),
    ...streams,
    onEvent,
  });
  io.printResult(flagValues.json, ended, "");
  return ended.code;
}

function vmOrHostFromEnv(env: Environment): "vm" | "host" {
  const execution = env.get("TOOLSMITH_EXECUTION") || "vm";
  if (execution === "vm" || execution === "host") return execution;
  throw usageError(
    `TOOLSMITH_EXECUTION is "${execution}", expected vm or host`,
    "set TOOLSMITH_EXECUTION=vm, or =host to run without a VM",
  );
}
