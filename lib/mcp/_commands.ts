/** Runs the commands of calls, in one VM or each in a VM of its own. */
import type { ServerContext } from "@modelcontextprotocol/server";
import { toToolsmithError } from "../errors.ts";
import type { ToolsmithEvent } from "../events.ts";
import type { Manifest } from "../manifest/manifest.ts";
import { resolveToolPath } from "../manifest/tools.ts";
import { openWorkspaceVm, type RunInVmOptions } from "../run/workspace_vm.ts";
import { abortable, startDeadline } from "../system/time.ts";
import type { Vm } from "../vm/vm.ts";
import { keepStream, type KeptStream } from "./_kept_stream.ts";
import type { CommandCall, OutputPosition } from "./_sdk.ts";

/** What the person grants: no call changes the VM or exceeds the timeout. */
export interface Grants extends RunInVmOptions {
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
  { freshEach, progressText, vm: vmOptions, timeoutMs = Infinity, ...defaults }:
    Grants,
) {
  const disposed = new AbortController();
  const calls = new Map<ServerContext, Promise<unknown>>();
  const outputs = new Map<string, Record<"stdout" | "stderr", KeptStream>>();
  let shared: Promise<Vm> | undefined;
  let ended: Promise<void> | undefined;
  let notice: string | undefined;
  let [callCount, progress] = [0, 0];

  const open = async (signal: AbortSignal, only?: ServerContext) => {
    await ended;
    const onEvent = (event: ToolsmithEvent) => {
      vmOptions?.onEvent?.(event);
      const message = progressText(event);
      for (const { mcpReq } of only ? [only] : calls.keys()) {
        const progressToken = mcpReq._meta?.progressToken;
        if (!message || progressToken === undefined) continue;
        const params = { progressToken, progress: ++progress, message };
        mcpReq.notify({ method: "notifications/progress", params })
          .catch(() => {});
      }
    };
    const own = { reuseDetached: false, signal, onEvent };
    return await openWorkspaceVm(manifest, { ...vmOptions, ...own });
  };
  const openShared = () => {
    const opened = shared = open(disposed.signal);
    ended = opened.then(async (vm) => {
      await vm.ended;
      if (shared === opened) [shared, notice] = [undefined, REPLACED];
      // Releases the files of a VM that has ended by itself.
      await vm.stop();
    }).catch(() => {
      if (shared === opened) shared = undefined;
    });
    return opened;
  };
  const stop = async () => {
    shared?.then((vm) => vm.stop()).catch(() => {});
    shared = notice = undefined;
    await ended;
  };
  const run = async (
    { command, timeout = Infinity, ...input }: CommandCall,
    context: ServerContext,
  ) => {
    const startedAt = performance.now();
    const limitMs = Math.min(timeout * 1000, timeoutMs);
    const { signal: cancelled } = context.mcpReq;
    using deadline = startDeadline(limitMs, "The command", cancelled);
    const { signal } = deadline;
    const id = `${++callCount}`;
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
    try {
      const program = resolveToolPath(manifest, command);
      await using own = freshEach ? await open(signal, context) : undefined;
      // Only the wait for a shared VM is aborted: other calls may need it.
      const vm = own ?? await abortable(shared ?? openShared(), signal);
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
    }
  };
  return {
    run(call: CommandCall, context: ServerContext) {
      if (calls.size >= MAX_CALLS) {
        return errorResult(`More than ${MAX_CALLS} calls at once`);
      }
      const running = run(call, context).finally(() => calls.delete(context));
      calls.set(context, running);
      return running;
    },
    readOutput({ id, stream, offset }: OutputPosition) {
      const output = outputs.get(id);
      return output
        ? toolResult(output[stream].read(offset))
        : errorResult(`Output ${id} is not kept: run the command again`);
    },
    reset: () => stop().then(() => toolResult({})),
    async [Symbol.asyncDispose]() {
      disposed.abort();
      await stop();
      await Promise.allSettled(calls.values());
    },
  };
}

/** The text is for clients that ignore structured results. */
function toolResult(structuredContent: Record<string, unknown>) {
  const text = JSON.stringify(structuredContent);
  return { structuredContent, content: [{ type: "text" as const, text }] };
}

/** What Toolsmith could not do: the failure of a command is a result. */
function errorResult(thrown: unknown, output?: object) {
  const { code, message, hint } = toToolsmithError(thrown);
  const { content } = toolResult({ error: code, message, hint, ...output });
  return { isError: true, content };
}
