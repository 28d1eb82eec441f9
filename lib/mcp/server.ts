/**
 * Serves a workspace's VM to an AI agent over the Model Context Protocol (MCP).
 *
 * @module
 */
import type { Writable } from "node:stream";
import type { McpServer } from "@modelcontextprotocol/server";
import { ToolsmithError } from "../errors.ts";
import type { Manifest } from "../manifest/manifest.ts";
import { basename } from "../path.ts";
import { VERSION } from "../version.ts";
import { createCommands, type Grants } from "./_commands.ts";
import * as schemas from "./_schemas.ts";

const sdk = await import("./_sdk.ts");

/** Where the protocol is read and written; `stdout` settles when it is written. */
export interface ProtocolStreams {
  stdin: ReadableStream<Uint8Array>;
  stdout: (chunk: Uint8Array) => Promise<void>;
}

/** Less than the SDK's limit, at which it closes the connection. */
const MAX_LINE_BYTES = 4 * 1024 * 1024;
/** More than the answers to as many calls as may run at once. */
const MAX_UNREAD_BYTES = 32 * 1024 * 1024;
const NEWLINE = 10;
const TOO_LONG = { code: -32600, message: "The request is longer than 4 MiB" };
/** Clients add a prefix; some accept 64 characters in all. */
const MAX_NAME_CHARS = 40;

/**
 * Serves until the client disconnects, then ends commands and VMs.
 *
 * Needs what `openWorkspaceVm` needs.
 *
 * @throws {ToolsmithError} `failed` for a client that does not read.
 * @throws The signal's reason when it is aborted already.
 */
export async function serveMcp(
  manifest: Manifest,
  { stdin, stdout }: ProtocolStreams,
  grants: Grants,
): Promise<void> {
  // A bundle would load a static import for every command.
  const { Readable, Writable } = await import("node:stream");
  grants.signal?.throwIfAborted();
  const output = new Writable({
    write: (chunk, _, done) => void stdout(chunk).then(() => done(), done),
  });
  const input = Readable.fromWeb(stdin.pipeThrough(limitInput(output)));
  const transport = new sdk.StdioServerTransport(input, output);
  await using commands = createCommands(manifest, grants);
  const factory = () => createServer(manifest, grants, commands);
  const { close } = sdk.serveStdio(factory, { transport });
  grants.signal?.addEventListener("abort", close);
  const { onclose } = transport;
  await new Promise<void>((closed, failed) => {
    input.once("error", failed);
    transport.onclose = () => closed(onclose?.());
  });
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
      controller.enqueue(chunk.filter(isKept));
    },
  });
  function isKept(byte: number) {
    length = byte === NEWLINE ? 0 : length + 1;
    if (length === MAX_LINE_BYTES) {
      const answer = { jsonrpc: "2.0", id: null, error: TOO_LONG };
      output.write(`${JSON.stringify(answer)}\n`);
    }
    return length < MAX_LINE_BYTES;
  }
}

function createServer(
  { tools, operations }: Manifest,
  { vm: { exports = [], overlay, network } = {}, freshEach }: Grants,
  { run, readOutput, reset }: ReturnType<typeof createCommands>,
): McpServer {
  const mounts = exports.map(({ path, tag = basename(path) }) => `/mnt/${tag}`);
  const instructions =
    `Commands run in a VM, in /mnt/work: the workspace, read-only. What they write is lost, except in: ${
      mounts.join(", ") || "(no directory)"
    }.`;
  const info = { name: "toolsmith", version: VERSION };
  const server = new sdk.McpServer(info, { instructions });
  const changes = mounts.length > 0 || overlay !== undefined || !!network;
  const annotations = {
    readOnlyHint: !changes,
    destructiveHint: changes,
    openWorldHint: !!network,
  };
  const command = { annotations, outputSchema: schemas.COMMAND_RESULT };
  if (operations.length === 0) {
    server.registerTool("run", {
      description: "Runs a command in the VM; no shell reads args",
      inputSchema: schemas.ANY_COMMAND,
      ...command,
    }, run);
  }
  server.registerTool("read_output", {
    description: "Returns 64 KiB of an output that was shortened",
    inputSchema: schemas.OUTPUT_POSITION,
    annotations: { readOnlyHint: true, openWorldHint: false },
  }, readOutput);
  if (!freshEach) {
    server.registerTool("reset", {
      description: "Ends the VM: the next command starts in a fresh one",
      annotations: { destructiveHint: true, openWorldHint: false },
    }, reset);
  }
  const taken = new Set(["run", "read_output", "reset"]);
  const allowed = operations.length > 0 ? operations : Object.keys(tools);
  for (const tool of allowed) {
    let name = tool.replace(/[^\w-]/g, "_").slice(0, MAX_NAME_CHARS);
    while (taken.has(name)) name += "_";
    taken.add(name);
    const path = Object.hasOwn(tools, tool) ? tools[tool] : tool;
    server.registerTool(name, {
      description: `Runs ${path} in the VM`,
      inputSchema: operations.length > 0
        ? schemas.ALLOWED_COMMAND
        : schemas.NAMED_COMMAND,
      ...command,
    }, (call, context) => run({ ...call, command: tool }, context));
  }
  return server;
}
