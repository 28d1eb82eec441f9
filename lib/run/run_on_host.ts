/**
 * Runs a command on this host, without a VM. Nothing falls back to this: the caller
 * has to request it.
 */
import { ToolsmithError } from "../errors.ts";
import { createEmitter, nextCommandId, type OnEvent } from "../events.ts";
import {
  type ProcessExit,
  type ProcessInput,
  type ProcessOutputTarget,
  type RunningProcess,
  type SpawnOptions,
  spawnProcess,
} from "../system/process.ts";
import { startDeadline } from "../system/time.ts";

/** How {@linkcode runOnHost} runs a command. */
export interface RunOnHostOptions {
  /** Arguments, each passed byte for byte. @default {[]} */
  args?: string[];
  /** Standard input. @default {"null"} */
  stdin?: ProcessInput;
  /** Destination of standard output. @default {"inherit"} */
  stdout?: ProcessOutputTarget;
  /** Destination of standard error. @default {"inherit"} */
  stderr?: ProcessOutputTarget;
  /** Variables added to, or overriding, the environment. @default {{}} */
  env?: Record<string, string>;
  /** Working directory. @default {Deno.cwd()} */
  cwd?: string;
  /** Timeout of the command, in milliseconds. @default {Infinity} */
  timeoutMs?: number;
  /** Receives progress events. */
  onEvent?: OnEvent;
  /** Stops the command when aborted. */
  signal?: AbortSignal;
}

/**
 * Runs a command on this host with the user's permissions, without the manifest's
 * image.
 *
 * Needs `--allow-run` for the command.
 *
 * @param command A name on PATH, or a path.
 * @param options Arguments, streams, limits.
 * @returns How the command ended. A failing command is a result, not an error.
 * @throws {ToolsmithError} `command_not_found`, `file_unreadable` for a directory
 * that does not exist, `timeout`.
 * @throws The signal's reason when it is aborted.
 */
export async function runOnHost(
  command: string,
  options: RunOnHostOptions = {},
): Promise<ProcessExit> {
  const { timeoutMs, onEvent, stdin: input, ...rest } = options;
  const { stdout = "inherit", stderr = "inherit" } = rest;
  const emit = createEmitter(onEvent);
  const startTime = performance.now();
  const id = nextCommandId();
  emit({ type: "command_dispatch", id, command, backend: "host" });
  using deadline = startDeadline(timeoutMs, "The command", options.signal);
  const { signal } = deadline;
  // Without a limit, the command keeps the terminal and its Ctrl-C.
  const ownProcessGroup = timeoutMs !== undefined && Number.isFinite(timeoutMs);
  const how = { input, stdout, stderr, signal, ownProcessGroup };
  await using child = spawnOnHost(command, { ...rest, ...how });
  const ended = await child.ended;
  signal.throwIfAborted();
  const elapsedMs = Math.round(performance.now() - startTime);
  emit({ type: "command_end", id, ...ended, elapsedMs });
  return ended;
}

function spawnOnHost(command: string, options: SpawnOptions): RunningProcess {
  try {
    return spawnProcess(command, options);
  } catch (cause) {
    const { NotADirectory, NotFound, PermissionDenied } = Deno.errors;
    if (/: (?:No such cwd|cwd is not a directory) '/.test(`${cause}`)) {
      throw new ToolsmithError(
        "file_unreadable",
        `No such directory on this host: ${options.cwd}`,
        { hint: "pass an existing directory on this host: --cwd DIR", cause },
      );
    }
    const isMissing = cause instanceof NotFound ||
      cause instanceof NotADirectory;
    if (!isMissing && !(cause instanceof PermissionDenied)) throw cause;
    const problem = isMissing ? "not found" : "not executable";
    throw new ToolsmithError(
      "command_not_found",
      `Command ${problem} on this host: ${command}`,
      { hint: "pass a program's path, or add its directory to PATH", cause },
    );
  }
}
