/**
 * Runs a command on this host, without a machine around it. Nothing falls back
 * to this: only a caller who asks for it gets it.
 *
 * @module
 */
import { ToolsmithError } from "../errors.ts";
import { emitter, nextCommandId, type OnEvent } from "../events.ts";
import {
  type ProcessExit,
  type ProcessInput,
  type ProcessOutput,
  spawn,
} from "../system/process.ts";
import { timeLimit } from "../system/time.ts";

/** How {@linkcode runOnHost} runs a command. */
export interface HostOptions {
  /** Arguments, each passed byte for byte. @default {[]} */
  args?: string[];
  /** What the command reads. @default {"null"} */
  stdin?: ProcessInput;
  /** Where standard output goes. @default {"inherit"} */
  stdout?: ProcessOutput;
  /** Where standard error goes. @default {"inherit"} */
  stderr?: ProcessOutput;
  /** Added to the environment, or overriding it. @default {{}} */
  env?: Record<string, string>;
  /** The command's directory. @default {Deno.cwd()} */
  cwd?: string;
  /** Time the command may take, in milliseconds. @default {Infinity} */
  timeoutMs?: number;
  /** Told of what happens. */
  onEvent?: OnEvent;
  /** Stops the command when aborted. */
  signal?: AbortSignal;
}

/**
 * Runs a command on this host, with all that this user may do. The manifest's
 * image plays no part.
 *
 * Needs `--allow-run` for the command.
 *
 * @param command Its name, found on PATH, or its path.
 * @param options Arguments, streams, limits.
 * @returns How it ended. A failure of the command is a result, not an error.
 * @throws {ToolsmithError} `command_not_found`, `file_unreadable` for a directory
 * that does not exist, `timeout`.
 * @throws The signal's reason when it is aborted.
 */
export async function runOnHost(
  command: string,
  options: HostOptions = {},
): Promise<ProcessExit> {
  const { timeoutMs = Infinity, onEvent, stdin, ...rest } = options;
  const emit = emitter(onEvent);
  const begun = performance.now();
  const id = nextCommandId();
  emit({ type: "command_dispatch", id, command, backend: "host" });
  using limit = timeLimit(timeoutMs, "The command", options.signal);
  const { signal } = limit;
  await using child = start(command, { ...rest, stdin, timeoutMs, signal });
  const ended = await child.ended;
  signal.throwIfAborted();
  const elapsedMs = Math.round(performance.now() - begun);
  emit({ type: "command_end", id, ...ended, elapsedMs });
  return ended;
}

function start(command: string, options: HostOptions) {
  const { args, stdin, stdout = "inherit", stderr = "inherit" } = options;
  const { env, cwd, signal, timeoutMs = Infinity } = options;
  // Without a limit, the command keeps the terminal and its Ctrl-C.
  const group = Number.isFinite(timeoutMs);
  try {
    return spawn(command, {
      args,
      input: stdin,
      stdout,
      stderr,
      env,
      cwd,
      signal,
      group,
    });
  } catch (cause) {
    const { NotADirectory, NotFound, PermissionDenied } = Deno.errors;
    if (/: (?:No such cwd|cwd is not a directory) '/.test(`${cause}`)) {
      throw new ToolsmithError(
        "file_unreadable",
        `No such directory on this host: ${cwd}`,
        { hint: "name a directory of this host: --cwd DIR", cause },
      );
    }
    const isMissing = cause instanceof NotFound ||
      cause instanceof NotADirectory;
    if (!isMissing && !(cause instanceof PermissionDenied)) throw cause;
    const what = isMissing ? "not found" : "not executable";
    throw new ToolsmithError(
      "command_not_found",
      `Command ${what} on this host: ${command}`,
      { hint: "give its path, or put its directory on PATH", cause },
    );
  }
}
