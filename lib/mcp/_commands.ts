/**
 * Runs the commands of calls, in one VM or each in a VM of its own.
 *
 * @module
 */
import type {
  CallToolResult,
  ServerContext,
} from "@modelcontextprotocol/server";
import { toToolsmithError } from "../errors.ts";
import type { OnEvent, ToolsmithEvent } from "../events.ts";
import type { Manifest } from "../manifest/manifest.ts";
import { resolveToolPath } from "../manifest/tools.ts";
import { openWorkspaceVm, type RunInVmOptions } from "../run/workspace_vm.ts";
import { abortable, startDeadline } from "../system/time.ts";
import type { Vm } from "../vm/vm.ts";
import { keepStream, type KeptStream } from "./_kept_stream.ts";
import type { CommandCall, OutputPosition } from "./_schemas.ts";

/** What the person grants: no call changes the VM or exceeds the timeout. */
export interface Grants extends RunInVmOptions {
  /** Whether each call has a VM of its own. */
  freshEach: boolean;
  /** The text of an event for a progress notification, if any. */
  progressText: (event: ToolsmithEvent) => string | undefined;
}

const MAX_CALLS = 32;
const MAX_KEPT_OUTPUTS = 8;
const REPLACED =
  "The VM had ended: this is a new one, without what earlier calls left in it";

/** Disposing the result ends commands and VMs. */
export function createCommands(
  manifest: Manifest,
  { freshEach, progressText, vm: vmOptions, timeoutMs, ...defaults }: Grants,
) {
  const disposed = new AbortController();
  const calls = new Set<Promise<CallToolResult>>();
  const outputs = new Map<string, Record<"stdout" | "stderr", KeptStream>>();
  const listeners = new Set<OnEvent>();
  let shared: Promise<Vm> | undefined;
  let stopped = Promise.resolve();
  let notice: string | undefined;
  let lastId = 0;

  const open = async (signal: AbortSignal, listeners: Iterable<OnEvent>) => {
    await stopped;
    const onEvent: OnEvent = (event) => {
      vmOptions?.onEvent?.(event);
      for (const listener of listeners) listener(event);
    };
    const own = { reuseDetached: false, signal, onEvent };
    return await openWorkspaceVm(manifest, { ...vmOptions, ...own });
  };
  const share = () => {
    const opened = shared = open(disposed.signal, listeners);
    const forget = (why = notice) => {
      if (shared === opened) [shared, notice] = [undefined, why];
    };
    opened.then(async (vm) => {
      await vm.ended;
      // Releases the files of a VM that has ended by itself.
      stopped = vm.stop().catch(() => {});
      forget(REPLACED);
    }).catch(() => forget());
    return opened;
  };
  const stop = async () => {
    if (shared) stopped = shared.then((vm) => vm.stop()).catch(() => {});
    [shared, notice] = [undefined, undefined];
    await stopped;
  };
  const run = async (
    { command, timeout = Infinity, ...input }: CommandCall,
    { mcpReq }: ServerContext,
  ): Promise<CallToolResult> => {
    const startedAt = performance.now();
    const limitMs = Math.min(timeout * 1000, timeoutMs ?? Infinity);
    using deadline = startDeadline(limitMs, "The command", mcpReq.signal);
    const { signal } = deadline;
    const id = `${++lastId}`;
    const stdout = keepStream({ id, stream: "stdout" });
    const stderr = keepStream({ id, stream: "stderr" });
    const shown = () => {
      const [out, err] = [stdout.shown(), stderr.shown()];
      const truncated = out.truncated || err.truncated;
      if (truncated) outputs.set(id, { stdout, stderr });
      const [oldest] = outputs.keys();
      if (outputs.size > MAX_KEPT_OUTPUTS) outputs.delete(oldest);
      return { stdout: out.text, stderr: err.text, truncated };
    };
    let progress = 0;
    const listener: OnEvent = (event) => {
      const message = progressText(event);
      const progressToken = mcpReq._meta?.progressToken;
      if (progressToken === undefined || message === undefined) return;
      const params = { progressToken, progress: ++progress, message };
      mcpReq.notify({ method: "notifications/progress", params })
        .catch(() => {});
    };
    await using own = new AsyncDisposableStack();
    try {
      const program = resolveToolPath(manifest, command);
      listeners.add(listener);
      // Only the wait for a shared VM is aborted: other calls may need it.
      const vm = freshEach
        ? own.use(await open(signal, [listener]))
        : await abortable(shared ?? share(), signal);
      const sinks = { stdout: stdout.push, stderr: stderr.push };
      const env = { ...defaults.env, ...input.env };
      const how = { ...defaults, ...input, ...sinks, env, signal };
      const { code, signal: endedBy } = await vm.exec(program, how);
      const durationMs = Math.round(performance.now() - startedAt);
      const fields = { code, signal: endedBy, ...shown(), durationMs, notice };
      notice = undefined;
      return toolResult(fields);
    } catch (error) {
      return errorResult(error, shown());
    } finally {
      listeners.delete(listener);
    }
  };
  return {
    run(call: CommandCall, context: ServerContext) {
      if (calls.size >= MAX_CALLS) {
        return errorResult(`More than ${MAX_CALLS} calls at once`);
      }
      const running = run(call, context);
      calls.add(running);
      return running.finally(() => calls.delete(running));
    },
    readOutput({ id, stream, offset = 0 }: OutputPosition) {
      const output = outputs.get(id);
      return output
        ? toolResult(output[stream].read(offset))
        : errorResult(`Output ${id} is not kept: run the command again`);
    },
    async reset() {
      await stop();
      return toolResult({});
    },
    async [Symbol.asyncDispose]() {
      disposed.abort();
      await stop();
      await Promise.allSettled(calls);
    },
  };
}

/** The text is for clients that ignore structured results. */
function toolResult(fields: Record<string, unknown>): CallToolResult {
  const text = JSON.stringify(fields);
  return { structuredContent: fields, content: [{ type: "text", text }] };
}

/** What Toolsmith could not do: the failure of a command is a result. */
function errorResult(thrown: unknown, output?: object): CallToolResult {
  const { code, message, hint } = toToolsmithError(thrown);
  const text = JSON.stringify({ error: code, message, hint, ...output });
  return { isError: true, content: [{ type: "text", text }] };
}
