/**
 * `toolsmith run`: runs a command in the image, and ends with its exit status.
 *
 * @module
 */
import type { Environment } from "../../environment.ts";
import type { OnEvent } from "../../events.ts";
import { loadManifest } from "../../manifest/manifest.ts";
import { assertToolAllowed } from "../../manifest/tools.ts";
import { runOnHost } from "../../run/host.ts";
import { runInVm } from "../../run/workspace_vm.ts";
import type { Command } from "../command.ts";
import { type ParsedFlags, usage } from "../flag_values.ts";
import {
  EXEC,
  HYDRATE,
  MACHINE,
  readExec,
  readMachine,
  readOutput,
} from "../flags.ts";
import type { Io } from "../io.ts";
import {
  hasTerminal,
  runOnThisTerminal,
  type TerminalRequest,
} from "../on_terminal.ts";

interface RunRequest extends TerminalRequest {
  execution?: "vm" | "host";
  tty: boolean;
}

/** Runs a command in the image, and ends with its exit status. */
export const run: Command<RunRequest> = {
  name: "run",
  usage: "[flags] COMMAND [ARG…]",
  summary: "run a command in the image; its exit status is the command's",
  details:
    "It runs in the workspace, read-only at /mnt/work: in the VM that boot --detach\nstarted, else in one of its own. Flags after COMMAND are the command's.",
  example: "run --export build/out:out -- make DESTDIR=/mnt/out",
  takes: ["TOOL", "FILE"],
  flags: [
    {
      name: "execution",
      value: "vm|host",
      group: "command",
      help: "where; else TOOLSMITH_EXECUTION, else in the VM",
    },
    {
      name: "tty",
      group: "command",
      help: "run the command on this terminal, as shell does",
    },
    ...EXEC,
    ...MACHINE,
    ...HYDRATE,
  ],
  positionals: [0, 0],
  rest: "words",
  parse: readRequest,
  async run(request, io) {
    if (request.tty && !hasTerminal()) {
      throw usage("run --tty needs a terminal", "toolsmith run needs none");
    }
    const place = request.execution ?? placeOf(io.env);
    if (request.tty && place === "vm") {
      return await runOnThisTerminal(request, io);
    }
    const { onEvent, close } = io.view(request.output);
    try {
      return place === "host"
        ? await onHost(request, io, onEvent)
        : await inVm(request, io, onEvent);
    } finally {
      close();
    }
  },
};

function readRequest(given: ParsedFlags): RunRequest {
  const [command, ...args] = given.rest;
  if (command === undefined) {
    throw usage("run needs a command", "toolsmith run COMMAND [ARG…]");
  }
  const [execution, tty] = [given.text("execution"), given.has("tty")];
  if (tty && given.has("json")) {
    throw usage("run --tty prints no JSON", "leave --tty or --json away");
  }
  return {
    manifest: given.text("manifest"),
    command,
    args,
    vm: readMachine(given),
    execution: execution === undefined
      ? undefined
      : given.oneOf(["vm", "host"], execution),
    tty,
    ...readExec(given),
    output: readOutput(given),
  };
}

async function inVm(request: RunRequest, io: Io, onEvent: OnEvent) {
  const { command, args, env, cwd, timeoutMs, output: { json } } = request;
  const manifest = await loadManifest(request.manifest);
  const { code, signal, stdoutBytes, stderrBytes } = await runInVm(
    manifest,
    command,
    {
      args,
      env,
      cwd,
      hostCwd: Deno.cwd(),
      timeoutMs,
      signal: io.signal,
      ...io.streams(json),
      vm: { ...request.vm, env: io.env, onEvent },
    },
  );
  io.result(json, { code, signal, stdoutBytes, stderrBytes }, "");
  return code;
}

async function onHost(request: RunRequest, io: Io, onEvent: OnEvent) {
  const { command, args, env, cwd, timeoutMs, output: { json } } = request;
  // Paths of tools are those of the guest: here the name alone counts.
  assertToolAllowed(await loadManifest(request.manifest), command);
  const unwritten = new AbortController();
  const streams = io.hostStreams(json, (error) => unwritten.abort(error));
  const ended = await runOnHost(command, {
    args,
    env,
    cwd,
    timeoutMs,
    signal: AbortSignal.any([io.signal, unwritten.signal]),
    ...streams,
    onEvent,
  });
  io.result(json, ended, "");
  return ended.code;
}

function placeOf(env: Environment): "vm" | "host" {
  const place = env.get("TOOLSMITH_EXECUTION") || "vm";
  if (place === "vm" || place === "host") return place;
  throw usage(
    `TOOLSMITH_EXECUTION is "${place}"`,
    "it is vm, or host to do without the machine",
  );
}
