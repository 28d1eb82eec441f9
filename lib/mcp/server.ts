/** Serves a workspace's VM to an AI agent over the Model Context Protocol (MCP). */
import type { Writable } from "node:stream";
import { ToolsmithError } from "../errors.ts";
import type { Manifest } from "../manifest/manifest.ts";
import { resolveToolPath } from "../manifest/tools.ts";
import { basename, resolve } from "../path.ts";
import { VERSION } from "../version.ts";
import type { GuestExport } from "../vm/boot_options.ts";
import { createCommands, type Grants } from "./_commands.ts";

/** Less than the SDK's limit, at which it closes the connection. */
const MAX_LINE_BYTES = 4 * 1024 * 1024;
const TOO_LONG =
  '{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"The request is longer than 4 MiB"}}\n';
/** More than the answers to as many calls as may run at once. */
const MAX_UNREAD_BYTES = 32 * 1024 * 1024;
const NEWLINE = 10;
/** Clients add a prefix; some accept 64 characters in all. */
const MAX_NAME_CHARS = 40;

/**
 * Serves until the client disconnects, then ends commands and VMs.
 *
 * @throws {ToolsmithError} `failed` for a client that does not read.
 * @throws The signal's reason when it is aborted.
 */
export async function serveMcp(
  manifest: Manifest,
  { readable, writable }: ReadableWritablePair<Uint8Array, Uint8Array>,
  grants: Grants,
): Promise<void> {
  const sdk = await import("./_sdk.ts");
  const mounts = await Promise.all((grants.vm?.exports ?? []).map(mountPoint));
  const { signal } = grants;
  const output = sdk.Writable.fromWeb(writable);
  const limited = readable.pipeThrough(limitInput(output), { signal });
  const input = sdk.Readable.fromWeb(limited);
  await using commands = createCommands(manifest, grants);
  const createServer = () =>
    createToolServer(sdk, manifest, { ...grants, mounts }, commands);
  const transport = new sdk.StdioServerTransport(input, output);
  sdk.serveStdio(createServer, { transport });
  const { onclose } = transport;
  transport.onclose = () => {
    onclose?.();
    input.destroy();
  };
  await sdk.once(input, "close");
}

/** Where the guest mounts an export: by default under the name of a link's target. */
async function mountPoint({ path, tag }: GuestExport): Promise<string> {
  const dir = await Deno.realPath(path).catch(() => resolve(path));
  return `/mnt/${tag ?? basename(dir)}`;
}

/**
 * Cuts a line that is too long: the rest is no JSON, which the SDK skips. Ends the input
 * of a client that does not read its answers.
 */
function limitInput(output: Writable) {
  let length = 0;
  return new TransformStream<Uint8Array, Uint8Array>({
    transform(chunk, controller) {
      if (output.writableLength > MAX_UNREAD_BYTES) {
        const message = "The client does not read what it is answered";
        throw new ToolsmithError("failed", message);
      }
      controller.enqueue(chunk.filter((byte) => {
        length = byte === NEWLINE ? 0 : length + 1;
        if (length === MAX_LINE_BYTES) output.write(TOO_LONG);
        return length < MAX_LINE_BYTES;
      }));
    },
  });
}

function createToolServer(
  sdk: typeof import("./_sdk.ts"),
  manifest: Manifest,
  { vm: { overlay, network } = {}, freshEach, mounts }: Grants & {
    mounts: string[];
  },
  { run, readOutput, reset }: ReturnType<typeof createCommands>,
) {
  const { tools, operations } = manifest;
  const lasting = mounts.join(", ") || "(no directory)";
  const instructions =
    `Commands run in a VM, in /mnt/work: the workspace, read-only. What they write is lost, except in: ${lasting}.`;
  const info = { name: "toolsmith", version: VERSION };
  const server = new sdk.McpServer(info, { instructions });
  const openWorldHint = !!network;
  const destructiveHint = mounts.length > 0 || !!overlay || openWorldHint;
  const readOnlyHint = !destructiveHint;
  const annotations = { readOnlyHint, destructiveHint, openWorldHint };
  const command = { annotations, outputSchema: sdk.COMMAND_RESULT };
  const isRestricted = operations.length > 0;
  if (!isRestricted) {
    const description = "Runs a command in the VM; no shell reads args";
    const inputSchema = sdk.ANY_COMMAND;
    server.registerTool("run", { description, inputSchema, ...command }, run);
  }
  server.registerTool("read_output", {
    description: "Returns 64 KiB of an output that was shortened",
    inputSchema: sdk.OUTPUT_POSITION,
    annotations: { readOnlyHint: true, openWorldHint: false },
  }, readOutput);
  if (!freshEach) {
    server.registerTool("reset", {
      description: "Ends the VM: the next command starts in a fresh one",
      annotations: { destructiveHint: true, openWorldHint: false },
    }, reset);
  }
  const taken = new Set(["run", "read_output", "reset"]);
  for (const tool of isRestricted ? operations : Object.keys(tools)) {
    let name = tool.replace(/[^\w-]/g, "_").slice(0, MAX_NAME_CHARS);
    while (taken.has(name)) name += "_";
    taken.add(name);
    server.registerTool(name, {
      description: `Runs ${resolveToolPath(manifest, tool)} in the VM`,
      inputSchema: isRestricted ? sdk.ALLOWED_COMMAND : sdk.NAMED_COMMAND,
      ...command,
    }, (call, context) => run({ ...call, command: tool }, context));
  }
  return server;
}
